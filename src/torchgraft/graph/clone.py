"""Clones of models: every module a new object of its own class, every tensor copy on write."""

from __future__ import annotations

import copy
import pickle
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from torchgraft.errors import ModelError
from torchgraft.graph.cow import TensorCloner

_ATOMS: tuple[type, ...] = (int, float, complex, bool, str, bytes, type(None), type, types.FunctionType)
_ATOMS += (types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device, torch.Size)
_ATOMIC = frozenset(_ATOMS)
_CONTAINERS = frozenset((dict, OrderedDict, list, set))


_PLAIN: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes seen to be cloned by their state alone."""


def clone(model: nn.Module) -> nn.Module:
    """Clone a model so that neither side can show in the other.

    Module classes, hooks, attributes, modes and ties are kept; gradients are not.

    Args:
        model: any module; it is only read.

    Returns:
        A module of the same class.
    """
    return Cloner(model).module(model)


class Cloner:
    """Clone modules and what they hold, with one memo, so that what was one stays one.

    Args:
        model: the root; its tensors are read once to find shared storages.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensor = TensorCloner(_tensors(model), self.value)
        self._model = model
        self.memo: dict[int, object] = {}

    def module(self, module: nn.Module) -> nn.Module:
        """Clone one module with everything below it."""
        known = self.memo.get(id(module))
        if known is not None:
            return known  # type: ignore[return-value]  # a memo holds clones of the same kind
        cls = _own_class(module)
        if cls not in _PLAIN and _copies_itself(cls) and not isinstance(module, fx.GraphModule):
            return self._deep(module)  # type: ignore[return-value]  # deepcopy keeps the type
        _PLAIN.add(cls)
        foreign = issubclass(cls, fx.GraphModule) and not hasattr(cls, "_fresh")
        new: nn.Module = cls.__new__(cls) if foreign else object.__new__(cls)
        self.memo[id(module)] = new
        state = vars(module)
        held = vars(new)
        for name, value in state.items():
            kind = type(value)
            if kind in _ATOMIC:
                held[name] = value
            elif kind in _CONTAINERS and not value:  # the hooks, most of the time
                held[name] = kind()
            elif kind is tuple and _ATOMIC.issuperset(map(type, value)):
                held[name] = value
            else:
                held[name] = self._attribute(module, name, value)
        if "_compiled_call_impl" in held:
            held["_compiled_call_impl"] = None  # it would call the original
        if isinstance(module, fx.GraphModule):
            _regenerate(module, new)  # type: ignore[arg-type]  # a clone has the class of its source
        return new

    def _attribute(self, module: nn.Module, name: str, value: object) -> object:
        try:
            return self.value(value)
        except (TypeError, NotImplementedError, pickle.PicklingError) as error:
            raise ModelError(
                f"the attribute {name!r} of {type(module).__name__} cannot be copied",
                found=f"{type(value).__name__}: {error}",
                write=f"del model.{name} before, or a __deepcopy__ that says how",
            ) from error

    def value(self, value: object) -> object:
        """Clone one attribute: containers by content, tensors lazily, the rest by deepcopy."""
        kind = type(value)
        if kind in _ATOMIC:
            return value
        known = self.memo.get(id(value))
        if known is not None:
            return known
        new: object
        if kind in (weakref.ref, *weakref.ProxyTypes):
            return self._weak(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, torch.Tensor):
            new = self._tensor(value)
        elif isinstance(value, dict) and kind in (dict, OrderedDict):
            # Registered before it is filled: it may hold itself.
            filled: dict[object, object] = kind()
            self.memo[id(value)] = filled
            filled.update((key, self.value(item)) for key, item in value.items())
            return filled
        elif isinstance(value, list) and kind is list:
            grown: list[object] = []
            self.memo[id(value)] = grown
            grown.extend(self.value(item) for item in value)
            return grown
        elif isinstance(value, tuple) and kind is tuple:
            new = tuple(self.value(item) for item in value)
        elif isinstance(value, set) and kind is set:
            new = {self.value(item) for item in value}
        elif isinstance(value, fx.Graph):
            new = copy_graph(value)
        else:
            return self._deep(value)
        self.memo[id(value)] = new
        return new

    def _weak(self, value: object) -> object:
        """Point to the clone of what a weak reference points to, where that is in the model."""
        meant = pointed_at(value)
        inside = any(meant is part for part in parts_of(self._model))
        return pointer(value, self.module(meant)) if inside and meant is not None else value

    def _deep(self, value: object) -> object:
        # Tensors and modules below are put into the memo first, so that deepcopy finds them.
        if isinstance(value, nn.Module):
            for tensor in _tensors(value):
                self.value(tensor)
        elif isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.value(value.__self__))
        return copy.deepcopy(value, self.memo)


def pointed_at(value: object) -> nn.Module | None:
    """Return the module that a value is, or points to weakly."""
    value = value() if isinstance(value, weakref.ref) else value
    # A method of a weak proxy is one of the module itself.
    return value.modules.__self__ if isinstance(value, nn.Module) else None  # type: ignore[attr-defined]  # bound


def pointer(value: object, module: nn.Module) -> object:
    """Return a module in the way in which another value gives one: itself, or a weak reference."""
    if isinstance(value, weakref.ref):
        return weakref.ref(module)
    return weakref.proxy(module) if type(value) in weakref.ProxyTypes else module


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy a graph with its names, metadata and code generator; targets are shared."""
    new = fx.Graph(tracer_cls=None)
    memo: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        memo[node] = new.node_copy(node, lambda n: memo[n])
    new.set_codegen(copy.copy(graph._codegen))
    return new


def _regenerate(module: fx.GraphModule, new: fx.GraphModule) -> None:
    """Give the clone of a GraphModule a forward of its own."""
    type(new).__name__ = type(module).__name__
    if (ready := getattr(type(new), "_ready", None)) is not None:
        ready(new)
        return
    for graph in {id(g): g for g in vars(new).values() if isinstance(g, fx.Graph)}.values():
        graph.owning_module = new
    new.recompile()


def _own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class for the clone; one that was made for this instance alone is copied."""
    cls = type(module)
    if (level := getattr(cls, "_fresh", None)) is not None:
        return cast("type[nn.Module]", level())
    if parametrize.is_parametrized(module):
        # Removing a parametrisation deletes a property of the class.
        return type(cls.__name__, cls.__bases__, dict(vars(cls)))
    return cls


def _copies_itself(cls: type[nn.Module]) -> bool:
    """Tell whether a class has its own idea of copying, which must be honoured."""
    if "parametrizations" in cls.__dict__ or cls.__name__.startswith("Parametrized"):
        return False
    own = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    return any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in own)


def parts_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those in it, each once; several times as fast as ``module.modules()``."""
    seen: set[int] = set()
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [child for child in reversed(part._modules.values()) if child is not None]


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for child in parts_of(module):
        state = vars(child)
        for store in (state["_parameters"], state["_buffers"], state):
            yield from (value for value in store.values() if isinstance(value, torch.Tensor))

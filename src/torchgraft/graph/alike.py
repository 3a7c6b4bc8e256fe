"""Modules that are alike: what was followed once need not be followed again.

Following a forward sees classes, modes, plain attributes and the shapes of tensors, never
their values. Two modules that agree in all of these have the same graph.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping

import attrs
import torch
from torch import nn

from torchgraft.graph.clone import copy_graph
from torchgraft.graph.proxy import UNKNOWN
from torchgraft.graph.trace import Traced

_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)


class _Unlike(Exception):  # noqa: N818 - no error: it ends the comparison
    """There is something on the module that cannot be compared."""


class Alike:
    """Keep the graphs of what was followed, for modules that are alike."""

    def __init__(self) -> None:
        self._known: dict[object, Traced] = {}

    def signature(self, module: nn.Module, hints: Mapping[str, object]) -> object:
        """Sum up all that following a forward can see; ``None`` where that cannot be told."""
        if type(module).forward is nn.Sequential.forward:
            return None  # followed faster than compared
        try:
            return _module(module, {}), _value(dict(hints), {})
        except _Unlike:
            return None

    def get(self, signature: object) -> Traced | None:
        """Return graphs of its own for a module with a signature that is known."""
        known = self._known.get(signature) if signature is not None else None
        return None if known is None else _copied(known)

    def keep(self, signature: object, traced: Traced) -> None:
        """Keep the graphs of a module that was followed without example values."""
        if signature is not None and not traced.by_values and not traced.constants:
            self._known[signature] = _copied(traced)


def _copied(traced: Traced) -> Traced:
    evaluate = copy_graph(traced.evaluate)
    train = evaluate if traced.train is traced.evaluate else copy_graph(traced.train)
    return attrs.evolve(traced, train=train, evaluate=evaluate)


def _module(module: nn.Module, seen: dict[int, int]) -> object:
    """Sum up a module and those in it; what is met again is a number."""
    if id(module) in seen:
        return seen[id(module)]
    seen[id(module)] = len(seen)
    held = vars(module)
    tensors = [(n, _tensor(t, seen)) for s in ("_parameters", "_buffers") for n, t in held[s].items()]
    children = [(n, None if c is None else _module(c, seen)) for n, c in held["_modules"].items()]
    plain = [
        (name, _value(value, seen))
        for name, value in held.items()
        if not (name in ("_parameters", "_buffers", "_modules") or (name[0] == "_" and "hooks" in name))
    ]
    return type(module), tuple(tensors), tuple(children), tuple(plain)


def _tensor(tensor: torch.Tensor | None, seen: dict[int, int]) -> object:
    if tensor is None:
        return None
    number = seen.setdefault(id(tensor), len(seen))
    return number, type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def _value(value: object, seen: dict[int, int]) -> object:
    kind = type(value)
    if kind in _PLAIN or value is UNKNOWN:
        return kind, value
    if isinstance(value, _CODE):
        return "code", id(value)
    if isinstance(value, (tuple, list)):
        return kind, tuple([_value(item, seen) for item in value])
    if kind is dict and isinstance(value, dict):
        return kind, tuple([(_value(key, seen), _value(item, seen)) for key, item in value.items()])
    if kind in (set, frozenset) and isinstance(value, (set, frozenset)):
        return kind, frozenset([_value(item, seen) for item in value])
    if kind is functools.partial and isinstance(value, functools.partial):
        return kind, _value(value.func, seen), _value(value.args, seen), _value(value.keywords, seen)
    if isinstance(value, nn.Module) and id(value) in seen:
        return "module", seen[id(value)]
    raise _Unlike

"""Shadows: throwaway twins of modules whose calls, reads and writes are watched.

A forward is followed on a shadow and never on the model: what it writes on itself is lost
with the shadow, and no class is patched, so other threads notice nothing.
Children become shadows when they are reached, not before.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import nn

from torchgraft.graph.clone import pointed_at, pointer
from torchgraft.graph.hooking import HOOKS, Family, NoHooks, holds_unseen
from torchgraft.graph.proxy import UnfollowableError
from torchgraft.graph.settings import Reads, parts_of
from torchgraft.graph.watched import (
    STORES,
    empty_shadow,
    held_by,
    ids,
    is_shadow,
    take_back_writes,
    watch_object,
)
from torchgraft.graph.watched import mark as mark


class Watcher(Protocol):
    """What happens when a shadow is called, read or written to."""

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Answer a call of the shadow."""

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Answer a read of a parameter, a buffer or a plain tensor."""

    def training(self, shadow: nn.Module) -> bool:
        """Answer a read of the mode."""

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn a tensor inside a container into what the shadow holds."""

    def assign(self, shadow: nn.Module, name: str, value: object) -> None:
        """Take note of a write to an attribute."""


Stage = Callable[..., object]
"""A module, a method of one, or another callable."""


class Chain:
    """Apply callables one after another."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Give the arguments to the first, and what it returns to the next."""
        first, *others = self.stages
        return functools.reduce(lambda value, stage: stage(value), others, first(*args, **kwargs))


class Shadows:
    """Make the shadows of one model, one for each module.

    Args:
        watcher: what answers calls, reads and writes of all of them.
        reads: takes note of reads of plain attributes, where somebody wants to know.
    """

    def __init__(self, watcher: Watcher, reads: Reads | None = None) -> None:
        self.watcher = watcher
        self.reads = reads
        self.firing = False
        self._wide = False
        self._made: dict[int, nn.Module] = {}
        self._root: nn.Module | None = None

    def of(self, source: nn.Module, path: str = "") -> nn.Module:
        """Return the shadow of a module that stands at a path.

        Args:
            source: the module; it is only read.
            path: where it was reached first; a shared module keeps that path.

        Returns:
            An instance of a watched subclass of the module's class.
        """
        known = self._made.get(id(source))
        if known is not None:
            return known
        self._root = self._root or source
        shadow = empty_shadow(self, path, source)
        held, me = held_by(shadow), mark(shadow)
        self._made[id(source)] = shadow
        for name, value in source.__dict__.items():
            if name in STORES:
                continue  # made when they are asked for
            if type(value) in _ATOMS:  # most attributes, so asked first
                held[name] = value
            elif name in HOOKS:
                held[name] = self._hooks(name, value)
            elif isinstance(value, torch.Tensor):
                me.plain[name] = value
                if self.reads is None and hasattr(type(source), name):  # Python would find that one
                    held[name] = self.watcher.tensor(shadow, name, value)
            else:
                held[name] = made = self._value(value)
                if self.reads is not None and made is value:
                    held[name] = watch_object(value, functools.partial(self._read_below, path, name))
        return shadow

    def stage(self, stage: Stage) -> Stage:
        """Return a twin of what can be called, which leaves no trace on the models that it holds.

        Modules that are held and not registered have shadows too, as pipelines hold theirs.
        """
        if isinstance(stage, nn.Module):
            return self.of(stage)
        self._wide = True
        if isinstance(stage, Chain):
            return Chain(list(map(self.stage, stage.stages)))
        if isinstance(stage, types.MethodType):
            return types.MethodType(stage.__func__, self.stage(cast("Stage", stage.__self__)))
        if isinstance(stage, types.FunctionType) or not hasattr(stage, "__dict__"):
            return stage
        twin = copy.copy(stage)
        vars(twin).update({name: self._value(value) for name, value in vars(stage).items()})
        return twin

    def _read_below(self, path: str, owner: str, name: str, value: object) -> None:
        if self.reads is not None:
            self.reads.read(path, f"{owner}.{name}", value)

    def check_unwritten(self) -> None:
        """Refuse a run that wrote into a container that a module holds.

        Raises:
            UnfollowableError: it did.
        """
        for shadow in list(self._made.values()):
            me = mark(shadow)
            if written := take_back_writes(shadow):
                raise UnfollowableError(f"it writes {min(written)!r} on the class {type(shadow).__name__}")
            for store, made in me.tensors.items():
                if ids(made) != me.given[store]:
                    raise UnfollowableError(f"it writes into {store} of the module")
            for name, value in me.source.__dict__.items():
                if isinstance(value, _CONTAINERS) and name not in STORES and name not in HOOKS:
                    copied = held_by(shadow).get(name)
                    if not _same(value, copied) and not holds_unseen(copied):
                        where = f"{me.path}.{name}".lstrip(".")
                        raise UnfollowableError(f"it writes into {where} of the module")

    def _value(self, value: object) -> object:
        # Containers are copied: some models keep caches in them.
        if isinstance(value, torch.Tensor):
            return self.watcher.convert(value)
        if (module := pointed_at(value)) is not None:
            path = self._registered(module)
            if path is None and self._wide and module is value:
                path = f"<{type(value).__name__}>"
            return value if path is None else pointer(value, self.of(module, path))
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            return type(value)((key, self._value(item)) for key, item in value.items())
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)([self._value(item) for item in value])
        if isinstance(value, _CONTAINERS):
            return copy.copy(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._value(value.__self__))
        if type(value) is functools.partial:
            named = {key: self._value(item) for key, item in value.keywords.items()}
            function = cast("Callable[..., object]", self._value(value.func))
            return functools.partial(function, *map(self._value, value.args), **named)
        return _Draws() if type(value).__name__ in _GENERATORS else value

    @functools.cached_property
    def family(self) -> Family:
        """The model that all shadows are of."""
        return Family(cast("nn.Module", self._root))

    def _registered(self, module: nn.Module) -> str | None:
        return None if self._root is None else self.family.paths.get(id(module))

    def _hooks(self, name: str, hooks: dict[int, object]) -> OrderedDict[int, object]:
        """Return the hooks of a shadow: in a run those that are part of the model."""
        if self.reads is not None:
            return NoHooks()
        if not hooks or "forward" not in name:
            return OrderedDict()
        own = [(number, hook) for number, hook in hooks.items() if hook is True or self.family.owns(hook)]
        return OrderedDict((number, self._value(hook)) for number, hook in own)

    def fire(self, source: nn.Module) -> None:
        """Run the hooks of what a forward calls, on values that it must not use."""
        self.firing = True
        for part, hook, given in self.family.hooks_below(source):
            cast("Callable[..., object]", self._value(hook))(self._value(part), *given)
        self.firing = False


class _Draws:
    """Stand for a generator of random numbers, whose draws a graph would fix for ever."""

    def __getattr__(self, name: str) -> object:
        raise UnfollowableError(f"it calls {name} of a generator of random numbers")


_GENERATORS = ("Random", "RandomState")


_ATOMS = frozenset((bool, int, float, str, type(None)))
_CONTAINERS: tuple[type, ...] = (dict, OrderedDict, list, set, deque, bytearray)


def _same(one: object, other: object) -> bool:
    module, shadow = pointed_at(one), pointed_at(other)
    if module is not None and shadow is not None and is_shadow(shadow):
        return mark(shadow).source is module
    if type(one) is type(other) and isinstance(one, (functools.partial, types.MethodType, slice)):
        return _same(tuple(parts_of(one) or ()), tuple(parts_of(other) or ()))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is not type(other) or not isinstance(one, _CONTAINERS):
        return one is other or (isinstance(one, (int, float, str)) and one == other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, deque)) and isinstance(other, (list, deque)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other

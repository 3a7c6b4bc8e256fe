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
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from torchgraft.graph.proxy import UnfollowableError

_MARK = "_torchgraft_shadow"


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


class Shadows:
    """Make the shadows of one model, one for each module.

    Args:
        watcher: what answers calls, reads and writes of all of them.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self._made: dict[int, nn.Module] = {}
        self._paths: dict[int, str] = {}
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
        shadow: nn.Module = object.__new__(_watched(type(source)))
        held, me = shadow.__dict__, Mark(self, path, source)
        for name, value in source.__dict__.items():
            if type(value) in _ATOMS or name in _STORES:  # most attributes, so asked first
                held[name] = value
            elif name.startswith("_") and "hooks" in name:
                held[name] = OrderedDict()  # hooks are for the model that runs
            elif isinstance(value, torch.Tensor):
                me.plain[name] = value
            elif type(value) is types.MethodType and value.__self__ is source:
                held[name] = types.MethodType(value.__func__, shadow)
            elif type(value) is functools.partial and any(item is source for item in value.args):
                args = [shadow if item is source else item for item in value.args]
                held[name] = functools.partial(value.func, *args, **value.keywords)
            else:
                held[name] = self._value(value)
        held[_MARK] = me
        self._made[id(source)] = shadow
        return shadow

    def check_unwritten(self) -> None:
        """Refuse a run that wrote into a container that a module holds.

        Raises:
            UnfollowableError: it did.
        """
        for shadow in list(self._made.values()):
            me = mark(shadow)
            for store, made in me.tensors.items():
                if _ids(made) != me.given[store]:
                    raise UnfollowableError(f"it writes into {store} of the module")
            for name, value in me.source.__dict__.items():
                if isinstance(value, _CONTAINERS) and name not in _STORES and "hooks" not in name:
                    copied = shadow.__dict__.get(name)
                    if not _same(value, copied):
                        where = f"{me.path}.{name}".lstrip(".")
                        raise UnfollowableError(f"it writes into {where} of the module")

    def _value(self, value: object) -> object:
        # Containers are copied: some models keep caches in them.
        if isinstance(value, torch.Tensor):
            return self.watcher.convert(value)
        if isinstance(value, nn.Module):
            path = self._registered(value)
            return value if path is None else self.of(value, path)
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            return type(value)((key, self._value(item)) for key, item in value.items())
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)([self._value(item) for item in value])
        if isinstance(value, _CONTAINERS):
            return copy.copy(value)
        return _Draws() if type(value).__name__ in _GENERATORS else value

    def _registered(self, module: nn.Module) -> str | None:
        if not self._paths and self._root is not None:
            self._paths = {id(m): path for path, m in self._root.named_modules()}
        return self._paths.get(id(module))


class _Draws:
    """Stand for a generator of random numbers, whose draws a graph would fix for ever."""

    def __getattr__(self, name: str) -> object:
        raise UnfollowableError(f"it calls {name} of a generator of random numbers")


_GENERATORS = ("Random", "RandomState")


_ATOMS = frozenset((bool, int, float, str, type(None)))
_STORES = ("_parameters", "_buffers", "_modules")
_CONTAINERS: tuple[type, ...] = (dict, OrderedDict, list, set, deque, bytearray)


def _same(one: object, other: object) -> bool:
    if isinstance(one, nn.Module) and isinstance(other, nn.Module) and _MARK in other.__dict__:
        return mark(other).source is one
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is not type(other) or not isinstance(one, _CONTAINERS):
        return one is other or (isinstance(one, (int, float, str)) and one == other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, deque)) and isinstance(other, (list, deque)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


class Mark:
    """What a shadow knows of itself: its family, its path and what it stands for."""

    __slots__ = ("children", "family", "given", "path", "plain", "source", "tensors")

    def __init__(self, family: Shadows, path: str, source: nn.Module) -> None:
        self.family = family
        self.path = path
        self.source = source
        self.plain: dict[str, torch.Tensor] = {}
        self.children: dict[str, nn.Module | None] | None = None
        self.tensors: dict[str, dict[str, object]] = {}
        self.given: dict[str, dict[str, int]] = {}


def mark(shadow: nn.Module) -> Mark:
    """Return what a shadow knows of itself."""
    return shadow.__dict__[_MARK]  # type: ignore[no-any-return]  # put there when it was made


_CLASSES: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def _watched(cls: type[nn.Module]) -> type[nn.Module]:
    known = _CLASSES.get(cls)
    if known is None:
        body = {**_BODY, "__module__": cls.__module__}
        # Past the metaclass and __init_subclass__: a shadow's class is nobody's business.
        known = _CLASSES[cls] = type.__new__(type(cls), cls.__name__, (cls,), body)
    return known


def _call(self: nn.Module, *args: object, **kwargs: object) -> object:
    return mark(self).family.watcher.call(self, args, kwargs)


def _getattr(self: nn.Module, name: str) -> object:
    me = mark(self)
    for store in ("_parameters", "_buffers"):
        if name in self.__dict__[store]:
            return _tensors(self, store)[name]
    children = _children(self)
    if name in children:
        return children[name]
    if name in me.plain:
        return me.family.watcher.tensor(self, name, me.plain[name])
    return super(type(self), self).__getattr__(name)  # type: ignore[misc]  # nn.Module has one


def _setattr(self: nn.Module, name: str, value: object) -> None:
    mark(self).family.watcher.assign(self, name, value)
    self.__dict__[name] = value


def _tensors(self: nn.Module, store: str) -> dict[str, object]:
    me = mark(self)
    if store not in me.tensors:
        watcher = me.family.watcher
        me.tensors[store] = {
            name: value if value is None else watcher.tensor(self, name, value)
            for name, value in self.__dict__[store].items()
        }
        me.given[store] = _ids(me.tensors[store])
    return me.tensors[store]


def _ids(held: dict[str, object]) -> dict[str, int]:
    return {name: id(value) for name, value in held.items()}


def _children(self: nn.Module) -> dict[str, nn.Module | None]:
    me = mark(self)
    if me.children is None:
        prefix = f"{me.path}." if me.path else ""
        me.children = {
            name: child if child is None else me.family.of(child, prefix + name)
            for name, child in self.__dict__["_modules"].items()
        }
    return me.children


def _training(self: nn.Module) -> bool:
    return mark(self).family.watcher.training(self)


_BODY: dict[str, object] = {
    "__call__": _call,
    "__getattr__": _getattr,
    "__setattr__": _setattr,
    "_parameters": property(lambda self: _tensors(self, "_parameters")),
    "_buffers": property(lambda self: _tensors(self, "_buffers")),
    "_modules": property(_children),
    "training": property(_training, lambda self, mode: _setattr(self, "training", mode)),
}

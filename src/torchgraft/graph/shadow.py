"""Shadows: throwaway twins of modules whose calls, reads and writes are watched.

A forward is followed on a shadow and never on the model: what it writes on itself is lost
with the shadow, and no class is patched, so other threads notice nothing.
Children become shadows when they are reached, not before.
"""

from __future__ import annotations

import types
from collections import OrderedDict
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
        shadow: nn.Module = object.__new__(_watched(type(source)))
        held, me = shadow.__dict__, Mark(self, path, source)
        for name, value in source.__dict__.items():
            if name in _STORES:
                held[name] = value
            elif name.startswith("_") and "hooks" in name:
                held[name] = OrderedDict()  # hooks are for the model that runs
            elif isinstance(value, torch.Tensor):
                me.plain[name] = value
            elif type(value) is types.MethodType and value.__self__ is source:
                held[name] = types.MethodType(value.__func__, shadow)
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
        for shadow in self._made.values():
            me = mark(shadow)
            for name, value in me.source.__dict__.items():
                if type(value) in _CONTAINERS and name not in _STORES and "hooks" not in name:
                    copied = shadow.__dict__.get(name)
                    if not _same(value, copied):
                        where = f"{me.path}.{name}".lstrip(".")
                        raise UnfollowableError(f"it writes into {where} of the module")

    def _value(self, value: object) -> object:
        # Containers are copied: some models keep caches in them.
        if isinstance(value, torch.Tensor):
            return self.watcher.convert(value)
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            return type(value)((key, self._value(item)) for key, item in value.items())
        if type(value) is list:
            return [self._value(item) for item in value]
        return set(value) if isinstance(value, set) and type(value) is set else value


_STORES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (dict, OrderedDict, list, set)


def _same(one: object, other: object) -> bool:
    if type(one) is not type(other) or not isinstance(one, _CONTAINERS):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


class Mark:
    """What a shadow knows of itself: its family, its path and what it stands for."""

    __slots__ = ("children", "family", "path", "plain", "source", "tensors")

    def __init__(self, family: Shadows, path: str, source: nn.Module) -> None:
        self.family = family
        self.path = path
        self.source = source
        self.plain: dict[str, torch.Tensor] = {}
        self.children: dict[str, nn.Module | None] | None = None
        self.tensors: dict[str, dict[str, object]] = {}


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
    if name != "training":
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
    return me.tensors[store]


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
    "training": property(_training, lambda self, mode: self.__dict__.__setitem__("training", mode)),
}

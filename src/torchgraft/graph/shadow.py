"""Shadows: throwaway twins of modules whose calls and reads are watched.

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

_MARK = "_torchgraft_shadow"


class Watcher(Protocol):
    """What happens when a shadow is called or read."""

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Answer a call of the shadow."""

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Answer a read of a parameter or buffer."""

    def training(self, shadow: nn.Module) -> bool:
        """Answer a read of the mode."""

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn a tensor of the model into what the shadow holds."""


class Shadows:
    """Make the shadows of one model, one for each module.

    Args:
        watcher: what answers calls and reads of all of them.
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
        held = shadow.__dict__
        for name, value in source.__dict__.items():
            kind = type(value)
            if kind is OrderedDict:
                held[name] = OrderedDict()  # hooks are for the model that runs
            elif kind is types.MethodType and value.__self__ is source:
                held[name] = types.MethodType(value.__func__, shadow)
            elif name == "_modules":
                held[name] = value
            else:
                held[name] = self._value(value)
        held[_MARK] = Mark(self, path, source)
        self._made[id(source)] = shadow
        return shadow

    def _value(self, value: object) -> object:
        # Containers are copied: some models keep caches in them.
        if isinstance(value, torch.Tensor):
            return self.watcher.convert(value)
        if type(value) is dict:
            return {key: self._value(item) for key, item in value.items()}
        if type(value) is list:
            return [self._value(item) for item in value]
        return value.copy() if type(value) is set else value


class Mark:
    """What a shadow knows of itself: its family, its path and what it stands for."""

    __slots__ = ("children", "family", "path", "source")

    def __init__(self, family: Shadows, path: str, source: nn.Module) -> None:
        self.family = family
        self.path = path
        self.source = source
        self.children: dict[str, nn.Module | None] | None = None


def mark(shadow: nn.Module) -> Mark:
    """Return what a shadow knows of itself."""
    return shadow.__dict__[_MARK]  # type: ignore[no-any-return]  # put there when it was made


_CLASSES: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def _watched(cls: type[nn.Module]) -> type[nn.Module]:
    known = _CLASSES.get(cls)
    if known is None:
        known = _CLASSES[cls] = type(cls.__name__, (cls,), {**_BODY, "__module__": cls.__module__})
    return known


def _call(self: nn.Module, *args: object, **kwargs: object) -> object:
    return mark(self).family.watcher.call(self, args, kwargs)


def _getattr(self: nn.Module, name: str) -> object:
    held = self.__dict__
    for store in ("_parameters", "_buffers"):
        value = held[store].get(name)
        if value is not None:
            return mark(self).family.watcher.tensor(self, name, value)
    children = _children(self)
    if name in children:
        return children[name]
    return super(type(self), self).__getattr__(name)  # type: ignore[misc]  # nn.Module has one


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


def _set_training(self: nn.Module, mode: bool) -> None:
    self.__dict__["training"] = mode


_BODY: dict[str, object] = {
    "__call__": _call,
    "__getattr__": _getattr,
    "_modules": property(_children),
    "training": property(_training, _set_training),
}

"""The classes of shadows: calls, reads and writes of a module go to whoever watches it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from torchgraft.graph.caches import CACHED
from torchgraft.graph.proxy import UnfollowableError
from torchgraft.graph.settings import MISSING, Reads, held_by_object

if TYPE_CHECKING:
    from torchgraft.graph.shadow import Shadows

STORES = ("_parameters", "_buffers", "_modules")
_MARK = "_torchgraft_shadow"


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


def empty_shadow(family: Shadows, path: str, source: nn.Module) -> nn.Module:
    """Make a shadow that holds nothing but what it knows of itself."""
    # A level that is followed again runs the forward that its class had.
    cls = type(source) if family.reads is None else getattr(type(source), "_origin", type(source))
    shadow: nn.Module = object.__new__(watched(cls, noted=family.reads is not None))
    held_by(shadow)[_MARK] = Mark(family, path, source)
    return shadow


def is_shadow(module: nn.Module) -> bool:
    """Tell whether a module is a shadow."""
    return _MARK in held_by(module)


def mark(shadow: nn.Module) -> Mark:
    """Return what a shadow knows of itself."""
    return held_by(shadow)[_MARK]  # type: ignore[return-value]  # put there when it was made


held_by: Callable[[nn.Module], dict[str, object]] = vars(nn.Module)["__dict__"].__get__
"""Returns the dictionary of a shadow, past what its class says of it."""

_CLASSES: tuple[WeakKeyDictionary[type, type], ...]
_CLASSES = WeakKeyDictionary(), WeakKeyDictionary()
_NAMES: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def watched(cls: type[nn.Module], *, noted: bool) -> type[nn.Module]:
    """Make the class of shadows of a class; those that are followed take note of what is read."""
    known = _CLASSES[noted].get(cls)
    if known is None:
        cached = {n: f for base in reversed(cls.__mro__) for n, f in vars(base).items() if type(f) is CACHED}
        own = {name: function.__wrapped__ for name, function in cached.items()}
        body = {
            # Slices and copies that a forward makes of a container are plain ones, of shadows.
            "__new__": lambda _, *args, **kwargs: cls(*args, **kwargs),
            **(own if noted else {}),
            **_BODY,
            **(_NOTED if noted else {}),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
        }
        # Past the metaclass and __init_subclass__: a shadow's class is nobody's business.
        known = _CLASSES[noted][cls] = type.__new__(type(cls), cls.__name__, (cls,), body)
        _NAMES[known] = frozenset(vars(known))
    return known


def take_back_writes(shadow: nn.Module) -> set[str]:
    """Remove what a forward wrote on the class of a shadow, and return the names."""
    found = vars(type(shadow)).keys() - _NAMES[type(shadow)]
    written = {name for name in found if not name.startswith("__")}  # Python fills in some of those
    for name in written:
        delattr(type(shadow), name)
    return written


def _call(self: nn.Module, *args: object, **kwargs: object) -> object:
    return mark(self).family.watcher.call(self, args, kwargs)


def _getattr(self: nn.Module, name: str) -> object:
    me = mark(self)
    for store in ("_parameters", "_buffers"):
        if name in me.source.__dict__[store]:
            _note(me, name, me.source.__dict__[store][name])
            return _tensors(self, store)[name]
    children = _children(self)
    if name in children:
        _note(me, name, me.source.__dict__["_modules"][name])
        return children[name]
    if name in me.plain:
        return me.family.watcher.tensor(self, name, me.plain[name])
    try:
        return super(type(self), self).__getattr__(name)  # type: ignore[misc]  # nn.Module has one
    except AttributeError:
        _note(me, name, MISSING)
        raise


def _note(me: Mark, name: str, value: object) -> None:
    if me.family.reads is not None and name != _MARK:  # of what the source has: shadows hold copies
        me.family.reads.read(me.path, name, me.source.__dict__.get(name, value))


def _getattribute(self: nn.Module, name: str) -> object:
    """Read an attribute of a followed module, and take note of it."""
    me, held = mark(self), held_by(self)
    if name in me.plain:  # a class may have an attribute of that name
        return me.family.watcher.tensor(self, name, me.plain[name])
    known = inspect.getattr_static(type(self), name, None)
    if isinstance(known, functools.cached_property) and name not in held:
        held[name] = known.func(self)
        return held[name]
    value: object = super(type(self), self).__getattribute__(name)
    if name in held or not hasattr(known, "__get__"):
        _note(me, name, value)
    return value


def watch_object(value: object, note: Callable[[str, object], None]) -> object:
    """Return a twin of a plain object, as a configuration is one, that tells what is read off it.

    Args:
        value: anything; what has no attributes of its own is given back as it is.
        note: takes the name of an attribute and what it is; ``MISSING`` where it is not there.
    """
    cls, held = type(value), held_by_object(value)
    if held is None:
        return value

    inner: dict[str, object] = {}

    def read(self: object, name: str) -> object:
        try:
            found = cls.__getattribute__(self, name)
        except AttributeError:
            if not hasattr(cls, "__getattr__"):
                note(name, MISSING)
            raise
        if not name.startswith("__") and (
            name in held or not hasattr(inspect.getattr_static(cls, name, None), "__get__")
        ):
            note(name, found)
        if name in held and name not in inner:
            inner[name] = watch_object(found, lambda below, value: note(f"{name}.{below}", value))
        return inner.get(name, found)

    def write(self: object, name: str, new: object) -> None:  # noqa: ARG001 - the signature is given
        if held.get(name, MISSING) is None and isinstance(new, (str, int, float)):
            note(name, None)  # a default that is filled in as it is asked for: each time anew
            inner[name] = new
        elif held.get(name, MISSING) is not new:
            raise UnfollowableError(f"it writes {name!r} on a {cls.__name__}, which a graph would lose")

    body = {"__getattribute__": read, "__setattr__": write, "__module__": cls.__module__}
    try:
        kind = type.__new__(type(cls), cls.__name__, (cls,), body)
        in_python = isinstance(cls.__new__, types.FunctionType) or cls.__new__ is object.__new__
        twin = object.__new__(kind) if in_python else cls.__new__(kind)
    except TypeError:  # it has no subclasses, or cannot be made without arguments
        return value
    for name, item in held.items():
        object.__setattr__(twin, name, item)
    return twin


def _setattr(self: nn.Module, name: str, value: object) -> None:
    mark(self).family.watcher.assign(self, name, value)
    held_by(self)[name] = value


def _dict(self: nn.Module) -> Mapping[str, object]:
    """Return what a shadow shows as its own dictionary: what the attributes give."""
    me, held = mark(self), held_by(self)
    held.update({name: getattr(self, name) for name in (*STORES, *me.plain)})
    if me.family.reads is None:
        return held
    for name, value in held.items():
        _note(me, name, value)
    return types.MappingProxyType(held)


def _tensors(self: nn.Module, store: str) -> dict[str, object]:
    me = mark(self)
    if store not in me.tensors:
        watcher = me.family.watcher
        me.tensors[store] = {
            name: value if value is None else watcher.tensor(self, name, value)
            for name, value in me.source.__dict__[store].items()
        }
        me.given[store] = ids(me.tensors[store])
    return me.tensors[store]


def ids(held: dict[str, object]) -> dict[str, int]:
    """Tell what a dictionary of tensors holds, to find out whether it was written into."""
    return {name: id(value) for name, value in held.items()}


class _Children(dict[str, nn.Module | None]):
    """The children of a followed module; it is told who goes through them all."""

    def __init__(self, me: Mark, reads: Reads) -> None:
        hidden = reads.hidden(me.source)
        shown = {name: child for name, child in (me.children or {}).items() if name not in hidden}
        super().__init__(shown)
        self.told = functools.partial(reads.went_through, me.path, tuple(shown))


def _telling(name: str) -> Callable[..., object]:
    def method(self: _Children, *args: object) -> object:
        self.told()
        return getattr(dict, name)(self, *args)

    return method


for _name in ("__iter__", "__len__", "__reversed__", "keys", "values", "items", "copy", "__eq__", "__or__"):
    setattr(_Children, _name, _telling(_name))


def _children(self: nn.Module) -> dict[str, nn.Module | None]:
    me = mark(self)
    if me.children is None:
        prefix = f"{me.path}." if me.path else ""
        me.children = {
            name: child if child is None else me.family.of(child, prefix + name)
            for name, child in me.source.__dict__["_modules"].items()
        }
        if me.family.reads is not None:
            me.children = _Children(me, me.family.reads)
    return me.children


def _training(self: nn.Module) -> bool:
    return mark(self).family.watcher.training(self)


_BODY: dict[str, object] = {
    "__call__": _call,
    "__getattr__": _getattr,
    "__setattr__": _setattr,
    "__dict__": property(_dict),
    "_parameters": property(lambda self: _tensors(self, "_parameters")),
    "_buffers": property(lambda self: _tensors(self, "_buffers")),
    "_modules": property(_children),
    "training": property(_training, lambda self, mode: _setattr(self, "training", mode)),
}
_NOTED: dict[str, object] = {"__getattribute__": _getattribute}

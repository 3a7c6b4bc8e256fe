"""Settings: the plain values that a forward read off its modules while it was followed.

A graph holds what these values decided, so it is right for as long as they hold. They are
compared at every call of an edited level: what is here is fast, and plain Python.
"""

from __future__ import annotations

import enum
import functools
import inspect
import operator
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn

GLOBALS = "<globals>"
"""Begins the path of a value of a Python module; its name follows."""


ADDED = "_torchgraft_added"
"""Attribute of a module with the names of the children that edits added to it."""
CHILDREN = "<children>"
"""Stands for the names of the children that a forward went through, without those."""


class Missing(enum.Enum):
    """Stands for an attribute that is not there, which a forward may ask for too."""

    MISSING = "missing"


MISSING = Missing.MISSING


@attrs.frozen
class Setting:
    """A plain value that a forward read.

    Args:
        path: path of the module that has it, from the level; or a Python module, after ``<globals>``.
        name: name of the attribute or of the global; dotted for what stands on an object.
        value: what it was: a plain value, a container of such, a function or a class.
    """

    path: str
    name: str
    value: object


def settings_hold(level: nn.Module, settings: Sequence[Setting]) -> Setting | None:
    """Return the first setting that is another one now, or ``None``."""
    for setting in settings:
        if not _same(read_setting(level, setting), setting.value):
            return setting
    return None


def read_setting(level: nn.Module, setting: Setting) -> object:
    """Return what a setting is now; ``MISSING`` where it is not there any more."""
    owner: object = level
    if setting.path.startswith(GLOBALS):
        owner = sys.modules.get(setting.path[len(GLOBALS) :])
        if owner is None:
            return setting.value
    elif setting.path:
        for part in setting.path.split("."):
            owner = getattr(owner, part, MISSING)
    if setting.name == CHILDREN:
        return names_of_children(owner)
    try:
        return operator.attrgetter(setting.name)(owner)
    except AttributeError:
        return MISSING


def names_of_children(module: object) -> object:
    """Return the names of the children that a forward knows of."""
    added = getattr(module, ADDED, ())
    return tuple([name for name in getattr(module, "_modules", ()) if name not in added])


def _same(now: object, then: object) -> bool:
    if isinstance(then, (Kept, Parts)):
        return then.holds(now)
    kind = type(then)
    if type(now) is not kind:
        return False
    if kind is tuple or kind is list:
        return len(now) == len(then) and all(_same(a, b) for a, b in zip(now, then))  # type: ignore[arg-type, call-overload]  # of one kind
    if kind is dict or kind is OrderedDict:  # in their order, as a forward may go through them
        return _same(list(now.items()), list(then.items()))  # type: ignore[attr-defined]  # of one kind
    return now is then or now == then


@attrs.frozen(eq=False)
class Kept:
    """An object that is looked into no further: it is the same, or equal as its class has it."""

    value: object

    def holds(self, now: object) -> bool:
        """Return True if it is still what is there."""
        if now is self.value:
            return True
        if type(now) is not type(self.value) or isinstance(now, torch.Tensor):
            return False
        try:
            return bool(now == self.value)
        except Exception:  # noqa: BLE001 - what cannot be compared is another one
            return False


@attrs.frozen(eq=False)
class Parts:
    """A composed value by its parts, as ``parts_of`` gives them."""

    kind: type
    parts: object

    def holds(self, now: object) -> bool:
        """Return True if what is there has the same parts; compilers guard arrays by themselves."""
        if self.kind.__module__ == "numpy" and torch.compiler.is_compiling():
            return True
        return type(now) is self.kind and _same(parts_of(now), self.parts)


class Reads:
    """Take note of what forwards read off their modules, and which children they go through.

    Args:
        root: the module whose forward is followed.
        hidden: names of children that forwards do not see, by the path of their parent.
        gives_none: tells whether a child was seen to give ``None``.
        method: the method that is followed.
    """

    def __init__(
        self,
        root: nn.Module,
        hidden: Mapping[str, frozenset[str]] | None = None,
        gives_none: Callable[[nn.Module], bool] | None = None,
        method: str = "forward",
    ) -> None:
        self.method = method
        self.called = False
        """Whether a child was called."""
        self.gives_none = gives_none or (lambda module: False)
        self._hidden = {id(root.get_submodule(path)): names for path, names in (hidden or {}).items()}
        self._settings = {(s.path, s.name): s for s in _globals_of(root, method)}
        self._enumerated: set[str] = set()

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What was read, in order."""
        return tuple(self._settings.values())

    @property
    def enumerated(self) -> frozenset[str]:
        """Paths of the modules whose children were gone through."""
        return frozenset(self._enumerated)

    def hidden(self, module: nn.Module) -> frozenset[str]:
        """Name the children of a module that forwards do not see."""
        return self._hidden.get(id(module), frozenset())

    def went_through(self, path: str, names: tuple[str, ...]) -> None:
        """Take note that a forward goes through the children of a module."""
        self._enumerated.add(path)
        self._settings[path, CHILDREN] = Setting(path, CHILDREN, names)

    def read(self, path: str, name: str, value: object) -> None:
        """Take note that a forward reads an attribute of a module."""
        if name in _MODULE or name.startswith("__") or (path, name) in self._settings:
            return
        copied = snapshot(value)
        if copied is not UNPLAIN:
            self._settings[path, name] = Setting(path, name, copied)


_MODULE = frozenset(dir(nn.Module()))
UNPLAIN = object()
_ATOMS: tuple[type, ...] = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype)
_ATOMS += (torch.device, torch.memory_format, torch.layout, torch.Size, range)
_CODE: tuple[type, ...] = (type, types.FunctionType, types.BuiltinFunctionType, enum.Enum)


def snapshot(value: object) -> object:
    """Copy a value to compare it later; ``UNPLAIN`` where it need not be: a graph names it by its path."""
    if isinstance(value, (nn.Module, torch.Tensor)):
        return UNPLAIN
    return _copied(value, [_MOST])


_MOST = 256
"""How many items of a container are compared; of a longer one it is which one it is."""


def _copied(value: object, room: list[int]) -> object:
    kind = type(value)
    room[0] -= 1
    if kind in _ATOMS or isinstance(value, _CODE):
        return value
    if isinstance(value, (set, frozenset)) and all(type(item) in _ATOMS for item in value):
        return kind(value)  # type: ignore[call-arg]  # a set
    parts = parts_of(value)
    if parts is None or len(parts) > room[0]:
        return Kept(value)
    if kind is dict or kind is OrderedDict:
        pairs = {key: _copied(item, room) for key, item in value.items()}  # type: ignore[attr-defined]  # a dictionary
        return kind(pairs) if all(type(key) in _ATOMS for key in pairs) else Kept(value)
    items = [_copied(item, room) for item in parts]
    return kind(items) if kind in (tuple, list) else Parts(kind, items)


def parts_of(value: object) -> list[object] | None:
    """Return the parts of a composed value as a list, those of a dictionary in pairs; ``None`` of others."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (tuple, list, deque)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if type(value).__module__ == "numpy":  # arrays and numbers of it: by what they hold
        return [value.dtype.str, value.tolist()] if value.size < _MOST else None  # type: ignore[attr-defined]  # as both have it
    return None


def is_plain(copied: object) -> bool:
    """Return True if nothing in a copied value is an object that is looked into no further."""
    if isinstance(copied, dict):
        return all(map(is_plain, copied.values()))
    if isinstance(copied, Parts):
        return is_plain(copied.parts)
    return all(map(is_plain, copied)) if isinstance(copied, (tuple, list)) else not isinstance(copied, Kept)


def renew_children(level: nn.Module, settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Take over which children there are after an edit, which has changed the graph for them."""
    return tuple(attrs.evolve(s, value=read_setting(level, s)) if s.name == CHILDREN else s for s in settings)


def rebind_settings(level: nn.Module, settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Take over which objects a copied level holds: copies of those that were kept."""
    return tuple(
        s if is_plain(s.value) else attrs.evolve(s, value=snapshot(read_setting(level, s))) for s in settings
    )


def _globals_of(module: nn.Module, method: str) -> Iterator[Setting]:
    """Yield the plain globals that a forward names, as do the methods and functions that it names."""
    for space, names in spaces_of(module, method):
        homes = [sys.modules.get(str(space.get("__name__")))]
        homes += [value for name in names if isinstance(value := space.get(name), types.ModuleType)]
        for home in homes:
            if home is None or home.__name__.partition(".")[0] in _PLAIN_MODULES:
                continue
            for name in names:
                yield from _plain_in(home, name, names)


def _plain_in(home: types.ModuleType, name: str, names: list[str]) -> Iterator[Setting]:
    """Yield what is plain in a global, or in the attributes of it that a code names."""
    value = vars(home).get(name, MISSING)
    held = held_by_object(value)
    found = {name: value} if held is None else {f"{name}.{n}": held[n] for n in held.keys() & set(names)}
    for dotted, item in found.items():
        if item is not MISSING and _is_data(copied := snapshot(item)):
            yield Setting(GLOBALS + home.__name__, dotted, copied)


def _is_data(copied: object) -> bool:
    """Return True if there is no code in a plain value: a registry grows while programs run."""
    if isinstance(copied, dict):
        copied = list(copied.values())
    if isinstance(copied, Parts):
        copied = copied.parts
    if isinstance(copied, (tuple, list)):
        return all(map(_is_data, copied))
    return copied is not UNPLAIN and not isinstance(copied, (*_CODE, Kept))


def held_by_object(value: object) -> dict[str, object] | None:
    """Return the attributes of a plain object, as a configuration is one; of others ``None``."""
    if isinstance(value, _NO_OBJECTS) or type(value).__module__.partition(".")[0] in _PLAIN_MODULES:
        return None
    slots = [name for cls in type(value).__mro__ for name in _slots_of(cls)]
    held = getattr(value, "__dict__", None)
    if type(held) is not dict and not slots:
        return None
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | (held if type(held) is dict else {})


def _slots_of(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__")]


_NO_OBJECTS: tuple[type, ...] = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_NO_OBJECTS += (types.MethodType, functools.partial, enum.Enum, BaseException, nn.Module, torch.Tensor)
_NO_OBJECTS += (dict, list, tuple, set, frozenset, str, int, float)


def spaces_of(
    module: nn.Module | type[nn.Module], method: str = "forward"
) -> Iterator[tuple[dict[str, object], list[str]]]:
    """Yield the globals of a forward, its methods and its functions, and the names that each uses."""
    cls = module if isinstance(module, type) else getattr(type(module), "_origin", type(module))
    held = () if isinstance(module, type) else vars(module).values()
    waiting = [getattr(cls, method), *(f for f in held if isinstance(f, _FUNCTIONS))]
    seen: set[int] = set()
    while waiting:
        function = inspect.unwrap(waiting.pop())
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        names, space = list(_names_in(function.__code__)), function.__globals__
        yield space, names
        named = [getattr(cls, name, None) for name in names] + [space.get(name) for name in names]
        plain = [inspect.unwrap(f) for f in named if isinstance(f, _FUNCTIONS)]
        waiting += [f for f in plain if getattr(f, "__globals__", None) is space]


_FUNCTIONS = (types.FunctionType, types.MethodType, type(functools.lru_cache(lambda: None)))
_PLAIN_MODULES = ("torch", "math", "builtins", "typing")


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code and the codes in it use."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_in(inner)

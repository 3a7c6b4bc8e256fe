"""Function caches that a run on other tensors must not fill.

A forward may keep a table in ``functools.lru_cache``, by its size alone. Filled in a run on
meta tensors, it would be handed to every model of the process that asks for that size.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, cast
from weakref import WeakKeyDictionary

from torch import nn


class _Cached(Protocol):
    """What ``lru_cache`` makes."""

    def cache_info(self) -> functools._CacheInfo:
        """Tell how full it is."""

    def cache_clear(self) -> None:
        """Empty it."""


CACHED = type(functools.lru_cache(lambda: None))
_KNOWN: WeakKeyDictionary[type, tuple[tuple[_Cached, ...], tuple[_Cached, ...]]] = WeakKeyDictionary()


@contextmanager
def fresh_caches(model: nn.Module) -> Iterator[None]:
    """Empty the caches that the forwards of a model may use, before a run and after it.

    Args:
        model: the model that is run.

    Yields:
        Nothing; the run happens inside.
    """
    found = [_caches_of(cls) for cls in {type(module) for module in model.modules()}]
    near = {id(cached): cached for caches, _ in found for cached in caches}
    far = {id(cached): (cached, cached.cache_info().misses) for _, caches in found for cached in caches}
    _empty(near.values())
    try:
        yield
    finally:
        _empty(near.values())
        _empty(cached for cached, misses in far.values() if cached.cache_info().misses != misses)


def empty_filled(codes: Iterable[tuple[types.CodeType, dict[str, object]]]) -> None:
    """Empty the caches of functions that ran, where they are known by their own names."""
    for code, space in codes:
        value: object = None
        for i, name in enumerate(code.co_qualname.split(".")):
            value = getattr(value, name, None) if i else space.get(name)
        _empty(_inside(value))


def empty_holding(kind: type) -> None:
    """Empty the caches of the whole process that hold instances of a class, as keys or as values."""
    for cached in gc.get_objects():
        if type(cached) is CACHED and cached.cache_info().currsize:
            level: list[object] = [cached]
            for _ in range(5):
                level = [item for item in gc.get_referents(*level) if not isinstance(item, _LARGE)]
                if any(issubclass(type(item), kind) for item in level):
                    cached.cache_clear()
                    break


_LARGE = (type, types.FunctionType, types.ModuleType)


def _empty(caches: Iterable[_Cached]) -> None:
    for cached in caches:
        if cached.cache_info().currsize:
            cached.cache_clear()


def _caches_of(cls: type) -> tuple[tuple[_Cached, ...], tuple[_Cached, ...]]:
    """Find the caches of a class and of the files that it stands in, and those of what these import."""
    known = _KNOWN.get(cls)
    if known is None:
        bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in _PLAIN]
        homes = [vars(home) for base in bases if (home := sys.modules.get(base.__module__))]
        values = [value for space in (*map(vars, bases), *homes) for value in space.values()]
        others = {
            getattr(v, "__module__", None) for v in values if inspect.isroutine(v) or inspect.isclass(v)
        }
        others |= {value.__name__ for value in values if inspect.ismodule(value)}
        told = [
            sys.modules[name]
            for name in others
            if str(name).partition(".")[0] not in _PLAIN and name in sys.modules
        ]
        near = {id(cached): cached for value in values for cached in _inside(value)}
        far = {
            id(cached): cached for home in told for value in vars(home).values() for cached in _inside(value)
        }
        known = _KNOWN[cls] = tuple(near.values()), tuple(far.values())
    return known


_PLAIN = frozenset(("torch", "numpy", *sys.stdlib_module_names))


def _inside(value: object, depth: int = 2) -> Iterator[_Cached]:
    """Yield the cache that a function is, wraps or closes over."""
    # Asked for by class: an object that makes up its attributes would answer any question.
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    if isinstance(value, CACHED):
        yield cast("_Cached", value)
    elif depth == 2 and isinstance(value, type):
        for held in vars(value).values():
            yield from _inside(held, 0)
    elif depth and inspect.isfunction(value):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                yield from _inside(cell.cell_contents, depth - 1)

"""Function caches that a run on other tensors must not fill.

A forward may keep a table in ``functools.lru_cache``, by its size alone. Filled in a run on
meta tensors, it would be handed to every model of the process that asks for that size.
"""

from __future__ import annotations

import functools
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


_MADE = type(functools.lru_cache(lambda: None))
_KNOWN: WeakKeyDictionary[type, tuple[_Cached, ...]] = WeakKeyDictionary()


@contextmanager
def fresh_caches(model: nn.Module) -> Iterator[None]:
    """Empty the caches that the forwards of a model may use, before a run and after it.

    Args:
        model: the model that is run.

    Yields:
        Nothing; the run happens inside.
    """
    classes = {type(module) for module in model.modules()}
    caches = {id(cached): cached for cls in classes for cached in _caches_of(cls)}
    _empty(caches.values())
    try:
        yield
    finally:
        _empty(caches.values())


def _empty(caches: Iterable[_Cached]) -> None:
    for cached in caches:
        if cached.cache_info().currsize:
            cached.cache_clear()


def _caches_of(cls: type) -> tuple[_Cached, ...]:
    """Find the caches of a class, of those it is made from, and of the files they stand in."""
    known = _KNOWN.get(cls)
    if known is None:
        found: dict[int, _Cached] = {}
        for base in cls.__mro__:
            if base.__module__.partition(".")[0] in _PLAIN:
                continue
            home = sys.modules.get(base.__module__)
            for value in (*vars(base).values(), *(vars(home).values() if home else ())):
                found.update({id(cached): cached for cached in _inside(value)})
        known = _KNOWN[cls] = tuple(found.values())
    return known


_PLAIN = ("builtins", "torch", "typing", "abc")


def _inside(value: object, depth: int = 2) -> Iterator[_Cached]:
    """Yield the cache that a function is, wraps or closes over."""
    # Asked for by class: an object that makes up its attributes would answer any question.
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    if isinstance(value, _MADE):
        yield cast("_Cached", value)
    elif depth and inspect.isfunction(value):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                yield from _inside(cell.cell_contents, depth - 1)

"""Gradient and autocast blocks of a forward, as steps that a graph can hold."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

PATCHING = threading.RLock()
"""Held while a class of torch is patched."""

GIVEN = "_torchgraft_given"
"""Attribute of an autocast block with what it was made with: what it asked the caller for is left open."""

_CONTEXTS: dict[str, type[AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": torch.set_grad_enabled,
    "inference_mode": torch.inference_mode,
    "autocast": torch.autocast,
}


class Entered:
    """A block that was entered and has to be left.

    Args:
        context: the context manager.
    """

    def __init__(self, context: AbstractContextManager[object]) -> None:
        self._context: AbstractContextManager[object] | None = context
        context.__enter__()

    def leave(self) -> None:
        """Leave the block once."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)


@fx.wrap
def enter(name: str, *settings: object) -> Entered:
    """Enter a block by its name and settings."""
    return Entered(_CONTEXTS[name](*settings))


@fx.wrap
def leave(entered: Entered) -> None:
    """Leave a block."""
    entered.leave()


@contextlib.contextmanager
def no_autocast_on_meta() -> Iterator[None]:
    """Let autocast blocks for the meta device, which has none, do nothing in this thread."""
    thread = threading.get_ident()
    with PATCHING:
        begin = torch.autocast.__init__

        @functools.wraps(begin)
        def stand_in(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
            if device_type == "meta" and threading.get_ident() == thread:
                device_type, args, kwargs = "cpu", (), {"enabled": False}
            begin(self, device_type, *args, **kwargs)

        vars_of: Any = torch.autocast
        vars_of.__init__ = stand_in
        try:
            yield
        finally:
            vars_of.__init__ = begin


def settings_of(context: object) -> tuple[str, tuple[object, ...]] | None:
    """Return name and settings of a block that a graph can hold; ``None`` for one with its own ends."""
    for cls in type(context).__mro__:
        if cls.__module__.partition(".")[0] == "torch":
            break
        if {"__enter__", "__exit__", "__init__"} & set(vars(cls)):
            return None
    if isinstance(context, torch.autocast):
        made = context.device, context.fast_dtype, context._enabled, context._cache_enabled
        return "autocast", vars(context).get(GIVEN, made)
    for name in ("inference_mode", "set_grad_enabled"):
        if isinstance(context, _CONTEXTS[name]):
            return name, (context.mode,)  # type: ignore[attr-defined]  # both have it
    for name in ("no_grad", "enable_grad"):
        if isinstance(context, _CONTEXTS[name]):
            return name, ()
    return None


def unwinding(forward: Callable[..., object]) -> Callable[..., object]:
    """Make a generated forward leave the blocks it is in when something raises."""

    @functools.wraps(forward)
    def unwound(*args: object, **kwargs: object) -> object:
        try:
            return forward(*args, **kwargs)
        except BaseException as error:
            inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
            held = inner.tb_frame.f_locals.values() if inner is not None else ()
            for entered in reversed([value for value in held if isinstance(value, Entered)]):
                entered.leave()
            raise

    return unwound

"""Gradient and autocast blocks of a forward, as steps that a graph can hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import fx

_CONTEXTS: dict[str, type[AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
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


def settings_of(context: object) -> tuple[str, tuple[object, ...]] | None:
    """Return name and settings of a block that a graph can hold; ``None`` for one with its own ends."""
    for cls in type(context).__mro__:
        if cls.__module__.partition(".")[0] == "torch":
            break
        if {"__enter__", "__exit__", "__init__"} & set(vars(cls)):
            return None
    if isinstance(context, torch.autocast):
        return "autocast", (context.device, context.fast_dtype, context._enabled, context._cache_enabled)
    if isinstance(context, torch.inference_mode):
        return "inference_mode", (context.mode,)
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

"""Gradient and autocast blocks of a forward, as steps that a graph can hold."""

from __future__ import annotations

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
    """A block that was entered; it is left at the latest when nobody holds it any more.

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

    def __del__(self) -> None:
        self.leave()  # an exception in the block skips the step that leaves it


@fx.wrap
def enter(name: str, *settings: object) -> Entered:
    """Enter a block by its name and settings."""
    return Entered(_CONTEXTS[name](*settings))


@fx.wrap
def leave(entered: Entered) -> None:
    """Leave a block."""
    entered.leave()


def settings_of(context: object) -> tuple[str, tuple[object, ...]] | None:
    """Return name and settings of a block that a graph can hold."""
    if isinstance(context, torch.autocast):
        return "autocast", (context.device, context.fast_dtype, context._enabled, context._cache_enabled)
    if isinstance(context, torch.inference_mode):
        return "inference_mode", (context.mode,)
    name = type(context).__name__
    return (name, ()) if name in _CONTEXTS else None

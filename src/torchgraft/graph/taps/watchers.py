"""Hooks that see what a module gives."""

from __future__ import annotations

from torch import nn

_STORES = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def watchers(module: nn.Module) -> list[str]:
    """Name the hooks of a module that see its output, or change it."""
    hooks = [hook for store in _STORES for hook in vars(module).get(store, {}).values()]
    return [getattr(hook, "__name__", type(hook).__name__) for hook in hooks]

"""Hooks that are part of a model: its forwards may use what they collect or change.

Others watch, on behalf of somebody else, and do not fire while a model is only looked at.
"""

from __future__ import annotations

import contextvars
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from torchgraft.graph.proxy import UnfollowableError

_T = TypeVar("_T")

HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("hooks") or "_hooks_" in name)
"""Where a module keeps its hooks, and what it knows of them."""


_QUIET: contextvars.ContextVar[bool] = contextvars.ContextVar("no hook fires", default=False)


def run_quietly(function: Callable[..., _T], *args: object) -> _T:
    """Run a function where no hook of a model that it looks at fires.

    In the middle of a call, somebody may watch that call: by hooks, context variables, or modes of torch.
    """
    context = contextvars.Context()
    context.run(_QUIET.set, True)
    with _disable_current_modes():
        return context.run(function, *args)


class Family:
    """The modules of a model, to tell whose hooks are its own.

    Args:
        root: the model.
    """

    def __init__(self, root: nn.Module) -> None:
        self.paths = {id(module): path for path, module in root.named_modules()}
        homes = {type(module).__module__.partition(".")[0] for module in root.modules()}
        self._homes = homes - {"torch"}
        self.hooked = not _QUIET.get() and any(
            module._forward_hooks or module._forward_pre_hooks for module in root.modules()
        )

    def owns(self, hook: object) -> bool:
        """Tell whether a hook belongs to the model: a method of it, or a function of its package."""
        if not self.hooked:
            return False
        if isinstance(hook, functools.partial):
            return self.owns(hook.func)
        if isinstance(hook, types.MethodType):
            return id(hook.__self__) in self.paths
        if not isinstance(hook, types.FunctionType):
            return False
        # Of an installed library: in a project of their own, people also watch the model that they wrote.
        installed = "site-packages" in Path(hook.__code__.co_filename).parts
        return installed and hook.__module__.partition(".")[0] in self._homes

    def hooks_below(self, module: nn.Module) -> Iterator[tuple[nn.Module, object, list[object]]]:
        """Yield each own hook of a module and those in it, with the module and what it is called with."""
        for part in module.modules() if self.hooked else ():
            for store, output in (("_forward_pre_hooks", []), ("_forward_hooks", [UNSEEN])):
                for number, hook in vars(part)[store].items():
                    if self.owns(hook):
                        named: list[object] = [{}] if number in vars(part)[f"{store}_with_kwargs"] else []
                        yield part, hook, [(UNSEEN,), *named, *output]


class NoHooks(OrderedDict[int, object]):
    """The hooks of a module whose forward is followed: none fires, and none may come."""

    def __setitem__(self, key: int, value: object) -> None:
        raise UnfollowableError("it registers a hook")


class Unseen:
    """What a hook is given of a call inside a child: it may be kept, but not used."""

    def __getattr__(self, name: str) -> Unseen:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> Unseen:
        """Give as little as before."""
        return self

    def __getitem__(self, key: object) -> Unseen:
        return self

    def __bool__(self) -> bool:
        raise UnfollowableError("it uses what a hook of a child sees")

    __iter__ = __len__ = __format__ = __eq__ = __hash__ = __bool__  # type: ignore[assignment]  # all refuse


UNSEEN = Unseen()


def holds_unseen(container: object) -> bool:
    """Tell whether a hook put what it was given into a container."""
    items = container.values() if isinstance(container, dict) else container
    return any(item is UNSEEN for item in items)  # type: ignore[attr-defined]  # a container

"""Catch what a forward calls while it is followed, and what it must not call.

Proxies catch calls that take them. This catches the rest: torch functions on tensors that
are no proxies, functions that ``torch.fx.wrap`` names, draws of random numbers. Global
names are patched under a lock; calls from other threads, and calls without proxies, go
straight to the original.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from torchgraft.graph import proxy as px
from torchgraft.graph.modes import enter as enter_block
from torchgraft.graph.modes import leave as leave_block
from torchgraft.graph.modes import settings_of

_LOCK = threading.RLock()
_ACTIVE: list[tuple[int, Recording]] = []
"""The thread that traces and what it records; one at most."""


class Recording(TorchFunctionMode):
    """Record every torch function that takes or makes tensors."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer
        self._paused = False
        self._state = _state()
        self._blocks: list[tuple[object, fx.Proxy]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204 - signature of the base
        kwargs = kwargs or {}
        if self._paused or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        if not (px.holds_proxy(args) or px.holds_proxy(kwargs) or _is_kept(func)):
            with self.paused(), torch.device("meta"):
                result = func(*args, **kwargs)
            if not px.tensors_in(result):
                return result
        if is_tensor_method_or_property(func):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let everything through while a value is computed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def check_state(self) -> None:
        """Refuse an operation under another gradient or autocast mode than that of the caller."""
        if _state() != self._state:
            raise px.UnfollowableError("it runs a part under another gradient, inference or autocast mode")

    def enter(self, context: object, enter: Callable[[object], object]) -> object:
        """Record that a gradient or autocast block begins."""
        found = settings_of(context)
        with self.paused():
            entered = enter(context)
        self._state = _state()
        if found is None:
            raise px.UnfollowableError(f"it enters a block of the class {type(context).__name__}")
        name, settings = found
        token = self.tracer.create_proxy("call_function", enter_block, (name, *settings), {})
        self._blocks.append((context, token))
        return entered

    def leave(self, context: object, leave: Callable[..., object], *raised: object) -> object:
        """Record that a gradient or autocast block ends."""
        with self.paused():
            answer = leave(context, *raised)
        self._state = _state()
        if self._blocks and self._blocks[-1][0] is context:
            _, token = self._blocks.pop()
            if raised[0] is None:
                self.tracer.create_proxy("call_function", leave_block, (token,), {})
        return answer

    def refuses(self) -> bool:
        """Tell whether the calling thread is the one that is followed, and follows now."""
        return not self._paused and _ACTIVE[-1:] == [(threading.get_ident(), self)]


_is_grad_enabled = torch.is_grad_enabled
_is_inference_mode_enabled = torch.is_inference_mode_enabled
_is_autocast_enabled = torch.is_autocast_enabled


def _state() -> tuple[bool, ...]:
    return (
        _is_grad_enabled(),
        _is_inference_mode_enabled(),
        _is_autocast_enabled("cpu"),
        _is_autocast_enabled("cuda"),
    )


def _is_kept(function: Callable[..., object]) -> bool:
    """Tell whether a function is recorded without a try: it draws, makes or writes."""
    name = getattr(function, "__name__", "")
    return function in _FACTORIES or (name.endswith("_") and not name.endswith("__"))


_FACTORIES = frozenset(
    (
        torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace, torch.normal,
        torch.ones, torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor, torch.zeros,
        torch.as_tensor, torch.bernoulli, torch.multinomial,
    )
)  # fmt: skip


@contextlib.contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Patch global names for one trace: what is wrapped is recorded, what draws is refused."""
    with _LOCK:
        registered = getattr(fx._symbolic_trace, "_wrapped_fns_to_patch", {})
        places = [(names, name, False) for (_, name), names in registered.items() if name in names]
        places += _imported(recording.tracer.source)
        before = [(names, name, names[name], refused) for names, name, refused in (*places, *_always())]
        _ACTIVE.append((threading.get_ident(), recording))
        classes = [(cls, cls.__enter__, cls.__exit__) for cls in _BLOCKS]
        try:
            for cls, enter, leave in classes:
                cls.__enter__, cls.__exit__ = _block(enter, leave)
            for names, name, function, refused in before:
                names[name] = _stand_in(function, refused)
            torch.autograd.Function.apply = _apply
            yield
        finally:
            for names, name, function, _ in before:
                names[name] = function
            for cls, enter, leave in classes:
                cls.__enter__, cls.__exit__ = enter, leave
            torch.autograd.Function.apply = _APPLY
            _ACTIVE.pop()


_APPLY = vars(torch.autograd.Function)["apply"]


@classmethod  # type: ignore[misc]  # takes the place of one
def _apply(cls: Any, *args: object, **kwargs: object) -> object:
    if _recording_here() is not None:
        raise px.UnfollowableError(f"it applies the autograd function {cls.__name__}")
    return _APPLY.__get__(None, cls)(*args, **kwargs)


_BLOCKS: tuple[Any, ...] = (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.autocast)


@functools.lru_cache(maxsize=64)
def _block(enter: Callable[..., object], leave: Callable[..., object]) -> tuple[object, object]:
    """Make what stands in for the ends of a block while a forward is followed."""

    def stand_in_enter(self: object) -> object:
        recording = _recording_here()
        return enter(self) if recording is None else recording.enter(self, enter)

    def stand_in_leave(self: object, *raised: object) -> object:
        recording = _recording_here()
        return leave(self, *raised) if recording is None else recording.leave(self, leave, *raised)

    return stand_in_enter, stand_in_leave


def _recording_here() -> Recording | None:
    for _, recording in _ACTIVE[-1:]:  # a slice, as the thread that traces may be done by now
        if recording.refuses():
            return recording
    return None


def _always() -> Iterator[tuple[dict[str, object], str, bool]]:
    """Yield namespace, name and whether a call is refused for what is patched in every trace."""
    yield from _KNOWN
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        yield from ((vars(numpy), name, True) for name in _bound_to(numpy, "RandomState"))


@functools.cache
def _bound_to(module: types.ModuleType, kind: str) -> list[str]:
    return [n for n, value in vars(module).items() if type(getattr(value, "__self__", None)).__name__ == kind]


def _imported(source: nn.Module) -> Iterator[tuple[dict[str, object], str, bool]]:
    """Yield what a forward imported by name and must not call."""
    forward = inspect.unwrap(type(source).forward)
    names = getattr(forward, "__globals__", {})
    called = [name for name in getattr(getattr(forward, "__code__", None), "co_names", ()) if name in names]
    if called:
        refused = {id(space[name]) for space, name, is_refused in _always() if is_refused}
        yield from ((names, name, True) for name in called if id(names[name]) in refused)


_KNOWN: list[tuple[dict[str, object], str, bool]] = [
    *((vars(math), name, False) for name, value in vars(math).items() if callable(value)),
    *((vars(random), name, True) for name in _bound_to(random, "Random")),
    *((vars(torch.random), name, True) for name in ("manual_seed", "seed", "fork_rng", "set_rng_state")),
    *((vars(torch), name, True) for name in ("is_autocast_enabled", "is_inference_mode_enabled")),
    *((vars(torch), function.__name__, False) for function in _FACTORIES),
    *((vars(torch), name, True) for name in ("is_grad_enabled", "manual_seed")),
    (vars(torch), "is_tensor", False),
]


@functools.lru_cache(maxsize=4096)
def _stand_in(function: Callable[..., object], refused: bool) -> Callable[..., object]:
    """Make what stands in for a global function while a forward is followed."""

    @functools.wraps(function)
    def stand_in(*args: object, **kwargs: object) -> object:
        recording = _recording_here()
        if recording is None:
            return function(*args, **kwargs)
        if refused:
            name = getattr(function, "__name__", "a function")
            raise px.UnfollowableError(f"it calls {name}, whose answer would be fixed for ever")
        if px.holds_proxy(args) or px.holds_proxy(kwargs):
            if getattr(function, "__name__", "") == "is_tensor":
                return isinstance(args[0], torch.Tensor) or px.kind_of(args[0]) is torch.Tensor
            return recording.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return stand_in

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
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils._device import _device_constructors

from torchgraft.graph import proxy as px
from torchgraft.graph.caches import CACHED
from torchgraft.graph.modes import GIVEN, PATCHING, settings_of
from torchgraft.graph.modes import enter as enter_block
from torchgraft.graph.modes import leave as leave_block
from torchgraft.graph.settings import spaces_of

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
        self._begun: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204 - signature of the base
        kwargs = kwargs or {}
        if self._paused or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        self.tracer.asked_by_torch(sys._getframe(1))
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
        if _state() != self._state or self._begun:
            raise px.UnfollowableError("it runs a part under another gradient, inference or autocast mode")

    def begin(self, context: Any, begin: Callable[..., None], given: dict[str, Any]) -> None:
        """Make a block that asks for the modes of the caller, or sets one, as it is made."""
        if isinstance(context, torch.set_grad_enabled):  # it is set where the block is entered
            context.mode, context.prev = bool(given["mode"]), _is_grad_enabled()
            self._begun.append(context)
            return
        device = given.pop("device_type")
        given["enabled"] = bool(given.get("enabled", True))
        with self.paused():
            begin(context, "cpu" if px.is_proxy(device) else device, **given)
        vars(context)[GIVEN] = device, given.get("dtype"), given["enabled"], given.get("cache_enabled")

    def enter(self, context: Any, enter: Callable[[object], object]) -> object:
        """Record that a gradient or autocast block begins."""
        found = settings_of(context)
        with self.paused():
            entered = enter(context)
            if context in self._begun:
                self._begun.remove(context)
                torch._C._set_grad_enabled(context.mode)
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
        *map(_is_autocast_enabled, _DEVICES),
    )


_DEVICES = ("cpu", "cuda")


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
    with PATCHING:
        registered = getattr(fx._symbolic_trace, "_wrapped_fns_to_patch", {})
        places = [(names, name, "step") for (_, name), names in registered.items() if name in names]
        places += _imported(recording.tracer.source, recording.tracer.reads.method)
        before = [(names, name, names[name], way) for names, name, way in (*places, *_always())]
        _ACTIVE.append((threading.get_ident(), recording))
        classes = [(cls, cls.__enter__, cls.__exit__) for cls in _BLOCKS]
        makers: list[tuple[Any, Any]] = [
            (cls, cls.__init__) for cls in (torch.autocast, torch.set_grad_enabled)
        ]
        gradient, *autocast = _is_grad_enabled(), *map(_is_autocast_enabled, _DEVICES)
        try:
            for cls, enter, leave in classes:
                cls.__enter__, cls.__exit__ = _block(enter, leave)
            for cls, begin in makers:
                cls.__init__ = _begin(begin)
            for names, name, function, way in before:
                names[name] = _stand_in(function, way)
            torch.autograd.Function.apply = _apply
            yield
        finally:
            for names, name, function, _ in before:
                names[name] = function
            torch._C._set_grad_enabled(gradient)  # a trace that fails leaves no mode behind
            for device, enabled in zip(_DEVICES, autocast, strict=True):
                torch.set_autocast_enabled(device, enabled)
            for cls, enter, leave in classes:
                cls.__enter__, cls.__exit__ = enter, leave
            for cls, begin in makers:
                cls.__init__ = begin
            torch.autograd.Function.apply = _APPLY
            _ACTIVE.pop()


_APPLY = vars(torch.autograd.Function)["apply"]


@classmethod  # type: ignore[misc]  # takes the place of one
def _apply(cls: Any, *args: object, **kwargs: object) -> object:
    if _recording_here() is not None:
        raise px.UnfollowableError(f"it applies the autograd function {cls.__name__}")
    return _APPLY.__get__(None, cls)(*args, **kwargs)


_BLOCKS: tuple[Any, ...] = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled)
_BLOCKS += (torch.inference_mode, torch.autocast)


@functools.lru_cache(maxsize=8)
def _begin(begin: Callable[..., None]) -> Callable[..., None]:
    """Make what stands in for the making of a block while a forward is followed."""

    @functools.wraps(begin)
    def stand_in(self: object, *args: object, **kwargs: object) -> None:
        recording = _recording_here()
        if recording is None:
            return begin(self, *args, **kwargs)
        given = dict(inspect.signature(begin).bind(self, *args, **kwargs).arguments)
        given.pop("self")
        return recording.begin(self, begin, given)

    return stand_in


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


def _always() -> Iterator[tuple[dict[str, object], str, str]]:
    """Yield namespace, name and what is special about it for what is patched in every trace."""
    yield from _KNOWN
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        yield from ((vars(numpy), name, "refused") for name in _bound_to(numpy, "RandomState"))


@functools.cache
def _bound_to(module: types.ModuleType, kind: str) -> list[str]:
    return [n for n, value in vars(module).items() if type(getattr(value, "__self__", None)).__name__ == kind]


def _imported(source: nn.Module, method: str) -> Iterator[tuple[dict[str, object], str, str]]:
    """Yield what a forward, its methods and its functions call by name and what is special about it."""
    refused = {id(space[name]) for space, name, way in _always() if way == "refused"}
    for space, names in spaces_of(source, method):
        for name in names:
            if id(space.get(name)) in refused:
                yield space, name, "refused"
            elif isinstance(space.get(name), CACHED):
                yield space, name, "cached"
            elif getattr(space.get(name), "__module__", None) == "einops.einops":
                yield space, name, "step"
    einops = sys.modules.get("einops")
    pure = {name: vars(einops)[name] for name in getattr(einops, "__all__", ())}
    for home in list(sys.modules.values()) if pure else ():
        held = getattr(home, "__dict__", {})
        yield from ((held, name, "step") for name, step in pure.items() if held.get(name) is step)


_ASKS = re.compile(
    "is_(grad|autocast|inference_mode)\\w*_enabled|is_autocast\\w*|get_(autocast|default)_\\w*"
)
"""Names of functions that tell a mode of the caller's."""

_KNOWN: list[tuple[dict[str, object], str, str]] = [
    *((vars(math), name, "step") for name, value in vars(math).items() if callable(value)),
    *((vars(random), name, "refused") for name in _bound_to(random, "Random")),
    *((vars(torch.random), name, "refused") for name in ("manual_seed", "seed", "fork_rng", "set_rng_state")),
    *((vars(torch), function.__name__, "step") for function in _FACTORIES),
    *((vars(torch), name, "refused") for name in vars(torch) if _ASKS.fullmatch(name)),
    (vars(torch), "manual_seed", "refused"),
    (vars(torch), "is_tensor", "step"),
]


_device_constructors()  # kept by torch at first use: not with the names patched


@functools.lru_cache(maxsize=4096)
def _stand_in(function: Any, way: str) -> Callable[..., object]:
    """Make what stands in for a global function while a forward is followed.

    Args:
        function: the function.
        way: ``step`` of the graph where it takes proxies; ``refused``; or ``cached`` and so
            called without its cache, which would keep proxies.
    """

    @functools.wraps(function)
    def stand_in(*args: object, **kwargs: object) -> object:
        recording = _recording_here()
        if recording is None:
            return function(*args, **kwargs)
        if way == "cached":
            return function.__wrapped__(*args, **kwargs)
        if way == "refused":
            name = getattr(function, "__name__", "a function")
            raise px.UnfollowableError(f"it calls {name}, whose answer would be fixed for ever")
        if px.holds_proxy(args) or px.holds_proxy(kwargs):
            if getattr(function, "__name__", "") == "is_tensor":
                return isinstance(args[0], torch.Tensor) or px.kind_of(args[0]) is torch.Tensor
            return recording.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return stand_in

"""Catch what a forward calls while it is followed: torch functions and wrapped functions.

Proxies catch calls that take them. This catches the rest: functions that make tensors, and
those that ``torch.fx.wrap`` names, for which names are patched under a lock; calls without
proxies, from any thread, go straight to the original.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

import torch
from torch import fx
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from torchgraft.graph import proxy as px

_LOCK = threading.RLock()


class Recording(TorchFunctionMode):
    """Record every torch function, also those that make tensors without taking any."""

    def __init__(self, tracer: fx.proxy.TracerBase) -> None:
        super().__init__()
        self._tracer = tracer
        self._paused = False

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204 - signature of the base
        kwargs = kwargs or {}
        if self._paused or not (px.holds_proxy(args) or px.holds_proxy(kwargs) or func in _FACTORIES):
            return func(*args, **kwargs)
        if is_tensor_method_or_property(func):
            return self._tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return self._tracer.create_proxy("call_function", func, args, kwargs)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let torch functions through while a value is computed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


_FACTORIES = frozenset(
    (
        torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace, torch.ones,
        torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor, torch.zeros,
    )
)  # fmt: skip


@contextlib.contextmanager
def wrapped_functions(tracer: fx.proxy.TracerBase) -> Iterator[None]:
    """Honour ``torch.fx.wrap``, and record functions of ``math``, while one forward is followed."""
    with _LOCK:
        yield from _patched(tracer)


def _patched(tracer: fx.proxy.TracerBase) -> Iterator[None]:
    registered = getattr(fx._symbolic_trace, "_wrapped_fns_to_patch", {})
    places = [(names, name) for (_, name), names in registered.items() if name in names]
    places += [(vars(math), name) for name in vars(math) if callable(getattr(math, name))]
    before = [(names, name, names[name]) for names, name in places]
    for names, name, function in before:
        names[name] = _recorded(function, tracer)
    try:
        yield
    finally:
        for names, name, function in before:
            names[name] = function


def _recorded(function: Callable[..., object], tracer: fx.proxy.TracerBase) -> Callable[..., object]:
    def recorded(*args: object, **kwargs: object) -> object:
        if px.holds_proxy(args) or px.holds_proxy(kwargs):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return recorded

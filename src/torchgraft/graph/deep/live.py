"""Record a run on real values, and look into it or alter it while it runs.

The parameters are lazy clones, so a forward that writes into them leaves the model alone;
caches that a module drops when its mode changes are dropped first.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.cow import cow
from torchgraft.graph.deep.record import Ops, Record, Scopes, Values, made_of
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import rebuilt, to_meta
from torchgraft.graph.shadow import Shadows


class Step(Protocol):
    """Runs one operation of a model in the place of the usual way to do it."""

    def __call__(
        self,
        number: int,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        values: tuple[int, ...],
    ) -> object:
        """Run operation ``number``, whose tensors have the numbers ``values``."""


def record_live(
    model: nn.Module,
    arguments: Arguments,
    step: Step | None = None,
    *,
    meta: bool = False,
    state: Mapping[str, torch.Tensor] | None = None,
    double: bool = False,
) -> Record:
    """Run a model in evaluation mode, one operation at a time, and record what it does.

    Args:
        model: the model; it is only read.
        arguments: positional and keyword arguments that it takes.
        step: runs an operation, or does something else in its place; the usual way if there is none.
        meta: compute nothing: all tensors are on the meta device.
        state: tensors to use in the place of some of the model's, by name.
        double: hand out the model's floating-point tensors in double precision.

    Returns:
        The record, numbered as that of any other run of the same model.
    """
    values = Values() if meta else _Passing()
    recorder = _OnMeta(values, training=False) if meta else _Live(values, double=double)
    shadow = Shadows(recorder).of(model)
    args, kwargs = arguments
    with _apart(), fresh_caches(model), torch.device("meta") if meta else _nothing():
        recorder.ready(model, state or {})
        positional = [to_meta(item) if meta else _copied(item) for item in args]
        named = {name: to_meta(item) if meta else _copied(item) for name, item in kwargs.items()}
        shadow.train()
        shadow.eval()
        with _Steps(values, recorder, step):
            shadow(*positional, **named)
    return made_of(values, recorder)


def _copied(value: object) -> object:
    """Copy the tensors of an argument, which a forward may write into."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [_copied(item) for item in value])
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


class _Passing(Values):
    """Number tensors without keeping them: a run on real values needs its memory back."""

    def hold(self, tensor: torch.Tensor) -> object:
        identity = id(tensor)
        return weakref.ref(tensor, lambda _: self.forget(identity))


class _OnMeta(Scopes):
    """Hand out meta tensors in the place of the model's tensors."""

    def ready(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:  # noqa: ARG002 - no values here
        """Make the twins of all tensors, so that making them is no part of the run."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.convert(tensor)


class _Live(_OnMeta):
    """Hand out lazy clones in the place of the model's tensors."""

    def __init__(self, values: Values, *, double: bool) -> None:
        super().__init__(values, training=False)
        self._double = double
        self._clones: dict[int, torch.Tensor] = {}

    def ready(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in state:
                self._clones[id(tensor)] = self._of(tensor, _like(tensor, state[name]))
        super().ready(model, state)

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._clones.get(id(tensor))
        if known is None:
            known = self._clones[id(tensor)] = self._of(tensor, cow(tensor))
        return known

    def _of(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Make what stands for a tensor of the model."""
        value = value.double() if self._double and value.is_floating_point() else value
        return (
            nn.Parameter(value, requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else value
        )

    def noted(self, value: object) -> object:  # noqa: ARG002 - nothing is kept of real values
        return None


def _like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.detach().to(device=tensor.device, dtype=tensor.dtype)


class _Steps(Ops):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Hand every operation to a step."""

    def __init__(self, values: Values, scopes: Scopes, step: Step | None) -> None:
        super().__init__(values, scopes)
        self._step = step

    def run(
        self,
        func: torch._ops.OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        taken: tuple[int, ...],
    ) -> object:
        if self._step is None:
            return func(*args, **kwargs)
        return self._step(len(self._values.ops), func, args, kwargs, taken)


@contextmanager
def _apart() -> Iterator[None]:
    """Leave the random numbers alone, and have attention spelled out in primitive operations."""
    python, fast = random.getstate(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(python)


@contextmanager
def _nothing() -> Iterator[None]:
    yield

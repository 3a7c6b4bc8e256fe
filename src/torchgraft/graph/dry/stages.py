"""Run models and other callables one after another for their shapes alone."""

from __future__ import annotations

import contextlib
import copy
import random
import types
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from torchgraft.graph.dry.known import Constants, shapes_only
from torchgraft.graph.proxy import to_meta
from torchgraft.graph.run import ModuleCall, Recorder, Run
from torchgraft.graph.shadow import Shadows, mark

Stage = Callable[..., object]


class DryRecorder(Recorder):
    """Take note of every call, and of the innermost one that fails.

    Args:
        training: the mode that forwards read.
    """

    def __init__(self, training: bool) -> None:
        super().__init__(training, Constants())
        self.failed: ModuleCall | None = None

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow."""
        try:
            return super().call(shadow, args, kwargs)
        except Exception:
            if self.failed is None:
                me = mark(shadow)
                self.failed = ModuleCall(me.path, me.source, args, kwargs, None)
            raise


class _WideShadows(Shadows):
    """Make shadows also of modules that are held and not registered, as pipelines hold theirs."""

    def _value(self, value: object) -> object:
        if isinstance(value, nn.Module) and self._registered(value) is None:
            return self.of(value, f"<{type(value).__name__}>")
        return super()._value(value)

    def stage(self, stage: object) -> Stage:
        """Return a twin of a stage that can be run without a trace on the models that it holds."""
        if isinstance(stage, nn.Module):
            return self.of(stage)
        if isinstance(stage, types.MethodType):
            return types.MethodType(stage.__func__, self.stage(stage.__self__))
        if isinstance(stage, types.FunctionType) or not hasattr(stage, "__dict__"):
            return cast("Stage", stage)
        twin = copy.copy(stage)
        vars(twin).update({name: self._value(value) for name, value in vars(stage).items()})
        return cast("Stage", twin)


def dry_run(
    stages: Sequence[Stage], args: tuple[object, ...], kwargs: dict[str, object], recorder: DryRecorder
) -> Run:
    """Run stages one after another on meta tensors.

    Modules run on shadows: no hook fires, and what a forward writes on itself is lost.

    Args:
        stages: modules, methods of modules, or other callables; the first one takes the arguments.
        args: positional arguments; their tensors are moved to the meta device.
        kwargs: keyword arguments, likewise.
        recorder: what takes note of the calls.

    Returns:
        The calls and the output.
    """
    given, named = [to_meta(a) for a in args], {name: to_meta(a) for name, a in kwargs.items()}
    first, *others = [_WideShadows(recorder).stage(stage) for stage in stages]
    with (
        _undisturbed(),
        torch.no_grad(),
        torch.device("meta"),
        shapes_only(recorder.constants or Constants()),
    ):
        output = first(*given, **named)
        for stage in others:
            output = stage(output)
    return Run(tuple(recorder.calls), output, recorder.mode)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the generators of random numbers where they are."""
    python = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)

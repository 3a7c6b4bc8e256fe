"""Run a model on meta tensors and note what every module got and gave.

The run happens on shadows, so hooks do not fire, nothing is allocated, and what a forward
writes on itself is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import cast

import attrs
import torch
from torch import nn

from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.proxy import to_meta
from torchgraft.graph.shadow import Shadows, mark


@attrs.frozen(eq=False)
class ModuleCall:
    """What one call of a module got and gave, with meta tensors in place of tensors.

    Args:
        path: where the module stands.
        module: the module itself.
        args: positional arguments.
        kwargs: keyword arguments.
        output: what it returned.
        started: when it began, on the clock of the run.
        ended: when it returned.
    """

    path: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    output: object
    started: int = 0
    ended: int = 0


@attrs.frozen(eq=False)
class Run:
    """The calls of one run, in the order in which they ended."""

    calls: tuple[ModuleCall, ...]
    output: object
    training: bool

    def of(self, module: nn.Module) -> list[ModuleCall]:
        """Return the calls of one module."""
        return [call for call in self.calls if call.module is module]


def run_on_meta(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object] | None = None,
    *,
    training: bool,
    recorder: Recorder | None = None,
) -> Run:
    """Run a model on meta tensors.

    Args:
        model: any module; it is only read.
        args: positional arguments; their tensors are moved to the meta device.
        kwargs: keyword arguments, likewise.
        training: ``False`` for evaluation mode everywhere; ``True`` for training mode.
        recorder: what takes note of the calls, if that is more than the usual.

    Returns:
        The calls and the output.
    """
    recorder = recorder or Recorder(training)
    shadow = Shadows(recorder).of(model)
    given = tuple(to_meta(a) for a in args)
    named = {name: to_meta(a) for name, a in (kwargs or {}).items()}
    python = random.getstate()
    try:  # what a forward draws or seeds is not part of the model
        quiet = torch.random.fork_rng(devices=[])
        with fresh_caches(model), quiet, torch.no_grad(), torch.device("meta"):
            output = shadow(*given, **named)
    finally:
        random.setstate(python)
    return Run(tuple(recorder.calls), output, training)


class Recorder:
    """Take note of every call in a run.

    Args:
        training: the mode that forwards read.
    """

    def __init__(self, training: bool) -> None:
        self.calls: list[ModuleCall] = []
        self._training = training
        self._clock = 0
        self._meta: dict[int, torch.Tensor] = {}

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow."""
        forward: Callable[..., object] = shadow.forward
        # Containers are copied: a caller may go on to fill the list that it passed.
        given = cast("tuple[object, ...]", self.noted(args)), cast("dict[str, object]", self.noted(kwargs))
        me = mark(shadow)
        self._clock = started = self._clock + 1
        try:
            output = forward(*args, **kwargs)
        except Exception as error:
            error.add_note(f"in {me.path or 'the root'}, a {type(me.source).__name__}")
            raise
        self._clock += 1
        self.calls.append(ModuleCall(me.path, me.source, *given, self.noted(output), started, self._clock))
        return output

    def noted(self, value: object) -> object:
        """Keep of an argument or a result what it looks like."""
        return to_meta(value)

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:  # noqa: ARG002 - protocol
        """Give the meta tensor of a tensor."""
        return self.convert(value)

    def assign(self, shadow: nn.Module, name: str, value: object) -> None:
        """Let a forward write on its shadow."""
        for store in ("_parameters", "_buffers"):
            if name in shadow.__dict__[store]:
                getattr(shadow, store)[name] = value

    def training(self, shadow: nn.Module) -> bool:  # noqa: ARG002 - protocol
        """Give the mode of the run."""
        return self._training

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the meta tensor of a tensor, one for each."""
        known = self._meta.get(id(tensor))
        if known is None:
            known = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                known = nn.Parameter(known, requires_grad=tensor.requires_grad)
            self._meta[id(tensor)] = known
        return known

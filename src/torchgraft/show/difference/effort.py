"""What a run of a model costs: multiply-adds of each module, and the shape of what it gives."""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchgraft.errors import AnalysisError
from torchgraft.graph.following import EXAMPLE
from torchgraft.graph.probe import Arguments, Example, arguments_of, guessed
from torchgraft.graph.proxy import tensors_in
from torchgraft.graph.run import Recorder, run_on_meta
from torchgraft.graph.shadow import mark
from torchgraft.spec import shape_text


@attrs.frozen(eq=False)
class Effort:
    """What one run of a model told.

    Args:
        inputs: shapes of the tensors that it was given.
        unknown: why it did not run; empty where it did.
        spent: multiply-adds of each module that was called, by identity.
        shapes: shape of what its first call gave, by identity.
    """

    inputs: str = ""
    unknown: str = ""
    spent: dict[int, int] = attrs.field(factory=dict)
    shapes: dict[int, str] = attrs.field(factory=dict)


def efforts(before: nn.Module, after: nn.Module, example: Example | None) -> tuple[Effort, Effort]:
    """Run two models on one input, where both take one.

    Args:
        before: a model; it is only read.
        after: another one; it is only read.
        example: an input; guessed for each model where it is missing.

    Returns:
        What the runs told; a model that does not run has the reason in ``unknown``.
    """
    models = before, after
    if example is not None:
        return _tried(before, example), _tried(after, example)
    own: list[Example | AnalysisError] = []
    for model in models:
        guess = _guessed(model)
        own.append(guess)
        if not isinstance(guess, AnalysisError):
            told = _tried(before, _one(guess)), _tried(after, _one(guess))
            if not (told[0].unknown or told[1].unknown):
                return told
    first, second = (_alone(model, guess) for model, guess in zip(models, own, strict=True))
    return first, second


def _guessed(model: nn.Module) -> Example | AnalysisError:
    kept: Example | None = getattr(model, EXAMPLE, None)
    if kept is not None:
        return kept
    try:
        return guessed(model)
    except AnalysisError as error:
        return error


def _one(example: Example) -> Example:
    """Keep one image of a batch."""
    return example[:1] if isinstance(example, torch.Tensor) and example.ndim > 1 else example


def _alone(model: nn.Module, guess: Example | AnalysisError) -> Effort:
    """Run a model on an input of its own."""
    if isinstance(guess, AnalysisError):
        return Effort(unknown=f"{guess.summary}: {guess.found}")
    told = _tried(model, _one(guess))
    return _tried(model, guess) if told.unknown else told


def _tried(model: nn.Module, example: Example) -> Effort:
    arguments = arguments_of(example)
    try:
        return _run(model, arguments)
    except Exception as error:  # noqa: BLE001 - a forward may fail in any way
        said = str(error).splitlines()
        return Effort(unknown=f"{type(error).__name__}: {said[0] if said else ''}"[:200])


def _run(model: nn.Module, arguments: Arguments) -> Effort:
    meter = FlopCounterMode(display=False)
    counter = _Counter(meter)
    with meter:
        run = run_on_meta(model, *arguments, training=False, recorder=counter)
    given = [" ".join(map(str, tensor.shape)) for tensor in tensors_in(arguments)]
    shapes: dict[int, str] = {}
    for call in sorted(run.calls, key=lambda call: call.started):
        shapes.setdefault(id(call.module), shape_text(call.output))
    # torch counts a multiplication and an addition as two
    return Effort(", ".join(given), "", {key: spent // 2 for key, spent in counter.spent.items()}, shapes)


class _Counter(Recorder):
    """Take note of what each call of a module adds to a meter."""

    def __init__(self, meter: FlopCounterMode) -> None:
        super().__init__(training=False)
        self.spent: dict[int, int] = {}
        self._meter = meter

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow between two looks at the meter."""
        start = self._meter.get_total_flops()
        output = super().call(shadow, args, kwargs)
        key = id(mark(shadow).source)
        self.spent[key] = self.spent.get(key, 0) + self._meter.get_total_flops() - start
        return output

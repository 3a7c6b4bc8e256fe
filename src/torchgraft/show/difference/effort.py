"""What a run of a model costs: multiply-adds of each module, and the shape of what it gives."""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from torchgraft.errors import AnalysisError
from torchgraft.graph.deep.record import Op, Record, Ref, record
from torchgraft.graph.following import EXAMPLE
from torchgraft.graph.probe import Arguments, Example, arguments_of, guessed
from torchgraft.graph.proxy import tensors_in
from torchgraft.spec import shape_text
from torchgraft.text import write_dims, write_error


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
        return Effort(unknown=write_error(error))


def _run(model: nn.Module, arguments: Arguments) -> Effort:
    made = record(model, arguments)
    spent: dict[int, int] = {}
    for op in made.ops:
        cost, scope = _multiply_adds(made, op), op.scope
        while cost and scope >= 0:
            key = id(model.get_submodule(made.scopes[scope].path))
            spent[key], scope = spent.get(key, 0) + cost, made.scopes[scope].parent
    shapes: dict[int, str] = {}
    for call in sorted(made.calls, key=lambda call: call.started):
        shapes.setdefault(id(call.module), shape_text(call.output))
    given = [write_dims(tensor.shape) for tensor in tensors_in(arguments)]
    return Effort(", ".join(given), "", spent, shapes)


def _multiply_adds(made: Record, op: Op) -> int:
    count = flop_registry.get(op.func.overloadpacket) if op.func is not None else None
    if count is None:
        return 0
    args, kwargs, out = tree_map_only(
        Ref, lambda ref: made.shapes[ref.value], (op.args, op.kwargs, tuple(map(Ref, op.outputs)))
    )
    # torch counts a multiplication and an addition as two
    return int(count(*args, **kwargs, out_val=out[0] if len(out) == 1 else out)) // 2

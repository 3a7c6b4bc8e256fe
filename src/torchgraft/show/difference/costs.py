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
class Costs:
    """What one run of a model costs.

    Args:
        inputs: shapes of the tensors that it was given.
        unknown: why it did not run; empty where it did.
        macs: multiply-adds of each module that was called, by identity.
        shapes: shape of what its first call gave, by identity.
    """

    inputs: str = ""
    unknown: str = ""
    macs: dict[int, int] = attrs.field(factory=dict)
    shapes: dict[int, str] = attrs.field(factory=dict)


def measure_costs(before: nn.Module, after: nn.Module, example: Example | None) -> tuple[Costs, Costs]:
    """Run two models on one input, where both take one, else each on an input of its own."""
    if example is not None:
        return _measure(before, example), _measure(after, example)
    guesses = []
    for model in (before, after):
        guesses.append(guess := _guess_examples(model))
        costs = _measure(before, guess[0]), _measure(after, guess[0])
        if not (costs[0].unknown or costs[1].unknown):
            return costs
    return _measure(before, *guesses[0]), _measure(after, *guesses[1])


def _guess_examples(model: nn.Module) -> list[Example | AnalysisError]:
    """Guess an input, with one image and with the whole batch."""
    guess: Example | None = getattr(model, EXAMPLE, None)
    try:
        guess = guessed(model) if guess is None else guess
    except AnalysisError as error:
        return [error]
    return [guess[:1], guess] if isinstance(guess, torch.Tensor) and guess.ndim > 1 else [guess]


def _measure(model: nn.Module, *examples: Example | AnalysisError) -> Costs:
    """Run a model on the first example that it takes."""
    why = ""
    for example in examples:
        if isinstance(example, AnalysisError):
            return Costs(unknown=f"{example.summary}: {example.found}")
        try:
            return _costs_of(model, arguments_of(example))
        except Exception as error:  # noqa: BLE001 - a forward may fail in any way
            why = write_error(error)
    return Costs(unknown=why)


def _costs_of(model: nn.Module, arguments: Arguments) -> Costs:
    run = record(model, arguments)
    modules = dict(model.named_modules(remove_duplicate=False))
    macs = {id(modules[scope.path]): 0 for scope in run.scopes}
    for op in run.ops:
        if count := _macs_of(op, run):
            number = op.scope
            while number >= 0:
                scope = run.scopes[number]
                macs[id(modules[scope.path])] += count
                number = scope.parent
    shapes: dict[int, str] = {}
    for call in sorted(run.calls, key=lambda call: call.started):
        shapes.setdefault(id(call.module), shape_text(call.output))
    given = [write_dims(tensor.shape) for tensor in tensors_in(arguments)]
    return Costs(", ".join(given), "", macs, shapes)


def _macs_of(op: Op, run: Record) -> int:
    count = flop_registry.get(op.func.overloadpacket) if op.func is not None else None
    if count is None:
        return 0
    args, kwargs = tree_map_only(Ref, lambda ref: run.shapes[ref.value], (op.args, op.kwargs))
    made = [run.shapes[value] for value in op.outputs]
    # torch counts a multiplication and an addition as two
    return int(count(*args, **kwargs, out_val=made[0] if len(made) == 1 else tuple(made))) // 2

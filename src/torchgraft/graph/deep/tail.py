"""Run a model again from where it was edited on: what ran before gives what it gave."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection

from torch import nn

from torchgraft.graph.constant_values import Constants
from torchgraft.graph.deep.record import Record, Scopes, record_with, with_constants
from torchgraft.graph.run import ModuleCall
from torchgraft.graph.watched import mark


class Tail(Scopes):
    """Take note of a run in which modules that come before some others are not run.

    Args:
        before: the record that says what they give.
        edited: paths of the modules from which on everything runs.
        constants: what is known of small tensors.
    """

    def __init__(self, before: Record, edited: Collection[str], constants: Constants | None) -> None:
        super().__init__(before.training, constants)
        self._edited = edited
        self._met = False
        self._known: dict[str, deque[ModuleCall]] = defaultdict(deque)
        for call in sorted(before.calls, key=lambda call: call.started):
            self._known[call.path].append(call)

    def _forward(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        path = mark(shadow).path
        self._met |= path in self._edited
        leads = not path or any(f"{other}.".startswith(f"{path}.") for other in self._edited)
        if self._met or leads or not self._known[path]:
            return super()._forward(shadow, args, kwargs)
        return self._known[path].popleft().output


def record_tail(model: nn.Module, before: Record, edited: Collection[str]) -> Record:
    """Record what a model does from some modules on, on what an earlier record says of the others."""
    usual = before.calls[-1]
    given = usual.args, usual.kwargs
    return with_constants(lambda known: record_with(Tail(before, edited, known), model, given))

"""The places of a model: every use of parameters, and every meeting of two signals.

A place knows from which places its signal comes; what lies between (reshapes, activations,
pooling, means) is left out, because two implementations of one function write it differently.
It is kept aside as a way, for places that nothing else tells apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch

from torchgraft.alignment.match.kinds import Slot
from torchgraft.alignment.match.operands import Operands
from torchgraft.graph.deep.record import Record


@attrs.frozen
class Way:
    """What happens to a signal between two places.

    Args:
        functions: names of what is computed: ``("silu",)``.
        spots: which part of it is taken, wherever one is: ``(0,)`` of a split in two.
    """

    functions: tuple[str, ...] = ()
    spots: tuple[int, ...] = ()


@attrs.define(eq=False)
class Place:
    """A use of parameters, or a meeting of signals.

    Args:
        number: its place in the order in which they ran.
        kind: what it is.
        hyper: what else has to agree.
        op: the operation that it begins with.
        signal: the value that it is given first.
        parents: the places that its signals come from, each with the part that it plays.
        ways: how each of them comes.
        slots: the parameters that it uses.
        shapes: their shapes, in the form in which they are compared.
        rows: of a layer that does the work of several, the rows that are this one's.
    """

    number: int
    kind: str
    hyper: tuple[object, ...]
    op: int
    signal: int
    parents: list[tuple[int, str]]
    ways: list[Way] = attrs.field(factory=list)
    slots: dict[str, Slot] = attrs.field(factory=dict)
    shapes: dict[str, object] = attrs.field(factory=dict)
    rows: torch.Tensor | None = None


@attrs.frozen(eq=False)
class Places:
    """All places of one record.

    Args:
        places: in the order in which they ran; the first stand for the inputs.
        operands: where the operands come from.
        record: what ran.
        ends: the places that the outputs come from.
    """

    places: list[Place]
    operands: Operands
    record: Record
    ends: tuple[int, ...]

    def live(self) -> list[int]:
        """List the places that lead to an output, in order."""
        seen = set(self.ends)
        stack = list(seen)
        while stack:
            for parent, _ in self.places[stack.pop()].parents:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return sorted(seen)

    def keys(self, number: int) -> tuple[str, ...]:
        """Name the parameters that a place uses."""
        slots = self.places[number].slots.values()
        return tuple(key for slot in slots for key in self.operands.leaves(slot.value))

    def used(self, numbers: Iterable[int]) -> set[str]:
        """Name the parameters that some places use."""
        return {key for number in numbers for key in self.keys(number)}

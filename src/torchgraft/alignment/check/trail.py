"""What a run leaves behind: a fingerprint of every value, and the values that are asked for."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import attrs
import torch
from torch import nn

from torchgraft.alignment.check.doubled import widened
from torchgraft.alignment.match.finder import find_places
from torchgraft.alignment.match.places import Place, Places
from torchgraft.alignment.match.prints import Print, print_of
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import Record
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import tensors_in

Before = Callable[[Mapping[int, torch.Tensor]], None]


class After(Protocol):
    """Looks at what an operation gave, and is told whether it wrote into what it was given."""

    def __call__(self, number: int, output: object, *, written: bool) -> None:
        """Look at what operation ``number`` gave."""


State = Mapping[str, torch.Tensor]
# Masks hold the lowest number that there is, whose square is none.
_LARGEST = 1e30
_NEAR = 40
# No multiple of the angle comes near a full turn, so every place in a tensor has a weight of its own.
_TURN, _WIDE = 2.399963229728653, 1021


@attrs.frozen(eq=False)
class Runner:
    """A model, what it is given, and the tensors that stand in the place of its own.

    Args:
        model: the model; it is only read.
        arguments: what it is given.
        state: tensors to use in the place of some of the model's.
        double: compute in double precision.
    """

    model: nn.Module
    arguments: Arguments
    state: State = attrs.field(factory=dict)
    double: bool = False

    def record(self) -> Record:
        """Run the model and record what it does."""
        return self._run(lambda _taken: None)

    def trail(self) -> Trail:
        """Run the model and take the fingerprints of all values."""
        given: dict[int, Mark] = {}
        made: dict[int, list[Mark]] = {}
        marker = _Marker()

        def before(taken: Mapping[int, torch.Tensor]) -> None:
            given.update({v: marker.of(tensor) for v, tensor in taken.items() if v not in given})

        def after(number: int, output: object, *, written: bool) -> None:
            if written:
                marker.forget()
            made[number] = [marker.of(tensor) for tensor in tensors_in(output)]

        record = self._run(before, after)
        for number, marks in made.items():
            given.update(zip(record.ops[number].outputs, marks, strict=False))
        return Trail(self, record, given, self._places(record))

    def values(self, wanted: Iterable[int], record: Record) -> dict[int, torch.Tensor]:
        """Run the model and keep some of the values, numbered as in a record of it."""
        left = set(wanted)
        found: dict[int, torch.Tensor] = {}

        def before(taken: Mapping[int, torch.Tensor]) -> None:
            found.update({v: t.detach().clone() for v, t in taken.items() if v in left and v not in found})

        def after(number: int, output: object, *, written: bool) -> None:  # noqa: ARG001 - as above
            before(dict(zip(record.ops[number].outputs, tensors_in(output), strict=False)))

        if left:
            self._run(before, after)
        return found

    def _run(self, before: Before, after: After | None = None) -> Record:
        def step(
            number: int,
            func: Callable[..., object],
            args: tuple[object, ...],
            kwargs: dict[str, object],
            values: tuple[int, ...],
        ) -> object:
            if self.double:
                args, kwargs = widened(args), widened(kwargs)  # type: ignore[assignment]  # of one kind
            before(dict(zip(values, tensors_in((args, kwargs)), strict=True)))
            output = func(*args, **kwargs)
            output = widened(output) if self.double else output
            if after is not None:
                after(number, output, written=func._schema.is_mutable)  # type: ignore[attr-defined]  # an operation
            return output

        arguments = self.arguments
        if self.double:
            arguments = widened(arguments)  # type: ignore[assignment]  # of one kind
        return record_live(self.model, arguments, step, state=self.state, double=self.double)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the model's tensors by name, and those that stand in their place."""
        held = {**self.model.state_dict(keep_vars=True), **self.state}
        return {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}

    def _places(self, record: Record) -> Places:
        tensors = self.tensors()
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        mapped = [key for key, value in tensors.items() if value.is_floating_point()]
        return find_places(record, {**buffers, **tensors}, mapped)


@attrs.frozen
class Mark:
    """What is known of a value: whatever its layout, and in its own order.

    Args:
        told: its fingerprint.
        shape: its shape.
        order: a sum over its elements that knows their order.
    """

    told: Print
    shape: torch.Size
    order: float

    def apart(self, other: Mark, *, ordered: bool) -> float:
        """Say how far two values are apart, as a share of their size."""
        size = max(self.told.size, other.told.size)
        if self.told.count != other.told.count or not size:
            return 0.0 if self.told.count == other.told.count else float("inf")
        far = self.told.distance(other.told)
        if not ordered:
            return far
        return max(far, abs(self.order - other.order) / size) if self.shape == other.shape else float("inf")


class Trail:
    """What one run did, and what was seen of every value.

    Args:
        runner: what ran, and can be run again.
        record: what it did.
        marks: the fingerprints of values.
        places: the places of the model.
    """

    def __init__(self, runner: Runner, record: Record, marks: Mapping[int, Mark], places: Places) -> None:
        self.runner = runner
        self.record = record
        self.marks = marks
        self.places = places
        self.maker = {
            value: n for n, op in enumerate(record.ops) for value in op.outputs if value not in op.inputs
        }
        self._held: dict[int, torch.Tensor] = {}
        self.used: dict[int, list[Place]] = {}
        for place in places.places:
            for number in {slot.op for slot in place.slots.values()}:
                self.used.setdefault(number, []).append(place)
        self.signals = set(record.inputs)
        for op in record.ops:
            if self.signals.intersection(op.inputs):
                self.signals.update(op.outputs)
        self._by_count: dict[int, list[Mark]] = {}
        for mark in sorted(marks.values(), key=lambda mark: mark.told.size):
            self._by_count.setdefault(mark.told.count, []).append(mark)
        self._sizes = {count: [m.told.size for m in held] for count, held in self._by_count.items()}

    def formed(self, place: Place, name: str) -> torch.Tensor | None:
        """Return a parameter as a place uses it, in the form in which parameters are compared."""
        slot = place.slots.get(name)
        if slot is None:
            return None
        known = self._laid(slot.value)
        if known is not None:
            return slot.of(known).double()
        if slot.value not in self._held:  # another run: what is used nearby is likely asked for next
            near = [n for n in range(slot.op - _NEAR, slot.op + _NEAR) if n in self.used]
            values = {one.value for n in near for other in self.used[n] for one in other.slots.values()}
            self._held.update(self.runner.values(values, self.record))
        return slot.of(self._held[slot.value]).double()

    def _laid(self, value: int) -> torch.Tensor | None:
        """Return a value that is a plain view of a parameter."""
        operand = self.places.operands.of(value)
        held = self.runner.tensors().get(operand.key)
        if operand.view is None or held is None:
            return None
        view = operand.view
        return held.detach().contiguous().as_strided(view.shape, view.stride(), view.storage_offset())

    def has(self, mark: Mark, least: float, *, ordered: bool) -> bool:
        """Tell whether some value of the run is like one of another run."""
        count, size = mark.told.count, mark.told.size
        sizes, slack = self._sizes.get(count, []), size * least * 1.01
        first, last = bisect.bisect_left(sizes, size - slack), bisect.bisect_right(sizes, size + slack)
        held = self._by_count.get(count, [])[first:last]
        return any(mark.apart(other, ordered=ordered) <= least for other in held)


class _Marker:
    """Take the fingerprint of a tensor once, however often it is used."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Mark]] = {}

    def of(self, tensor: torch.Tensor) -> Mark:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        mark = mark_of(tensor)
        self._known[id(tensor)] = weakref.ref(tensor), mark
        return mark

    def forget(self) -> None:
        """Take it that tensors were written to; which share their memory is not known."""
        self._known.clear()


def mark_of(tensor: torch.Tensor) -> Mark:
    """Take the fingerprint of any value, of masks, indices and zeros too."""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = flat.detach().double().nan_to_num(nan=_LARGEST).clamp(-_LARGEST, _LARGEST).reshape(-1)
    told = print_of(flat) or Print(tensor.numel(), 0.0, (0.0,) * 5)
    return Mark(told, tensor.shape, _order(flat) / max(len(flat), 1) ** 0.5)


def _order(flat: torch.Tensor) -> float:
    """Add up values, each with a weight of its place: of its row and of its column in a long table."""
    rows = len(flat) // _WIDE
    turns = torch.arange(max(rows, _WIDE), dtype=torch.float64, device=flat.device).mul_(_TURN).cos_()
    table, rest = flat[: rows * _WIDE].view(rows, _WIDE), flat[rows * _WIDE :]
    return ((table @ turns[:_WIDE]) @ turns[:rows] - rest @ turns[: len(rest)]).item()

"""What a run leaves behind: a fingerprint of every value, and the values that are asked for."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterable, Mapping

import attrs
import torch
from torch import nn

from torchgraft.align.check.doubled import Doubled
from torchgraft.align.match.finder import find_places
from torchgraft.align.match.places import Places
from torchgraft.align.match.prints import Print, print_of
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import Record
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import tensors_in

Before = Callable[[Mapping[int, torch.Tensor]], None]
After = Callable[[int, object], None]
State = Mapping[str, torch.Tensor]
# Masks hold the lowest number that there is, whose square is none.
_LARGEST = 1e30


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
        given: dict[int, Print] = {}
        made: dict[int, list[Print]] = {}
        marker = _Marker()

        def before(taken: Mapping[int, torch.Tensor]) -> None:
            given.update({v: marker.of(tensor) for v, tensor in taken.items() if v not in given})

        def after(number: int, output: object) -> None:
            made[number] = [marker.of(tensor) for tensor in tensors_in(output)]

        record = self._run(before, after)
        for number, marks in made.items():
            given.update(zip(record.ops[number].outputs, marks, strict=False))
        return Trail(record, given, self._places(record))

    def values(self, wanted: Iterable[int], record: Record) -> dict[int, torch.Tensor]:
        """Run the model and keep some of the values, numbered as in a record of it."""
        left = set(wanted)
        found: dict[int, torch.Tensor] = {}

        def before(taken: Mapping[int, torch.Tensor]) -> None:
            found.update({v: t.detach().clone() for v, t in taken.items() if v in left and v not in found})

        def after(number: int, output: object) -> None:
            before(dict(zip(record.ops[number].outputs, tensors_in(output), strict=False)))

        if left:
            self._run(before, after)
        return found

    def _run(self, before: Before, after: After = lambda _number, _output: None) -> Record:
        doubled = Doubled()

        def step(
            number: int,
            func: Callable[..., object],
            args: tuple[object, ...],
            kwargs: dict[str, object],
            values: tuple[int, ...],
        ) -> object:
            if self.double:
                args, kwargs = doubled.widened(args), doubled.widened(kwargs)  # type: ignore[assignment]  # of one kind
            before(dict(zip(values, tensors_in((args, kwargs)), strict=True)))
            output = func(*args, **kwargs)
            output = doubled.widened(output, keep=False) if self.double else output
            after(number, output)
            return output

        arguments = self.arguments
        if self.double:
            arguments = doubled.widened(arguments)  # type: ignore[assignment]  # of one kind
        return record_live(self.model, arguments, step, state=self.state)

    def _places(self, record: Record) -> Places:
        held = self.model.state_dict(keep_vars=True)
        tensors = {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        mapped = [key for key, value in tensors.items() if value.is_floating_point()]
        return find_places(record, {**buffers, **tensors}, mapped)


class Trail:
    """What one run did, and what was seen of every value.

    Args:
        record: what ran.
        marks: the fingerprints of values.
        places: the places of the model.
    """

    def __init__(self, record: Record, marks: Mapping[int, Print], places: Places) -> None:
        self.record = record
        self.marks = marks
        self.places = places
        self.maker = {value: n for n, op in enumerate(record.ops) for value in op.outputs if value not in op.inputs}
        self._by_count: dict[int, list[Print]] = {}
        for mark in sorted(marks.values(), key=lambda mark: mark.size):
            self._by_count.setdefault(mark.count, []).append(mark)
        self._sizes = {count: [m.size for m in held] for count, held in self._by_count.items()}

    def has(self, mark: Print | None, least: float) -> bool:
        """Tell whether some value of the run is like one of another run."""
        if mark is None:
            return False
        sizes = self._sizes.get(mark.count, [])
        slack = mark.size * least * 1.01
        first, last = bisect.bisect_left(sizes, mark.size - slack), bisect.bisect_right(sizes, mark.size + slack)
        return any(apart(mark, other) <= least for other in self._by_count.get(mark.count, [])[first:last])


class _Marker:
    """Take the fingerprint of a tensor once, however often it is used."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, Print]] = {}

    def of(self, tensor: torch.Tensor) -> Print:
        ref, version, mark = self._known.get(id(tensor), (None, 0, None))
        if mark is None or ref is None or ref() is not tensor or version != tensor._version:
            mark = mark_of(tensor)
            self._known[id(tensor)] = weakref.ref(tensor), tensor._version, mark
        return mark


def mark_of(tensor: torch.Tensor) -> Print:
    """Take the fingerprint of any value, of masks, indices and zeros too."""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    told = flat.detach().double().nan_to_num(nan=_LARGEST).clamp(-_LARGEST, _LARGEST)
    return print_of(told) or Print(tensor.numel(), 0.0, (0.0,) * 5)


def apart(one: Print | None, other: Print | None) -> float:
    """Say how far two values are apart, as a share of their size."""
    if one is None or other is None or one.count != other.count:
        return float("inf")
    return one.distance(other) if one.size or other.size else 0.0

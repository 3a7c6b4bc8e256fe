"""What a run leaves behind: a fingerprint of every value, and the values that are asked for.

In single precision two ways to write one function differ by as much as a wrong epsilon makes;
in double precision what is the same is the same to twelve digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping
from typing import TypeVar

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map

from torchgraft.alignment.match.finder import find_places
from torchgraft.alignment.match.places import Place
from torchgraft.alignment.match.prints import Print, print_of
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import Record
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import tensors_in

T = TypeVar("T")
# Masks hold the lowest number that there is, whose square is none.
_LARGEST = 1e30
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
    state: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    double: bool = False

    def look(
        self, see: Callable[[torch.Tensor], T], wanted: Container[int] | None = None
    ) -> tuple[Record, dict[int, T]]:
        """Run the model and look at its values.

        Args:
            see: looks at a value.
            wanted: the numbers of those that are used to look at; ``None`` for all.

        Returns:
            What the run did; and what was seen, of values that no operation uses, too.
        """
        seen: dict[int, T] = {}
        unused: dict[int, tuple[int, int, torch.Tensor]] = {}
        wide = _widened if self.double else _same

        def step(
            number: int,
            func: Callable[..., object],
            args: tuple[object, ...],
            kwargs: dict[str, object],
            values: tuple[int, ...],
        ) -> object:
            args, kwargs = wide((args, kwargs))
            for value, tensor in zip(values, tensors_in((args, kwargs)), strict=True):
                unused.pop(id(tensor), None)
                if value not in seen and (wanted is None or value in wanted):
                    seen[value] = see(tensor)
            output = wide(func(*args, **kwargs))
            unused.update((id(tensor), (number, i, tensor)) for i, tensor in enumerate(tensors_in(output)))
            return output

        arguments = wide(self.arguments)
        record = record_live(self.model, arguments, step, state=self.state, double=self.double)
        ends = [(record.ops[number].outputs[i], tensor) for number, i, tensor in unused.values()]
        ends += zip(record.inputs, tensors_in(arguments), strict=True)
        return record, {value: see(tensor) for value, tensor in ends} | seen

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the model's tensors by name, and those that stand in their place."""
        held = {**self.model.state_dict(keep_vars=True), **self.state}
        return {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}


def _same(value: T) -> T:
    return value


def _widened(value: T) -> T:
    """Return a nested value with wide tensors, and wide dtypes, where they were narrow."""
    return tree_map(_widen, value)  # type: ignore[no-any-return]  # of one kind


def _widen(value: object) -> object:
    kind = value.dtype if isinstance(value, torch.Tensor) else value
    if not isinstance(kind, torch.dtype) or not (kind.is_floating_point or kind.is_complex):
        return value
    wide = torch.complex128 if kind.is_complex else torch.float64
    return value.to(wide) if isinstance(value, torch.Tensor) else wide


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
        runner: what runs.
    """

    def __init__(self, runner: Runner) -> None:
        self.record, self.marks = runner.look(mark_of)
        self._runner, self._tensors = runner, runner.tensors()
        buffers = dict(runner.model.named_buffers(remove_duplicate=False))
        mapped = [key for key, value in self._tensors.items() if value.is_floating_point()]
        self.places = find_places(self.record, {**buffers, **self._tensors}, mapped)
        self.maker = {
            value: n for n, op in enumerate(self.record.ops) for value in op.outputs if value not in op.inputs
        }
        self.used: dict[int, list[Place]] = {}
        for place in self.places.places:
            for number in {slot.op for slot in place.slots.values()}:
                self.used.setdefault(number, []).append(place)
        self._by_count: dict[int, list[Mark]] = {}
        for value, mark in self.marks.items():
            if mark.told.size or value not in self.record.given:  # dead features are no statistics at zero
                self._by_count.setdefault(mark.told.count, []).append(mark)

    def formed(self, place: Place, name: str) -> torch.Tensor | None:
        """Return a parameter as a place uses it, in the form in which parameters are compared."""
        slot = place.slots.get(name)
        if slot is None:
            return None
        known = self._laid(slot.value)
        return slot.of(self._made[slot.value] if known is None else known).double()

    def _laid(self, value: int) -> torch.Tensor | None:
        """Return a value that is a plain view of a parameter."""
        operand = self.places.operands.of(value)
        held = self._tensors.get(operand.key)
        if operand.view is None or held is None:
            return None
        view = operand.view
        return held.detach().contiguous().as_strided(view.shape, view.stride(), view.storage_offset())

    @functools.cached_property
    def _made(self) -> dict[int, torch.Tensor]:
        """What is used as a parameter and was computed from some: another run keeps it."""
        used = {slot.value for place in self.places.places for slot in place.slots.values()}
        wanted = {value for value in used if self._laid(value) is None}
        return self._runner.look(lambda tensor: tensor.detach().clone(), wanted)[1]

    def has(self, mark: Mark, least: float, *, ordered: bool) -> bool:
        """Tell whether some value of the run is like one of another run."""
        slack = mark.told.size * least * 1.01
        return any(
            abs(other.told.size - mark.told.size) <= slack and mark.apart(other, ordered=ordered) <= least
            for other in self._by_count.get(mark.told.count, ())
        )


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

"""Where the elements of a value come from that is made of parameters alone.

A forward moves parameters about before it uses them: it transposes, slices, joins, looks
up in a table. As long as an operation only moves elements, each element of the result still
is one element of one parameter, and its label says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from torchgraft.alignment.entry import squeezed
from torchgraft.alignment.match.operations import COPIES, MOVES
from torchgraft.graph.deep.record import Op, Record, Ref

Tensors = Mapping[str, torch.Tensor]

_DEEPEST = 200  # as many operations on a parameter are not followed
# Labels of what is no element of a parameter.
ZERO, UNKNOWN = -1, -2
_PLACES = ("device", "pin_memory", "layout")


@attrs.frozen(eq=False)
class Operand:
    """The elements of a value made of parameters.

    Args:
        key: the one parameter that it is a view of; empty where it is not a plain view.
        view: a meta tensor, laid over the contiguous elements of that parameter.
        labels: otherwise, for each element ``offset of the parameter + place in it``, -1
            where it is no element of any; ``None`` where elements were computed with.
        leaves: the parameters that it is made of.
    """

    leaves: tuple[str, ...]
    key: str = ""
    view: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class Operands:
    """Follow the parameters of one record through what is done to them.

    Args:
        record: what ran.
        tensors: the parameters and buffers by name; on meta where there are no values.
        mapped: names of those whose elements count; the others are constants.
    """

    def __init__(self, record: Record, tensors: Tensors, mapped: Iterable[str]) -> None:
        self.offsets: dict[str, int] = {}
        self.total = 0
        for key in mapped:
            self.offsets[key] = self.total
            self.total += tensors[key].numel()
        self._record = record
        self._tensors = tensors
        self._made: dict[int, tuple[Op, int]] = {}
        self._leaves: dict[int, tuple[str, ...]] = {}
        for value, key in record.given.items():
            self._leaves[value] = (key,) if key in self.offsets else ()
        self._known: dict[int, Operand] = {}
        self._depth: dict[int, int] = {}

    def note(self, op: Op) -> None:
        """Take note of an operation that no input of the model enters."""
        leaves = tuple(dict.fromkeys(key for value in op.inputs for key in self._leaves.get(value, ())))
        depth = 1 + max((self._depth.get(value, 0) for value in op.inputs), default=0)
        for place, value in enumerate(op.outputs):
            self._depth[value] = depth
            if value in op.inputs:  # handed on as it is
                continue
            self._made[value] = op, place
            self._leaves[value] = leaves

    def leaves(self, value: int) -> tuple[str, ...]:
        """Name the parameters that a value is made of."""
        return self._leaves.get(value, ())

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a parameter, without axes of one."""
        return squeezed(tuple(self._tensors[key].shape))

    def trained(self, value: int) -> bool:
        """Tell whether a value is made of parameters, and not of buffers alone."""
        return any(isinstance(self._tensors[key], nn.Parameter) for key in self.leaves(value))

    def of(self, value: int) -> Operand:
        """Say where the elements of a value come from."""
        known = self._known.get(value)
        if known is None and self._depth.get(value, 0) > _DEEPEST:
            return Operand(self.leaves(value))
        if known is None:
            known = self._known[value] = self._viewed(value) or self._moved(value)
        return known

    def labels(self, operand: Operand) -> torch.Tensor | None:
        """Return the label of every element of an operand, in its own shape."""
        if operand.view is None:
            return operand.labels
        offset, count = self.offsets[operand.key], self._tensors[operand.key].numel()
        view = operand.view
        return (torch.arange(count) + offset).as_strided(view.shape, view.stride(), view.storage_offset())

    def _viewed(self, value: int) -> Operand | None:
        """Lay a value over one parameter, if it is a view of it."""
        key = self._record.given.get(value)
        if key is not None and key in self.offsets:
            return Operand((key,), key, torch.empty(self._tensors[key].shape, device="meta"))
        if value not in self._made or len(self._leaves[value]) != 1:
            return None
        op, place = self._made[value]
        if op.func is None or len(op.inputs) != 1 or not (op.func.is_view or op.name in COPIES):
            return None
        below = self.of(op.inputs[0])
        if below.view is None:
            return None
        if op.name in COPIES and op.name != "_unsafe_view":
            return below
        try:
            seen = called(op, {op.inputs[0]: below.view}, op.kwargs)
        except RuntimeError:  # a view of a copy whose order is another
            return None
        view = cast("torch.Tensor", seen[place] if isinstance(seen, (tuple, list)) else seen)
        return Operand(below.leaves, below.key, view)

    def _moved(self, value: int) -> Operand:
        leaves = self._leaves.get(value, ())
        if value not in self._made:
            return Operand(leaves)
        op, place = self._made[value]
        if op.func is None:
            return Operand(leaves, labels=self._written(op))
        given: dict[int, torch.Tensor] = {}
        for one in op.inputs:
            known = self._labelled(one)
            if known is None:
                return Operand(leaves)
            given[one] = known
        try:
            found = _moved(op, given, place) if op.name in MOVES else _selected(op, given, place, self.leaves)
        except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
            found = None
        if found is not None and found.shape != self._record.shapes[value]:
            found = None
        return Operand(leaves, labels=found)

    def _written(self, op: Op) -> torch.Tensor | None:
        """Return the labels of a tensor after a write into a view of it."""
        whole, view = op.inputs
        writing = self._made[view][0] if view in self._made else None
        if writing is None or writing.name not in ("zero_", "fill_"):
            return None
        one, part = self.of(whole), self.of(writing.inputs[0])
        labels = self.labels(one)
        if labels is None or one.view is None or part.view is None or one.key != part.key:
            return None
        flat = labels.reshape(-1).clone()
        at = torch.arange(self._tensors[one.key].numel())
        spot = at.as_strided(part.view.shape, part.view.stride(), part.view.storage_offset())
        first = one.view.storage_offset()
        if not one.view.is_contiguous() or spot.min() < first or spot.max() >= first + flat.numel():
            return None
        flat[spot.reshape(-1) - first] = -1
        return flat.reshape(labels.shape)

    def _labelled(self, value: int) -> torch.Tensor | None:
        """Return labels of a value made of parameters, the value itself of a constant."""
        if self.leaves(value):
            return self.labels(self.of(value))
        return self._constant(value)

    def _constant(self, value: int) -> torch.Tensor | None:
        key = self._record.given.get(value)
        if key is not None:
            held = self._tensors.get(key)
            return None if held is None or held.is_meta else held.detach().cpu()
        if value not in self._made:
            return None
        op, place = self._made[value]
        given = {one: self._constant(one) for one in op.inputs}
        if op.func is None or any(known is None for known in given.values()):
            return None
        try:
            return _run(op, given, place)  # type: ignore[arg-type]  # none is None
        except (RuntimeError, TypeError, NotImplementedError):
            return None


def _run(op: Op, given: Mapping[int, torch.Tensor], place: int) -> torch.Tensor | None:
    """Run an operation on other tensors than it ran on, without devices and float types."""
    kwargs = {name: value for name, value in op.kwargs.items() if name not in _PLACES}
    if any(not t.is_floating_point() for t in given.values()):
        kwargs.pop("dtype", None)
    made = called(op, given, kwargs)
    found = made[place] if isinstance(made, (tuple, list)) else made
    return found if isinstance(found, torch.Tensor) else None


def _moved(op: Op, given: Mapping[int, torch.Tensor], place: int) -> torch.Tensor | None:
    """Move labels; what is no element of a parameter is labelled -1."""
    labels = {v: _unlabelled(t) if t.is_floating_point() else t for v, t in given.items()}
    if op.name in ("view", "_unsafe_view"):  # perhaps of a copy, whose order is its own
        labels = {v: t.contiguous() for v, t in labels.items()}
    return _run(op, labels, place)


def _unlabelled(constant: torch.Tensor) -> torch.Tensor:
    """Label a constant: zeros are zeros anywhere, anything else is not known to be."""
    return torch.where(constant == 0, ZERO, UNKNOWN)


def _selected(
    op: Op, given: Mapping[int, torch.Tensor], place: int, leaves: Callable[[int], tuple[str, ...]]
) -> torch.Tensor | None:
    """Find out by trial whether an operation only selects, as a resizing to the same size does."""

    def tried(code: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
        # 0 is what paddings and masks put in: it stands for no element.
        return _run(op, {v: code(t.double() + 1) if leaves(v) else t for v, t in given.items()}, place)

    plain, mixed = tried(lambda label: label), tried(_scattered)
    if plain is None or mixed is None or not plain.is_floating_point() or plain.numel() == 0:
        return None
    labels = plain.round()
    if (plain - labels).abs().max() > 1e-3 or (_scattered(labels) - mixed).abs().max() > 1e-2:
        return None
    return labels.long() - 1 if labels.min() >= 0 else None


def _scattered(label: torch.Tensor) -> torch.Tensor:
    """Map numbers to others in a way that no sum or product of them keeps."""
    return torch.sin(label * 12.9898) * 4375.85


def called(op: Op, given: Mapping[int, torch.Tensor], kwargs: Mapping[str, object]) -> object:
    """Run a recorded operation on other tensors.

    Args:
        op: the operation.
        given: what to put in the place of its values.
        kwargs: its keyword arguments.

    Returns:
        What it gives.
    """
    run: Callable[..., object] | None = op.func
    assert run is not None
    args, named = tree_map_only(Ref, lambda ref: given[ref.value], (op.args, dict(kwargs)))
    return run(*args, **named)

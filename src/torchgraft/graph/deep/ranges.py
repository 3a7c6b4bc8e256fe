"""Rules for operations that cut, join, copy and pad: what of an axis stays, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import cast

import attrs
import torch

from torchgraft.graph.deep.atoms import CHANNEL, TOKENS, Atom, Axes, Axis, resized, size, unknown
from torchgraft.graph.deep.record import Op, Ref


@attrs.frozen(eq=False)
class Known:
    """Look up what is known of the arguments of an operation.

    Args:
        axes: the axes of the values that come from the input.
        shapes: the shapes of all values.
    """

    axes: Mapping[int, Axes]
    shapes: Sequence[torch.Size]

    def of(self, argument: object) -> Axes | None:
        """Return the axes of an argument; ``None`` for what does not come from the input."""
        return self.axes.get(argument.value) if isinstance(argument, Ref) else None

    def first(self, op: Op) -> Axes:
        """Return the axes of the one value that an operation takes."""
        return self.axes[cast("Ref", op.args[0]).value]

    def side(self, argument: object, place: int) -> int:
        """Return the size of an axis of an argument."""
        return self.shapes[cast("Ref", argument).value][place]


def number_of(op: Op, place: int, default: int = 0) -> int:
    """Return a number among the arguments of an operation."""
    given = op.args[place] if place < len(op.args) else None
    return given if isinstance(given, int) else default


def slice_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow a range of an axis; one with gaps takes places further apart."""
    axes = known.first(op)
    place, first = number_of(op, 1) % len(axes), number_of(op, 2)
    axis, side, step = axes[place], shape[place], number_of(op, 4, 1)
    first = first + size(axis) if first < 0 else first
    new = cut(axis, first, side) if step == 1 else None
    if new is None and len(axis) == 1 and axis[0].is_place:
        new = (resized(axis[0], side, Fraction(step)),)
    return (*axes[:place], _or_unknown(new, side), *axes[place + 1 :])


def split_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:
    """Follow an axis that is cut into ranges."""
    axes = known.first(op)
    sizes, place = op.args[1], number_of(op, 2) % len(axes)
    first = (
        sum(cast("tuple[int, ...]", sizes)[:number])
        if isinstance(sizes, tuple)
        else number * cast("int", sizes)
    )
    side = shape[place]
    return (*axes[:place], _or_unknown(cut(axes[place], first, side), side), *axes[place + 1 :])


def cut(axis: Axis, first: int, side: int) -> Axis | None:
    """Return a range of an axis, where it is known what that counts."""
    if size(axis) == side:
        return axis
    if len(axis) != 1:
        return None
    (atom,) = axis
    if atom.kind == CHANNEL:
        return (Atom(CHANNEL, side),)
    if atom.kind == TOKENS:
        before = atom.before - first
        if before == 0 and side == size(atom.parts):
            return atom.parts
        if before >= 0 and side >= before + size(atom.parts):
            return (Atom(TOKENS, side, parts=atom.parts, before=before),)
    return None


def cat_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow values joined along an axis: more channels, or tokens beside those of a map."""
    parts = [known.of(part) for part in cast("tuple[object, ...]", op.args[0])]
    told = [axes for axes in parts if axes is not None and len(axes) == len(shape)]
    if not told:
        return None
    place = number_of(op, 1) % len(shape)
    joined = [axes[place] for axes in told]
    maps = [i for i, axis in enumerate(joined) if [a.kind for a in axis] in (["h", "w"], [TOKENS])]
    new: Axis | None = None
    if all(len(axis) == 1 and axis[0].kind == CHANNEL for axis in joined):
        new = (Atom(CHANNEL, shape[place]),)
    elif len(maps) == 1:
        axis = joined[maps[0]]
        ahead = cast("tuple[object, ...]", op.args[0])[: parts.index(told[maps[0]])]
        before = sum(known.side(part, place) for part in ahead)
        tokens = axis[0].kind == TOKENS
        new = (
            Atom(
                TOKENS, shape[place],
                parts=axis[0].parts if tokens else axis,
                before=before + (axis[0].before if tokens else 0),
            ),
        )  # fmt: skip
    rest = max(told, key=lambda axes: sum(len(axis) for axis in axes))
    return (*rest[:place], _or_unknown(new, shape[place]), *rest[place + 1 :])


def stack_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow values joined along a new axis."""
    parts = [known.of(part) for part in cast("tuple[object, ...]", op.args[0])]
    axes = next(part for part in parts if part is not None)
    place = number_of(op, 1) % len(shape)
    return (*axes[:place], unknown(shape[place]), *axes[place:])


def gather_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow what picks by a list of places: along that axis the order is anybody's guess."""
    axes = known.of(op.args[0])
    places = [number_of(op, 1)]
    if isinstance(op.args[1], tuple):
        places = [place for place, index in enumerate(op.args[1]) if index is not None]
    if axes is None or len(axes) != len(shape) or len(places) > 1:
        return tuple(map(unknown, shape))
    place = places[0] % len(axes)
    channels = [atom.kind for atom in axes[place]] == [CHANNEL]
    return (
        *axes[:place],
        (Atom(CHANNEL, shape[place]),) if channels else unknown(shape[place]),
        *axes[place + 1 :],
    )


def expand_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow copies along axes that had one place, and along new ones in front."""
    axes = known.first(op)
    new = len(shape) - len(axes)
    kept = [a if size(a) == side else unknown(side) for a, side in zip(axes, shape[new:], strict=True)]
    return (*map(unknown, shape[:new]), *kept)


def pad_rule(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow padding, which leaves places as far apart as they were."""
    axes = known.first(op)
    return tuple(
        (resized(axis[0], side, Fraction(1)),) if size(axis) != side and len(axis) == 1 and axis[0].is_place
        else _or_unknown(axis if size(axis) == side else None, side)
        for axis, side in zip(axes, shape, strict=True)
    )  # fmt: skip


def _or_unknown(axis: Axis | None, side: int) -> Axis:
    return unknown(side) if axis is None else axis

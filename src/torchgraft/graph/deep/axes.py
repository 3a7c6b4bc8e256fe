"""Follow the axes of every value from the input of a model through its operations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import attrs
import torch

from torchgraft.graph.deep.atoms import (
    BATCH,
    CHANNEL,
    HEIGHT,
    OTHER,
    TOKENS,
    WIDTH,
    Atom,
    Axes,
    Axis,
    resized,
    size,
    unknown,
)
from torchgraft.graph.deep.ranges import Known
from torchgraft.graph.deep.record import Record
from torchgraft.graph.deep.rules import RULES


@attrs.frozen
class Layout:
    """Say how a value is laid out.

    Args:
        name: ``NCHW``, ``NHWC``, ``NLC`` or ``NCL`` for tokens, ``NC``.
        channels: number of channels.
        grid: places of the map along height and width; ``None`` for a vector.
        stride: pixels of the input for each place, along height and width; ``None`` for a vector,
            and for a map that is finer than the image.
        prefix: tokens before those of the map.
        order: what the places of the tokens count, outermost first (axis, number, stride), where they do
            not run row by row.
    """

    name: str
    channels: int
    grid: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    prefix: int = 0
    order: tuple[tuple[str, int, int], ...] = ()


def follow(
    record: Record, given: Mapping[int, Axes] | None = None, images: Sequence[Axes] = ()
) -> dict[int, Axes]:
    """Find the axes of every value that comes from the input.

    Args:
        record: a run of a model on images.
        given: the axes of what is known beforehand; those of the inputs, taken as images, by default.
        images: the axes of the images, where they are none of these.

    Returns:
        The axes by value; what does not depend on the input is left out.
    """
    known = dict(given) if given is not None else {v: _given(record.shapes[v]) for v in record.inputs}
    held = Known(known, record.shapes)
    image = max(images or known.values(), key=len, default=())
    for op in record.ops:
        if known.keys().isdisjoint(op.inputs):
            continue
        rule = RULES.get(op.name)
        for number, value in enumerate(op.outputs):
            shape = record.shapes[value]
            axes = rule(op, held, shape, number) if rule else None
            if axes is None or len(axes) != len(shape):
                axes = _alike([known[v] for v in op.inputs if v in known], shape)
            axes = tuple(a if size(a) == side else unknown(side) for a, side in zip(axes, shape, strict=True))
            if op.name == "convolution" and len(axes) == len(image) == 4:
                axes = _grounded(axes, image)
            known[value] = axes
    return known


def layout_of(axes: Axes) -> Layout | None:
    """Name the layout that the axes of a value make; ``None`` where it is no usual one."""
    if len(axes) < 2 or [atom.kind for atom in axes[0]] != [BATCH]:
        return None
    if len(axes) == 2:
        return Layout("NC", size(axes[1]))
    placed = [i for i, axis in enumerate(axes) if any(a.is_place or a.kind == TOKENS for a in axis)]
    if len(axes) == 4 and placed in ([2, 3], [1, 2]):
        high, wide = _side(axes[placed[0]], HEIGHT), _side(axes[placed[1]], WIDTH)
        channels, name = (axes[1], "NCHW") if placed == [2, 3] else (axes[3], "NHWC")
        return Layout(name, size(channels), *_map(high, wide)) if high and wide else None
    if len(axes) == 3 and len(placed) == 1:
        axis, channels = axes[placed[0]], axes[3 - placed[0]]
        before = axis[0].before if axis[0].kind == TOKENS else 0
        parts = axis[0].parts if axis[0].kind == TOKENS and len(axis) == 1 else axis
        high, wide = (_side([a for a in parts if a.kind == kind], kind) for kind in (HEIGHT, WIDTH))
        if high and wide and size(parts) == high[0] * wide[0]:
            usual = [atom.kind for atom in parts] == [HEIGHT, WIDTH]
            order = () if usual else tuple((atom.kind, atom.size, int(atom.step)) for atom in parts)
            name = "NLC" if placed == [1] else "NCL"
            return Layout(name, size(channels), *_map(high, wide), before, order)
    return None


def has_places(axes: Axes) -> bool:
    """Tell whether an axis counts places of a map, in whatever order."""
    return any(atom.kind in _PLACES for axis in axes for atom in axis)


_PLACES = (HEIGHT, WIDTH, TOKENS)


def _side(axis: Sequence[Atom], kind: str) -> tuple[int, Fraction] | None:
    """Return how many places there are and how far apart; ``None`` where they are no whole side."""
    if not axis or any(atom.kind != kind for atom in axis):
        return None
    parts = sorted(axis, key=lambda atom: atom.step, reverse=True)
    for outer, inner in itertools.pairwise(parts):
        if outer.step != inner.step * inner.size:
            return None
    return size(tuple(axis)), parts[-1].step


def _map(
    high: tuple[int, Fraction], wide: tuple[int, Fraction]
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    finer = high[1] < 1 or wide[1] < 1
    return (high[0], wide[0]), None if finer else (round(high[1]), round(wide[1]))


def _grounded(axes: Axes, image: Axes) -> Axes:
    """Say what the axes of a map are that a convolution gives, where they were lost on the way."""
    found = list(axes)
    if size(axes[0]) == size(image[0]):
        found[0] = image[0]
    for place in (2, 3):
        side, whole = size(axes[place]), image[place][0]
        if side > 1 and all(atom.kind == OTHER for atom in axes[place]):
            found[place] = (Atom(whole.kind, side, Fraction(round(whole.size / side) or 1)),)
    return tuple(found)


def _given(shape: torch.Size) -> Axes:
    kinds = {4: (CHANNEL, HEIGHT, WIDTH), 5: (CHANNEL, OTHER, HEIGHT, WIDTH), 2: (CHANNEL,)}
    named = kinds.get(len(shape), (OTHER,) * (len(shape) - 1))
    return tuple((Atom(kind, side),) for kind, side in zip((BATCH, *named), shape, strict=False))


def _alike(sources: Sequence[Axes], shape: torch.Size) -> Axes:
    """Take each axis from a source that has it, or has one there that became longer or shorter."""
    found: list[Axis] = []
    for place in range(-len(shape), 0):
        side = shape[place]
        there = [axes[place] for axes in sources if len(axes) >= -place]
        same = [axis for axis in there if size(axis) == side and axis]
        single = [axis[0] for axis in there if len(axis) == 1]
        if same:
            found.append(min(same, key=_vagueness))
        elif side > 1 and single and single[0].kind == CHANNEL:
            found.append((Atom(CHANNEL, side),))
        elif single and single[0].is_place:
            found.append((resized(single[0], side),))
        else:
            found.append(unknown(side))
    return tuple(found)


def _vagueness(axis: Axis) -> tuple[bool, ...]:
    """Rank what is known of an axis: places before channels, whole atoms before parts."""
    return (
        any(atom.kind == OTHER for atom in axis),
        any(atom.whole is not None and not atom.is_place for atom in axis),
        not has_places((axis,)),
        any(atom.kind == BATCH for atom in axis) and len(axis) > 1,
        any(atom.step.denominator > 1 for atom in axis),
    )

"""Read a part off the places that its elements come from: digits of a mixed radix, and their strides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import torch

from torchgraft.alignment.entry import Part, Shape

Digits = list[tuple[int, int]]


@attrs.frozen
class Taken:
    """A part, and how it has to be seen and turned to give the elements in order.

    Args:
        part: the part.
        view: shape to see it in; empty where its order is right already.
        axes: order of the axes then.
    """

    part: Part
    view: Shape = ()
    axes: tuple[int, ...] = ()


def digits_of(where: torch.Tensor) -> tuple[Digits, int]:
    """Split a count into digits, so that each place is the first plus digits times strides.

    Args:
        where: places, in the order of the elements.

    Returns:
        Size and stride of each digit, the slowest first; and how many beginnings are left
        that no further digit describes: 1 where the digits tell all.

    Example:
        >>> digits_of(torch.arange(6).view(2, 3).t().reshape(-1))
        ([(3, 1), (2, 3)], 1)
    """
    digits: Digits = []
    while len(where) > 1:
        step = int(where[1] - where[0])
        breaks = (where.diff() != step).nonzero().flatten() + 1
        size = int(breaks[0]) if len(breaks) else len(where)
        if step <= 0 or size < 2 or len(where) % size or bool((breaks % size).any()):
            break
        digits.insert(0, (size, step))
        where = where[::size]
    return digits, len(where)


def taken(key: str, shape: Shape, start: int, digits: Digits) -> Taken | None:
    """Describe elements of one tensor by a view, an order of its axes and rows of the first.

    Args:
        key: name of the tensor.
        shape: shape of the tensor.
        start: place of the first element.
        digits: size and stride of each digit of the count, the slowest first.

    Returns:
        The part; ``None`` where more than one axis would have to be cut.
    """
    view: list[int] = []  # from the fastest axis of the tensor to the slowest
    of: list[tuple[int, int]] = []  # digit that an axis counts, and its place within that digit
    cut: tuple[int, int] | None = None
    cut_at = -1
    order = sorted(enumerate(digits), key=lambda item: item[1][1])
    if not order or order[0][1][1] != 1:  # only every so many elements: the rest is cut away
        order.insert(0, (len(digits), (1, 1)))
    ends = [stride for _, (_, stride) in order[1:]] + [math.prod(shape)]
    for (index, (size, stride)), end in zip(order, ends, strict=True):
        extent, off = end // stride, start // stride % (end // stride or 1)
        if end % stride or off + size > extent:
            return None
        whole = size if size == extent else math.gcd(size, extent, off)
        if whole > 1 or size == extent:
            view.append(whole)
            of.append((index, 1))
        if size != extent:
            if cut is not None:
                return None
            cut, cut_at = (off // whole, (off + size) // whole), len(view)
            view.append(extent // whole)
            of.append((index, 0))
    view, of = view[::-1], of[::-1]
    wanted = sorted(range(len(view)), key=of.__getitem__)
    if cut is None:
        return Taken(_part(key, shape, view, wanted, None))
    first = len(view) - 1 - cut_at
    axes = [first, *(axis for axis in wanted if axis != first)]
    part = _part(key, shape, view, axes, cut)
    if cut[1] - cut[0] == 1 or axes == wanted:  # an axis of size 1 may stand anywhere
        return Taken(part)
    sizes = tuple(cut[1] - cut[0] if axis == first else view[axis] for axis in axes)
    return Taken(part, sizes, tuple(axes.index(axis) for axis in wanted))


def _part(
    key: str, shape: Shape, view: Sequence[int], axes: Sequence[int], rows: tuple[int, int] | None
) -> Part:
    """Write a part in the tensor's own shape where that can be, for readers."""
    if list(axes) == sorted(axes):
        if rows is None:
            return Part(key)
        row = math.prod(shape[1:])
        start, stop = (place * math.prod(view[1:]) for place in rows)
        if row and start % row == 0 and stop % row == 0:
            return Part(key, rows=(start // row, stop // row))
        return Part(key, tuple(view), rows=rows)
    fixed = axes[0] if rows is not None else -1
    finer, turned = refined(view, axes, shape, fixed)
    return Part(key, () if finer == shape else finer, turned, rows)


def refined(
    view: Sequence[int], axes: Sequence[int], shape: Shape, fixed: int = -1
) -> tuple[Shape, tuple[int, ...]]:
    """Split the axes of a view where a shape has its own, and order the pieces alike.

    Args:
        view: sizes.
        axes: order of the axes.
        shape: a shape of as many elements.
        fixed: an axis to leave as it is.

    Returns:
        The finer view and the order of its axes; the same where the two do not nest.

    Example:
        >>> refined((2, 3, 20), (1, 0, 2), (30, 4))
        ((2, 3, 5, 4), (1, 0, 2, 3))
    """
    marks = {math.prod(shape[axis:]) for axis in range(1, len(shape))}
    pieces: list[Shape] = []
    for axis, size in enumerate(view):
        unit = math.prod(view[axis + 1 :])
        inner = sorted({unit, size * unit} | {m for m in marks if unit < m < size * unit}, reverse=True)
        splits = [outer // below for outer, below in itertools.pairwise(inner)]
        nests = all(outer % below == 0 for outer, below in itertools.pairwise(inner))
        pieces.append(tuple(splits) if nests and axis != fixed and size > 1 else (size,))
    starts = [0, *itertools.accumulate(map(len, pieces))]
    turned = tuple(at for axis in axes for at in range(starts[axis], starts[axis + 1]))
    return tuple(size for piece in pieces for size in piece), turned

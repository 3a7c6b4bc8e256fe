"""What primitive operations do to the axes of the values they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import cast

from torchgraft.graph.deep.atoms import BATCH, CHANNEL, Atom, Axes, reshaped, resized, size, unknown
from torchgraft.graph.deep.ranges import (
    Known,
    cat_rule,
    expand_rule,
    gather_rule,
    number_of,
    pad_rule,
    slice_rule,
    split_rule,
    stack_rule,
)
from torchgraft.graph.deep.record import Op

_LARGEST = 4
"""The largest step that pooling to a smaller map takes; what steps further sums a map up."""

Rule = Callable[[Op, Known, Sequence[int], int], Axes | None]


def _reshape(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    return reshaped(known.first(op), shape)


def _permute(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    axes = known.first(op)
    return tuple(axes[place] for place in cast("tuple[int, ...]", op.args[1]))


def _transpose(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    axes = list(known.first(op))
    if len(axes) < 2:
        return None
    one, other = cast("tuple[int, int]", op.args[1:3]) if len(op.args) > 2 else (0, 1)
    axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


def _window(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow a convolution or pooling, whose stride says how far places lie apart."""
    axes = known.of(op.args[0])
    if axes is None or len(axes) != len(shape):
        return None
    rank, convolves = len(shape) - 2, op.name == "convolution"
    steps = cast("tuple[int, ...]", op.args[3] if convolves else (op.args[2:3] or ((),))[0] or op.args[1])
    steps = steps * rank if len(steps) == 1 else steps
    over = convolves and bool(op.args[6])
    found = []
    for axis, side, step in zip(axes[2:], shape[2:], steps, strict=False):
        ratio = Fraction(1, step) if over else Fraction(step)
        if size(axis) == side and step == 1:
            found.append(axis)
        elif len(axis) != 1 or (side == 1 and (step == 1 or step > _LARGEST)):  # what covers a map ends it
            found.append(unknown(side))
        else:
            found.append((resized(axis[0], side, ratio),))
    channels = axes[1]
    if convolves:
        channels = (Atom(CHANNEL, shape[1]),)
        samples = axes[1][0] if axes[1] else None
        if samples is not None and samples.kind == BATCH and shape[1] % samples.size == 0:
            # Samples as groups: each is convolved with kernels of its own.
            channels = (samples, Atom(CHANNEL, shape[1] // samples.size))
    return (axes[0], channels, *found)


def _select(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    axes, place = known.first(op), number_of(op, 1)
    return tuple(a for i, a in enumerate(axes) if i != place % len(axes))


def _reduce(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    axes = known.first(op)
    dims = op.args[1] if len(op.args) > 1 else ()
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple):
        return None
    gone = {dim % len(axes) for dim in cast("tuple[int, ...]", dims)}
    kept = [() if i in gone else axis for i, axis in enumerate(axes)]
    return tuple(axis for i, axis in enumerate(kept) if len(shape) == len(axes) or i not in gone)


def _product(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow a matrix product: rows from the left, columns from the right."""
    left, right = (known.of(argument) for argument in op.args[-2:])
    rows = left[:-1] if left is not None else tuple(map(unknown, shape[:-1]))
    if left is None and right is not None and len(right) == len(shape) == 3:
        rows = (right[0], (Atom(CHANNEL, shape[-2]),))
    columns = right[-1] if right is not None else (Atom(CHANNEL, shape[-1]),)
    return (*rows, columns)


def _patches(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow an unfolding into patches: ``n c h w`` to ``n (c kernel) l``."""
    axes = known.first(op)
    kernel, dilation, padding, stride = cast("tuple[tuple[int, int], ...]", op.args[1:5])
    if len(axes) != 4 or any(len(axis) != 1 for axis in axes[2:]):
        return None
    grid = []
    for i, axis in enumerate(axes[2:]):
        side = (axis[0].size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        grid.append(resized(axis[0], side, Fraction(stride[i])))
    return axes[0], (Atom(CHANNEL, shape[1]),), tuple(grid)


def _unpatched(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    axes = known.first(op)
    if len(axes) != 3 or len(axes[2]) != 2:
        return None
    high, wide = (resized(atom, side) for atom, side in zip(axes[2], shape[2:], strict=True))
    return axes[0], (Atom(CHANNEL, shape[1]),), (high,), (wide,)


def _unshuffled(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow squares of places that become channels: ``n c (h r) (w r)`` to ``n (c r r) h w``."""
    axes = known.first(op)
    if len(axes) != 4:
        return None
    step, (samples, _, high, wide) = number_of(op, 1), shape
    apart = reshaped(axes, (samples, size(axes[1]), high, step, wide, step))
    return reshaped([apart[place] for place in (0, 1, 3, 5, 2, 4)], shape)


def _shuffled(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow channels that become squares of places: ``n (c r r) h w`` to ``n c (h r) (w r)``."""
    axes = known.first(op)
    if len(axes) != 4:
        return None
    ratio = Fraction(1, number_of(op, 1))
    sides = [
        (resized(axis[0], side, ratio),) if len(axis) == 1 and axis[0].is_place else unknown(side)
        for axis, side in zip(axes[2:], shape[2:], strict=True)
    ]
    return axes[0], (Atom(CHANNEL, shape[1]),), *sides


def _scaled(op: Op, known: Known, shape: Sequence[int], number: int) -> Axes | None:  # noqa: ARG001 - a rule
    """Follow a resizing, by whatever ratio."""
    axes = known.first(op)
    sides = [
        axis if size(axis) == side else (resized(axis[0], side, Fraction(axis[0].size, side)),)
        for axis, side in zip(axes[2:], shape[2:], strict=True)
        if len(axis) == 1 and side > 1
    ]
    return (*axes[:2], *sides)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_copy"), _reshape),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("convolution", "max_pool2d_with_indices", "avg_pool2d"), _window),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "logsumexp", "var", "argmax"), _reduce),
    "slice": slice_rule,
    **dict.fromkeys(("split", "split_with_sizes"), split_rule),
    "cat": cat_rule,
    "stack": stack_rule,
    **dict.fromkeys(("expand", "repeat"), expand_rule),
    **dict.fromkeys(("index", "index_select", "gather"), gather_rule),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), pad_rule),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(
        (
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ),
        _scaled,
    ),
    "pixel_unshuffle": _unshuffled,
    "pixel_shuffle": _shuffled,
    "im2col": _patches,
    "col2im": _unpatched,
}

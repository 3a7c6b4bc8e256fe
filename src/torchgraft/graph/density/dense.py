"""What the graph of a dilated model calls: maps that are denser than those of the original.

A map of density ``d`` holds the places of the original at ``[..., ::d, ::d]``, and others in
between. An original of ``l`` places has between ``d * (l - 1) + 1`` and ``d * l`` of them.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

Spec = tuple[int, int, int, int, int, int]
"""Kernel, stride, padding (-1 for "same") and dilation in the original; density of the input, step now."""


def missing(length: int, spec: Spec, ceil: bool) -> int:
    """Count the places that an axis lacks at its end, so that no window of the original is lost.

    Args:
        length: places of the dense input.
        spec: the windows along this axis.
        ceil: whether the original has windows that begin inside and end outside.

    Returns:
        The number, which is 0 for most layers.
    """
    kernel, stride, padding, dilation, density, step = spec
    if padding < 0:
        return offset(length, spec)
    original = -(-length // density)
    span = dilation * (kernel - 1) - 2 * padding
    count = (-((span + 1 - original) // stride) if ceil else (original - span - 1) // stride) + 1
    if ceil and (count - 1) * stride >= original + padding:
        count -= 1  # a window has to begin inside
    natural = (length - density * span - 1) // step + 1
    # Windows that tile the map divide its size by the stride: the dense map keeps its size.
    liked = -(-length // step) if kernel == stride and not padding else natural
    dense = density * stride // step
    wanted = max(natural, min(max(liked, dense * (count - 1) + 1), dense * count))
    return max(0, (wanted - 1) * step + 1 + density * span - length)


def offset(length: int, spec: Spec) -> int:
    """Count the places at the start of a dense output before the first one of the original.

    Padding to "same" depends on the size where there is a stride, and on nothing without one.

    Args:
        length: places of the dense input.
        spec: the windows along this axis.
    """
    kernel, stride, _, dilation, density, _ = spec
    original, span = -(-length // density), dilation * (kernel - 1)
    padded = max((-(-original // stride) - 1) * stride + span + 1 - original, 0)
    return density * span // 2 - density * (padded // 2)


@fx.wrap
def widen(x: torch.Tensor, rows: Spec, columns: Spec, ceil: bool, value: float, padded: bool) -> torch.Tensor:
    """Add the places to ``n c h w`` that a dense convolution or pooling lacks at the ends.

    Args:
        x: a dense map.
        rows: the windows along the height.
        columns: the windows along the width.
        ceil: whether the original has windows that begin inside and end outside.
        value: what to add.
        padded: also add the padding, because the layer cannot.
    """
    return F.pad(x, _ends(x, rows, columns, ceil, padded), value=value)


def _ends(x: torch.Tensor, rows: Spec, columns: Spec, ceil: bool, padded: bool) -> list[int]:
    ends: list[int] = []
    for axis, spec in ((-1, columns), (-2, rows)):
        side = spec[2] * spec[4] if padded else 0
        ends += [side, side + missing(x.shape[axis], spec, ceil)]
    return ends


@fx.wrap
def trim(y: torch.Tensor, x: torch.Tensor, rows: Spec, columns: Spec) -> torch.Tensor:
    """Take off what "same" padding puts before the first place of the original.

    Args:
        y: what the layer gave.
        x: what came in, before it was widened.
        rows: the windows along the height.
        columns: the windows along the width.
    """
    return y[..., offset(x.shape[-2], rows) :, offset(x.shape[-1], columns) :]


@fx.wrap
def average(
    x: torch.Tensor, rows: Spec, columns: Spec, ceil: bool, count_padding: bool, divisor: int | None
) -> torch.Tensor:
    """Pool ``n c h w`` to averages of places that lie apart, which torch's own pooling cannot.

    Args:
        x: a dense map.
        rows: the windows along the height.
        columns: the windows along the width.
        ceil: whether the original has windows that begin inside and end outside.
        count_padding: whether padding counts as places that are zero.
        divisor: what to divide sums by; ``None`` for the number of places.
    """
    sides = [spec[2] * spec[4] for spec in (columns, columns, rows, rows)]
    ends = _ends(x, rows, columns, ceil, padded=True)
    steps, apart = (rows[5], columns[5]), (rows[3] * rows[4], columns[3] * columns[4])
    window = x.new_ones(1, 1, rows[0], columns[0])
    sums = F.conv2d(F.pad(x, ends), window.expand(x.shape[1], -1, -1, -1), None, steps, 0, apart, x.shape[1])
    if divisor is not None:
        return sums / divisor
    places = F.pad(x.new_ones(1, 1, *x.shape[-2:]), sides, value=float(count_padding))
    more = [end - side for end, side in zip(ends, sides, strict=True)]
    counts = F.conv2d(F.pad(places, more), window, None, steps, 0, apart)
    return sums / counts.clamp(min=1)


@fx.wrap
def split(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Take ``n c h w`` apart into maps of the original's density, one for each offset.

    Returns:
        ``(rows columns n) c h w``; the first ``n`` are the original's.
    """
    n, c, height, width = x.shape
    x = F.pad(x, (0, -width % columns, 0, -height % rows))
    x = x.reshape(n, c, x.shape[2] // rows, rows, x.shape[3] // columns, columns)
    return x.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)


@fx.wrap
def join(y: torch.Tensor, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put together what ``split`` took apart, to the size of ``x``."""
    y = y.reshape(rows, columns, x.shape[0], *y.shape[1:]).permute(2, 3, 4, 0, 5, 1)
    return y.flatten(4, 5).flatten(2, 3)[..., : x.shape[2], : x.shape[3]]

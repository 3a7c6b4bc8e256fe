"""What the graph of a dilated model calls: dense maps taken apart into those of the original.

A map of density ``d`` holds the places of the original at ``[..., ::d, ::d]``, and others in
between. An original of ``l`` places has between ``d * (l - 1) + 1`` and ``d * l`` of them.
What works on whole samples gets one sample for each offset of the places that it shall give;
those of the first offset are the original's.
"""

from __future__ import annotations

import torch
from torch import fx

Side = tuple[int, int, int, int, int]
"""An axis before and after a step, the density before and after it, and the stride that it keeps."""


@fx.wrap
def take_apart(x: torch.Tensor, *sides: Side) -> torch.Tensor:
    """Turn a dense map into samples of the original's density, one for each offset.

    Args:
        x: a dense map, samples first.
        sides: its height and width.

    Returns:
        ``(offsets n) ...``; the first ``n`` samples are the original's.
    """
    for axis, _, before, after, step in sides:
        starts = torch.arange(after, device=x.device)[:, None] * step
        places = starts + torch.arange(-(-x.shape[axis] // before), device=x.device) * before
        picked = x.index_select(axis, places.clamp(max=x.shape[axis] - 1).flatten())
        x = torch.unflatten(picked, axis, (after, -1)).movedim(axis, 0).flatten(0, 1)
    return x


@fx.wrap
def take_original(x: torch.Tensor, *cuts: tuple[int, int]) -> torch.Tensor:
    """Return the places of a dense map that the original had.

    Args:
        x: a dense map.
        cuts: its height and width, each with the density.
    """
    for axis, density in cuts:  # no slice, which would be taken for a stride of the model
        x = x.index_select(axis, torch.arange(0, x.shape[axis], density, device=x.device))
    return x


@fx.wrap
def put_together(y: torch.Tensor, x: torch.Tensor, *sides: Side) -> torch.Tensor:
    """Turn what a step made of the samples of ``take_apart`` into a dense map.

    Args:
        y: what the step gave.
        x: the map that was taken apart.
        sides: its height and width.
    """
    for before_axis, axis, before, after, step in reversed(sides):
        length, count = x.shape[before_axis], y.shape[axis]
        y = torch.unflatten(y, 0, (after, -1)).movedim(0, axis + 1).flatten(axis, axis + 1)
        if (before, 1) == (after, step):
            size = length - before * (-(-length // before) - count)
        else:  # as a convolution that pads to the same size would have it
            size = min(after * count, max(after * (count - 1) + 1, -(-length // step)))
        y = y.narrow(axis, 0, size)
    return y

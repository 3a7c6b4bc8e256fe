"""Turn maps to ``n c h w``, as steps that a graph can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import fx

from torchgraft.errors import SpecialisedError

Pair = tuple[float, float]
Part = tuple[str, int, int]


@attrs.frozen
class Turn:
    """What is done to a value so that it is a map.

    Args:
        order: the axes in their new order; tokens become ``n l c``.
        prefix: number of tokens before those of the grid; ``None`` for a map.
        stride: places of the image for each token, down and across.
        parts: what the tokens count, outermost first (axis, number, stride), where they do not run
            row by row.
    """

    order: tuple[int, ...]
    prefix: int | None = None
    stride: Pair = (1, 1)
    parts: tuple[Part, ...] = ()

    def put(self, value: fx.Node, image: fx.Node | None) -> fx.Node:
        """Do it to the value of a node, right behind it."""
        if self.order != tuple(range(len(self.order))):
            with value.graph.inserting_after(value):
                value = value.graph.call_method("permute", (value, self.order))
        if self.prefix is None:
            return value
        with value.graph.inserting_after(value):
            if self.parts:
                return value.graph.call_function(gather, (value, self.prefix, self.parts))
            return value.graph.call_function(fold, (value, image, self.prefix, self.stride))


@fx.wrap
def fold(tokens: torch.Tensor, image: torch.Tensor, prefix: int, stride: Pair) -> torch.Tensor:
    """Lay tokens ``n l c`` out on their grid, ``n c h w``.

    Args:
        tokens: the tokens, row by row.
        image: what they were made from.
        prefix: number of tokens before those of the grid.
        stride: places of the image for each token, down and across.

    Returns:
        The map.

    Raises:
        SpecialisedError: the number of tokens is that of no grid on this image.
    """
    down, across = image.shape[-2] / stride[0], image.shape[-1] / stride[1]
    count = tokens.shape[1] - prefix
    for rounded in (math.floor, math.ceil):
        height, width = rounded(down), rounded(across)
        if height * width == count:
            return tokens[:, prefix:].transpose(1, 2).reshape(tokens.shape[0], -1, height, width)
    raise SpecialisedError(
        f"{count} tokens are no grid on an image of {image.shape[-2]}x{image.shape[-1]}",
        found=f"{math.floor(down)}x{math.floor(across)} places of {_said(stride)}",
        write='layout="native", which leaves tokens as they are',
    )


@fx.wrap
def gather(tokens: torch.Tensor, prefix: int, parts: Sequence[Part]) -> torch.Tensor:
    """Put tokens ``n l c`` that run unit by unit in their places on the grid, ``n c h w``.

    Args:
        tokens: the tokens.
        prefix: number of tokens before those of the grid.
        parts: what they count, outermost first (axis, number, stride).

    Returns:
        The map.

    Raises:
        SpecialisedError: there are more or fewer of them.
    """
    sizes = [number for _, number, _ in parts]
    if tokens.shape[1] - prefix != math.prod(sizes):
        raise SpecialisedError(
            f"{tokens.shape[1] - prefix} tokens are not the {math.prod(sizes)} that were measured",
            found=f"tokens in units of {' '.join(f'{axis}{number}' for axis, number, _ in parts)}",
            write='layout="native", which leaves tokens as they are',
        )
    split = tokens[:, prefix:].reshape(tokens.shape[0], *sizes, tokens.shape[2])
    coarse_first = sorted(range(len(parts)), key=lambda i: -parts[i][2])
    down, across = ([i + 1 for i in coarse_first if parts[i][0] == axis] for axis in "hw")
    placed = split.permute(0, len(parts) + 1, *down, *across)
    height = math.prod(parts[i - 1][1] for i in down)
    return placed.reshape(tokens.shape[0], tokens.shape[2], height, -1)


def _said(stride: Sequence[float]) -> str:
    return "x".join(f"{side:g}" for side in stride)

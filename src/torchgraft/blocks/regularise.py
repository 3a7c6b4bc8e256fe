"""Regularisers: what drops values in training and is the identity in evaluation."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary
from torchvision.ops import StochasticDepth, drop_block2d

from torchgraft.blocks.described import block
from torchgraft.blocks.options import Odd, Probability
from torchgraft.spec import TensorSpec


class DropBlock(nn.Module):
    """Drop squares of places in training, on maps of any size and in half precision too.

    Args:
        p: share of the values to drop.
        size: side of the squares, odd.
    """

    def __init__(self, p: float, size: int) -> None:
        super().__init__()
        self.p = p
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop squares of ``n c h w`` in training."""
        return drop_squares(x, self.p, self.size) if self.training else x

    def extra_repr(self) -> str:
        """Write the options."""
        return f"p={self.p}, size={self.size}"


def drop_squares(x: torch.Tensor, p: float, size: int) -> torch.Tensor:
    """Drop squares of a map and scale up what is left.

    Args:
        x: ``n c h w``.
        p: share of the values to drop.
        size: side of the squares, odd; less on a smaller map.

    Returns:
        The same shape.
    """
    if has_torch_function_unary(x):  # as torch's own functions do: one step to what traces it
        traced: torch.Tensor = handle_torch_function(drop_squares, (x,), x, p, size)
        return traced
    side = min(size, x.size(2), x.size(3))
    side -= 1 - side % 2  # torchvision cuts the size to that of the map and refuses it when even
    # It also sums as many ones as there are values, which is infinity in half precision.
    ones = torch.ones_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    kept: torch.Tensor = drop_block2d(ones, p, side)
    return x * kept.type_as(x)


@block(any_axis=True)
def dropout(site: TensorSpec, p: Probability = 0.5) -> nn.Module:  # noqa: ARG001 - the same everywhere
    """Describe dropout: zero values at random in training.

    Works on values of any layout. What is left is scaled up, so that the mean stays; the
    identity in evaluation.

    Args:
        site: the place.
        p: share of the values to drop.

    Example:
        >>> dropout(0.2)
        dropout(0.2)

    Source:
        Hinton et al., Improving neural networks by preventing co-adaptation of feature
        detectors, arXiv 1207.0580.
    """
    return nn.Dropout(p)


@block(maps=True)
def drop_block(site: TensorSpec, p: Probability = 0.1, size: Odd = 7) -> nn.Module:  # noqa: ARG001 - the same everywhere
    """Describe drop block: zero squares of a map at random in training.

    Works on ``n c h w`` and ``n h w c``. What is left is scaled up, so that the mean stays;
    the identity in evaluation. On a map smaller than the square, the square is as large as
    the map, or one less where that is even.

    Args:
        site: the place.
        p: share of the values to drop.
        size: side of the squares in places, odd.

    Example:
        >>> drop_block(0.1, 5)
        drop_block(0.1, 5)

    Source:
        Ghiasi et al., DropBlock: A regularization method for convolutional networks, arXiv
        1810.12890.
    """
    return DropBlock(p, size)


@block(any_axis=True)
def stochastic_depth(site: TensorSpec, p: Probability = 0.2) -> nn.Module:  # noqa: ARG001 - the same everywhere
    """Describe stochastic depth: zero all of a sample at random in training.

    Put it where a residual branch ends, before the sum. Works on values of any layout. What
    is left is scaled up, so that the mean stays; the identity in evaluation.

    Args:
        site: the place.
        p: share of the samples to drop.

    Example:
        >>> stochastic_depth(0.1)
        stochastic_depth(0.1)

    Source:
        Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """
    made: nn.Module = StochasticDepth(p, "row")
    return made

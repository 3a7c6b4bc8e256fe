"""Triplet attention."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate
from torchgraft.blocks.options import Odd
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class _Branch(nn.Module):
    """Make a gate from the maximum and the mean along one axis.

    Args:
        axis: the axis that is pooled: 1, 2 or 3.
        kernel: size of the convolution over the other two, odd.
        neutral: start with a gate of exactly one, without a batch norm.
    """

    def __init__(self, axis: int, kernel: int, *, neutral: bool) -> None:
        super().__init__()
        # A bias in front of a batch norm would never get a gradient.
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=neutral)
        self.norm = nn.Identity() if neutral else nn.BatchNorm2d(1)
        self.axis = axis
        self.neutral = neutral
        if neutral:
            zero(self.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gate of ``n c h w``, of size one along the pooled axis."""
        pooled = torch.cat([x.amax(self.axis, keepdim=True), x.mean(self.axis, keepdim=True)], self.axis)
        # Swapping keeps the other two axes as the paper has them: h takes the place of c, or w does.
        logits = self.norm(self.conv(pooled.transpose(1, self.axis))).transpose(1, self.axis)
        return gate(logits, neutral=self.neutral)


class TripletAttention(nn.Module):
    """Gate each value by the mean of three gates, one for each pair of axes.

    Args:
        kernel: size of the convolutions, odd.
        neutral: start with gates of exactly one, without batch norms.
    """

    def __init__(self, kernel: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.over_h = _Branch(2, kernel, neutral=neutral)
        self.over_w = _Branch(3, kernel, neutral=neutral)
        self.over_c = _Branch(1, kernel, neutral=neutral)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c h w`` value by value."""
        # The mean of three gates of one is one in any dtype; that of three products would round.
        mean: torch.Tensor = (self.over_h(x) + self.over_w(x) + self.over_c(x)) / 3
        return x * mean


@block(maps=True)
def triplet_attention(site: TensorSpec, *, kernel: Odd = 7, neutral: bool = True) -> nn.Module:  # noqa: ARG001 - its weights do not depend on the channels
    """Describe triplet attention: gate values by rows, columns and places, each with channels.

    Works on ``n c h w`` and ``n h w c``; adds ``6 kernel^2`` weights.

    Args:
        site: the place.
        kernel: size of the convolutions, odd.
        neutral: start with gates of exactly one: twice the sigmoid, the convolutions (side by
            side) zero. This form has a bias where the paper has a batch norm, so that the
            samples of a batch do not depend on each other, and a batch may be one map of one
            place. ``False`` gives the sigmoid and the batch norms of the paper, which refuse
            such a batch in training, and an ordinary initialisation.

    Example:
        >>> triplet_attention(kernel=3)
        triplet_attention(kernel=3)

    Source:
        Misra et al., Rotate to Attend: Convolutional Triplet Attention Module,
        arXiv 2010.03045.
    """
    return TripletAttention(kernel, neutral=neutral)

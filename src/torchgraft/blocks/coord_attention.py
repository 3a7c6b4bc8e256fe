"""Coordinate attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, squeezed
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class CoordAttention(nn.Module):
    """Gate rows and columns by a bottleneck over the means along the other axis.

    Args:
        channels: number of channels.
        squeeze: width of the bottleneck.
        neutral: start with gates of exactly one, without a batch norm.
    """

    def __init__(self, channels: int, squeeze: int, *, neutral: bool = True) -> None:
        super().__init__()
        # A bias in front of a batch norm would never get a gradient.
        self.conv = nn.Conv2d(channels, squeeze, 1, bias=neutral)
        self.norm = nn.Identity() if neutral else nn.BatchNorm2d(squeeze)
        self.conv_h = nn.Conv2d(squeeze, channels, 1)
        self.conv_w = nn.Conv2d(squeeze, channels, 1)
        self.neutral = neutral
        if neutral:
            zero(self.conv_h)
            zero(self.conv_w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c h w`` by row and by column."""
        rows = x.mean(3, keepdim=True)  # n c h 1
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # n c w 1
        both = F.hardswish(self.norm(self.conv(torch.cat([rows, columns], 2))))
        height = x.size(2)
        by_row = gate(self.conv_h(both[:, :, :height]), neutral=self.neutral)
        by_column = gate(self.conv_w(both[:, :, height:]), neutral=self.neutral).transpose(2, 3)
        return x * by_row * by_column


@block(maps=True)
def coord_attention(site: TensorSpec, *, reduction: Positive = 32, neutral: bool = True) -> nn.Module:
    """Describe coordinate attention: gate rows and columns, each channel on its own.

    Works on ``n c h w`` and ``n h w c`` of any height and width; adds ``3 c^2 / reduction``
    weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the bottleneck.
        neutral: start with gates of exactly one: twice the sigmoid, the last two layers (side
            by side) zero. This form has a bias where the paper has a batch norm, so that the
            samples of a batch do not depend on each other. ``False`` gives the sigmoid and the
            batch norm of the paper and an ordinary initialisation.

    Example:
        >>> coord_attention(reduction=16)
        coord_attention(reduction=16)

    Source:
        Hou et al., Coordinate Attention for Efficient Mobile Network Design, arXiv 2103.02907.
    """
    return CoordAttention(site.channels, squeezed(site.channels, reduction), neutral=neutral)

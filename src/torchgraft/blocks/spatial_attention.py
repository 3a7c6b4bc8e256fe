"""Spatial attention: the second half of the convolutional block attention module."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate
from torchgraft.blocks.options import Odd
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class SpatialAttention(nn.Module):
    """Gate each place by a convolution over the mean and the maximum of its channels.

    Args:
        kernel: size of the convolution, odd.
        neutral: start with a gate of exactly one.
    """

    def __init__(self, kernel: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.neutral = neutral
        if neutral:
            zero(self.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c h w`` by place."""
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * gate(self.conv(maps), neutral=self.neutral)


@block(maps=True)
def spatial_attention(site: TensorSpec, *, kernel: Odd = 7, neutral: bool = True) -> nn.Module:  # noqa: ARG001 - its weights do not depend on the channels
    """Describe the spatial half of CBAM: gate places by what their channels say.

    Works on ``n c h w`` and ``n h w c``; adds ``2 kernel^2`` weights.

    Args:
        site: the place.
        kernel: size of the convolution, odd.
        neutral: start with a gate of exactly one: twice the sigmoid, the convolution zero.
            ``False`` gives the sigmoid of the paper and an ordinary initialisation.

    Example:
        >>> spatial_attention(kernel=3)
        spatial_attention(kernel=3)

    Source:
        Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521, section 3.
    """
    return SpatialAttention(kernel, neutral=neutral)

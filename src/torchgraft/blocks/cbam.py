"""The convolutional block attention module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, squeezed
from torchgraft.blocks.options import Odd, Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class CBAM(nn.Module):
    """Gate channels, then places, by what their means and maxima say.

    Args:
        channels: number of channels.
        squeeze: width of the bottleneck of the channel gate.
        kernel: size of the convolution of the spatial gate, odd.
        neutral: start with gates of exactly one.
    """

    def __init__(self, channels: int, squeeze: int, kernel: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1, bias=False)
        self.fc2 = nn.Conv2d(squeeze, channels, 1, bias=False)
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.neutral = neutral
        if neutral:
            zero(self.fc2)
            zero(self.spatial)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c h w`` by channel, then by place."""
        mean, peak = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        logits = self.fc2(F.relu(self.fc1(mean))) + self.fc2(F.relu(self.fc1(peak)))
        x = x * gate(logits, neutral=self.neutral)
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * gate(self.spatial(maps), neutral=self.neutral)


@block(maps=True)
def cbam(site: TensorSpec, *, reduction: Positive = 16, kernel: Odd = 7, neutral: bool = True) -> nn.Module:
    """Describe the convolutional block attention module: gate channels, then places.

    Works on ``n c h w`` and ``n h w c``; adds ``2 c^2 / reduction + 2 kernel^2`` weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the bottleneck.
        kernel: size of the spatial convolution, odd.
        neutral: start with gates of exactly one: twice the sigmoid, the last layers zero.
            ``False`` gives the sigmoid and the initialisation of the paper.

    Example:
        >>> cbam(kernel=3)
        cbam(kernel=3)

    Source:
        Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521.
    """
    return CBAM(site.channels, squeezed(site.channels, reduction), kernel, neutral=neutral)

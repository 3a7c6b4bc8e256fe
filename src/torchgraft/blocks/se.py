"""Squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, spread, squeezed
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class SE(nn.Module):
    """Gate each channel by a bottleneck over the pooled channels.

    Args:
        channels: number of channels.
        squeeze: width of the bottleneck.
        neutral: start with a gate of exactly one.
    """

    def __init__(self, channels: int, squeeze: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.neutral = neutral
        if neutral:
            zero(self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` by channel."""
        places = x.unsqueeze(-1).flatten(2).unsqueeze(-1)  # also of an empty batch
        logits = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(places, 1))))
        return x * spread(gate(logits, neutral=self.neutral), x)


@block()
def se(site: TensorSpec, *, reduction: Positive = 16, neutral: bool = True) -> nn.Module:
    """Describe squeeze-and-excitation: gate channels by a bottleneck over their means.

    Works on ``n c h w``, ``n h w c`` and ``n l c``; adds ``2 c^2 / reduction`` weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the bottleneck.
        neutral: start with a gate of exactly one: twice the sigmoid, the last layer zero.
            ``False`` gives the sigmoid and the initialisation of the paper.

    Example:
        >>> se(reduction=8)
        se(reduction=8)

    Source:
        Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507.
    """
    return SE(site.channels, squeezed(site.channels, reduction), neutral=neutral)

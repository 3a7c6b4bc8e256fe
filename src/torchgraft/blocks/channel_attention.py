"""Channel attention: the first half of the convolutional block attention module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, spread, squeezed
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class ChannelAttention(nn.Module):
    """Gate each channel by one bottleneck over its mean and its maximum.

    Args:
        channels: number of channels.
        squeeze: width of the bottleneck.
        neutral: start with a gate of exactly one.
    """

    def __init__(self, channels: int, squeeze: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1, bias=False)
        self.fc2 = nn.Conv2d(squeeze, channels, 1, bias=False)
        self.neutral = neutral
        if neutral:
            zero(self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` by channel."""
        places = x.unsqueeze(-1).flatten(2).unsqueeze(3)  # n c places 1, a vector being one place
        mean, peak = places.mean(2, keepdim=True), places.amax(2, keepdim=True)
        logits = self.fc2(F.relu(self.fc1(mean))) + self.fc2(F.relu(self.fc1(peak)))
        return x * spread(gate(logits, neutral=self.neutral), x)


@block()
def channel_attention(site: TensorSpec, *, reduction: Positive = 16, neutral: bool = True) -> nn.Module:
    """Describe the channel half of CBAM: gate channels by what their means and maxima say.

    Works on maps, tokens and vectors, channels first or last; adds ``2 c^2 / reduction``
    weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the bottleneck.
        neutral: start with a gate of exactly one: twice the sigmoid, the last layer zero.
            ``False`` gives the sigmoid of the paper and an ordinary initialisation.

    Example:
        >>> channel_attention(reduction=8)
        channel_attention(reduction=8)

    Source:
        Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521, section 3.
    """
    return ChannelAttention(site.channels, squeezed(site.channels, reduction), neutral=neutral)

"""Effective squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import spread
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class ESE(nn.Module):
    """Gate each channel by one layer over the pooled channels.

    Args:
        channels: number of channels.
        neutral: start with a gate of exactly one.
    """

    def __init__(self, channels: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.neutral = neutral
        if neutral:
            zero(self.fc)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` by channel."""
        places = x.unsqueeze(-1).flatten(2).unsqueeze(3)  # n c places 1, a vector being one place
        logits = self.fc(places.mean(2, keepdim=True))
        # Twice the hard sigmoid, written so that zero gives one without any rounding.
        made = (logits / 3 + 1).clamp(0, 2) if self.neutral else F.hardsigmoid(logits)
        return x * spread(made, x)


@block()
def ese(site: TensorSpec, *, neutral: bool = True) -> nn.Module:
    """Describe effective squeeze-and-excitation: gate channels by one layer over their means.

    Works on maps, tokens and vectors, channels first or last; adds ``c^2`` weights.

    Args:
        site: the place.
        neutral: start with a gate of exactly one: twice the hard sigmoid, written as
            ``1 + logits / 3`` between 0 and 2, the layer zero. ``False`` gives the hard sigmoid
            of the paper and an ordinary initialisation.

    Example:
        >>> ese()
        ese()

    Source:
        Lee and Park, CenterMask: Real-Time Anchor-Free Instance Segmentation,
        arXiv 1911.06667, section 3.3.
    """
    return ESE(site.channels, neutral=neutral)

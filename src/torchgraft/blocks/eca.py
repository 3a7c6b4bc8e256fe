"""Efficient channel attention."""

from __future__ import annotations

import math

import torch
from torch import nn

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, spread
from torchgraft.blocks.options import Odd
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class ECA(nn.Module):
    """Gate each channel by a convolution over the pooled channels next to it.

    Args:
        kernel: size of the convolution, odd.
        neutral: start with a gate of exactly one.
    """

    def __init__(self, kernel: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.neutral = neutral
        if neutral:
            zero(self.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` by channel."""
        pooled = x.unsqueeze(-1).flatten(2).mean(2)  # also of an empty batch
        logits = self.conv(pooled.unsqueeze(1)).squeeze(1)
        return x * spread(gate(logits, neutral=self.neutral), x)


def adaptive_kernel(channels: int) -> int:
    """Return the kernel size that the paper derives from a channel count (gamma 2, b 1)."""
    size = int(abs(math.log2(channels) / 2 + 0.5))
    return size if size % 2 else size + 1


@block()
def eca(site: TensorSpec, *, kernel: Odd | None = None, neutral: bool = True) -> nn.Module:
    """Describe efficient channel attention: gate channels by their neighbours' means.

    Works on ``n c h w``, ``n h w c`` and ``n l c``; adds ``kernel`` weights.

    Args:
        site: the place.
        kernel: number of neighbouring channels, odd; from the channel count if ``None``.
        neutral: start with a gate of exactly one: twice the sigmoid, the convolution zero.
            ``False`` gives the sigmoid and the initialisation of the paper.

    Example:
        >>> eca(kernel=5)
        eca(kernel=5)

    Source:
        Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
        Networks, arXiv 1910.03151.
    """
    return ECA(kernel or adaptive_kernel(site.channels), neutral=neutral)

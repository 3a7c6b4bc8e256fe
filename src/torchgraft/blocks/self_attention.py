"""Self-attention over the places."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.errors import OptionError
from torchgraft.spec import TensorSpec


class SelfAttention(nn.Module):
    """Add to each place what several heads read from all places.

    Args:
        channels: number of channels.
        heads: number of heads; it divides the channels.
        neutral: start by adding nothing.
    """

    def __init__(self, channels: int, heads: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        # A bias of the keys would shift all scores of a place alike, which the softmax does not see.
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.heads = heads
        if neutral:
            zero(self.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what all places say to ``n c ...``."""
        places = self.norm(x.flatten(2).transpose(1, 2))
        parts = self.qkv(places).unflatten(2, (3, self.heads, -1))  # n places 3 heads width
        query, key, value = parts.transpose(1, 3).unbind(2)  # each n heads places width
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        added: torch.Tensor = self.proj(read).transpose(1, 2)
        return x + added.reshape_as(x)


def heads_for(channels: int) -> int:
    """Return the most heads that divide the channels and leave each 64 of them, or one."""
    return next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)


@block(places=True)
def self_attention(site: TensorSpec, *, heads: Positive | None = None, neutral: bool = True) -> nn.Module:
    """Describe multi-head self-attention over the places, as a residual unit with the norm first.

    Works on maps and tokens, channels first or last, in time that grows with the square of the
    places; it adds no positions. Adds ``4 c^2`` weights.

    Args:
        site: the place.
        heads: number of heads, which has to divide the channels; from the channel count, with
            64 channels or more to a head, if ``None``.
        neutral: start by adding exactly nothing, the last layer zero. ``False`` gives an
            ordinary initialisation.

    Example:
        >>> self_attention(heads=8)
        self_attention(heads=8)

    Source:
        Vaswani et al., Attention Is All You Need, arXiv 1706.03762; the norm first as in
        Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929.
    """
    channels = site.channels
    if heads is not None and channels % heads:
        divisors = (n for n in range(1, channels + 1) if channels % n == 0)
        right = min(divisors, key=lambda n: (abs(n - heads), n))
        raise OptionError(
            "the heads of self_attention must divide the channels",
            asked=repr(self_attention(heads=heads, neutral=neutral)),
            found=f"{heads} heads for {channels} channels",
            write=repr(self_attention(heads=right, neutral=neutral)),
        )
    return SelfAttention(channels, heads or heads_for(channels), neutral=neutral)

"""Gather-excite."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, spread
from torchgraft.blocks.options import Rule
from torchgraft.blocks.start import zero
from torchgraft.errors import LayoutError
from torchgraft.spec import TensorSpec


def _power(value: object) -> bool:
    return isinstance(value, int) and value > 1 and value & (value - 1) == 0


def _near_power(value: object) -> int | None:
    return 1 << max(1, value.bit_length() - 1) if isinstance(value, int) else None


Extent = Annotated[int, Rule("a power of two above 1", _power, _near_power)]


class GatherGlobally(nn.Module):
    """Gate each channel by its own mean over all places.

    Args:
        channels: number of channels.
        neutral: weigh the mean, and start with a gate of exactly one.
    """

    def __init__(self, channels: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, groups=channels) if neutral else nn.Identity()
        self.neutral = neutral
        if neutral:
            zero(self.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` by channel."""
        mean = x.unsqueeze(-1).flatten(2).mean(2, keepdim=True)
        return x * spread(gate(self.conv(mean), neutral=self.neutral), x)


class GatherExcite(nn.Module):
    """Gate each place by what convolutions gather around it, each channel on its own.

    Args:
        channels: number of channels.
        extent: side of the places that share a gate, a power of two.
        neutral: start with a gate of exactly one, without batch norms.
    """

    def __init__(self, channels: int, extent: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.gather = nn.Sequential()
        for _ in range(extent.bit_length() - 1):
            if len(self.gather):
                self.gather.append(nn.ReLU())
            # A bias in front of a batch norm would never get a gradient.
            self.gather.append(nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=neutral))
            if not neutral:
                self.gather.append(nn.BatchNorm2d(channels))
        self.neutral = neutral
        if neutral:
            zero(self.gather[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c h w`` by channel and by region."""
        logits = F.interpolate(self.gather(x), x.shape[2:])  # to the nearest
        return x * gate(logits, neutral=self.neutral)


@block(places_with="extent")
def gather_excite(site: TensorSpec, *, extent: Extent | None = None, neutral: bool = True) -> nn.Module:
    """Describe gather-excite: gate each channel by what is gathered of it, near or everywhere.

    With an ``extent``, works on ``n c h w`` and ``n h w c`` and adds ``9 c log2(extent)`` weights
    and as many biases or norms as it has layers (GE-theta of the paper). Without, works on maps,
    tokens and vectors and gathers the mean of all places; the paper has no weights for that
    which fit every size (GE-theta-minus), and the neutral form adds ``2 c``.

    Args:
        site: the place.
        extent: side of the region gathered, a power of two; all places if ``None``.
        neutral: start with a gate of exactly one: twice the sigmoid, the last convolution zero.
            This form has biases where the paper has batch norms, so that the samples of a batch
            do not depend on each other; over all places, the mean has a weight and a bias for
            each channel. ``False`` gives the sigmoid of the paper, with batch norms or without
            any weight, and an ordinary initialisation; in training its batch norms refuse a
            batch with a single place left.

    Example:
        >>> gather_excite(extent=4)
        gather_excite(extent=4)

    Source:
        Hu et al., Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks,
        arXiv 1810.12348.
    """
    if extent is None:
        return GatherGlobally(site.channels, neutral=neutral)
    if site.rank not in (4, None):
        raise LayoutError(
            "gather_excite with an extent works on the places of a map, and this value has none",
            asked=repr(gather_excite(extent=extent, neutral=neutral)),
            found=repr(site),
            write=f"{gather_excite(neutral=neutral)!r}",
        )
    return GatherExcite(site.channels, extent, neutral=neutral)

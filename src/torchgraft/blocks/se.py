"""Squeeze-and-excitation."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.block import Block, makes_block
from torchgraft.blocks.gate import gate, positive, squeezed, zero
from torchgraft.spec import TensorSpec
from torchgraft.text import check_flags, spelled


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
        places = x.reshape(x.size(0), x.size(1), -1, 1)
        logits = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(places, 1))))
        return x * gate(logits, neutral=self.neutral).reshape(x.shape[:2] + (1,) * (x.ndim - 2))


@attrs.frozen(repr=False)
class SEBlock(Block):
    """Describe squeeze-and-excitation."""

    reduction: int = attrs.field(kw_only=True, default=16)
    neutral: bool = attrs.field(kw_only=True, default=True)

    name: ClassVar[str] = "se"
    keeps_shape: ClassVar[bool] = True

    def build(self, spec: TensorSpec) -> nn.Module:
        """Make the module for the channels of a value."""
        with torch.device(spec.device):
            made = SE(spec.channels, squeezed(spec.channels, self.reduction), neutral=self.neutral)
        return made.to(spec.dtype)


@spelled
def se(*, reduction: int = 16, neutral: bool = True) -> SEBlock:
    """Describe squeeze-and-excitation: gate channels by a bottleneck over their means.

    Works on ``n c h w``, ``n h w c`` and ``n l c``; adds ``2 c^2 / reduction`` weights.

    Args:
        reduction: channels divided by the width of the bottleneck.
        neutral: start with a gate of exactly one: twice the sigmoid, the last layer zero.
            ``False`` gives the sigmoid and the initialisation of the paper.

    Returns:
        The block.

    Raises:
        OptionError: an option is unknown or out of range.

    Example:
        >>> se(reduction=8)
        se(reduction=8)

    Source:
        Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507.
    """
    positive("reduction", reduction, f"se(reduction={reduction!r})")
    made = SEBlock(reduction=reduction, neutral=neutral)
    check_flags(made, neutral=neutral)
    return made


makes_block(se)

"""The convolutional block attention module."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.block import Block, makes_block
from torchgraft.blocks.gate import gate, positive, squeezed, zero
from torchgraft.errors import LayoutError, OptionError
from torchgraft.spec import TensorSpec
from torchgraft.text import check_flags, spelled


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


@attrs.frozen(repr=False)
class CBAMBlock(Block):
    """Describe the convolutional block attention module."""

    reduction: int = attrs.field(kw_only=True, default=16)
    kernel: int = attrs.field(kw_only=True, default=7)
    neutral: bool = attrs.field(kw_only=True, default=True)

    name: ClassVar[str] = "cbam"
    keeps_shape: ClassVar[bool] = True
    needs_rank: ClassVar[bool] = True

    def build(self, spec: TensorSpec) -> nn.Module:
        """Make the module for the channels of a map.

        Raises:
            LayoutError: the value is not a map with two spatial axes.
        """
        if spec.rank != 4:
            raise LayoutError(
                "cbam gates places of a map, and this value has none",
                asked=repr(self),
                found=repr(spec),
                write="se() or eca(), which gate channels alone",
            )
        width = squeezed(spec.channels, self.reduction)
        with torch.device(spec.device):
            made = CBAM(spec.channels, width, self.kernel, neutral=self.neutral)
        return made.to(spec.dtype)


@spelled
def cbam(*, reduction: int = 16, kernel: int = 7, neutral: bool = True) -> CBAMBlock:
    """Describe the convolutional block attention module: gate channels, then places.

    Works on ``n c h w`` and ``n h w c``; adds ``2 c^2 / reduction + 2 kernel^2`` weights.

    Args:
        reduction: channels divided by the width of the bottleneck.
        kernel: size of the spatial convolution, odd.
        neutral: start with gates of exactly one: twice the sigmoid, the last layers zero.
            ``False`` gives the sigmoid and the initialisation of the paper.

    Returns:
        The block.

    Raises:
        OptionError: an option is unknown or out of range.

    Example:
        >>> cbam(kernel=3)
        cbam(kernel=3)

    Source:
        Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521.
    """
    asked = f"cbam(reduction={reduction!r}, kernel={kernel!r})"
    positive("reduction", reduction, asked)
    if positive("kernel", kernel, asked) % 2 == 0:
        raise OptionError("kernel must be odd", asked=asked, write=f"cbam(kernel={kernel + 1})")
    made = CBAMBlock(reduction=reduction, kernel=kernel, neutral=neutral)
    check_flags(made, neutral=neutral)
    return made


makes_block(cbam)

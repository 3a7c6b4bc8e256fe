"""Blocks that scale: a factor for each channel, and a gate back to what a target took."""

from __future__ import annotations

import functools

import torch
from torch import nn

from torchgraft.blocks.beside import BESIDE, fitting, refuse_in_place
from torchgraft.blocks.described import block
from torchgraft.blocks.gate import spread
from torchgraft.blocks.options import Start
from torchgraft.blocks.start import constant, start
from torchgraft.spec import TensorSpec


class LayerScale(nn.Module):
    """Multiply each channel by a factor.

    Args:
        channels: number of channels.
        axis: axis of the channels, 1 or -1.
        init: the factor at the start.
    """

    def __init__(self, channels: int, *, axis: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))
        start(self, functools.partial(constant, value=float(init)))
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale ``n c ...`` or ``n ... c`` by channel."""
        gamma = self.gamma.to(x.dtype)  # under autocast the value keeps its own
        return x * (gamma if self.axis == -1 else spread(gamma.unsqueeze(0), x))


class ResidualGate(nn.Module):
    """Go from what a target gives towards what it took by a learned share."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.empty(1))  # one axis: sharded training takes no scalars
        start(self, constant)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mix two values of one shape."""
        return y + self.share.to(y.dtype) * (fitting(x, y).to(y.dtype) - y)


@block(any_axis=True)
def layer_scale(site: TensorSpec, *, neutral: bool = True, init: Start | None = None) -> nn.Module:
    """Describe a factor for each channel, as on the branch of a residual unit.

    Works on any layout and adds ``c`` weights. Neutral at the start with factors of one, for
    networks that are trained already.

    Args:
        site: the place.
        neutral: start with factors of exactly one. ``False`` starts near zero, for branches
            that are trained from the beginning.
        init: where the factors then start; 1e-4 if ``None``. The paper takes 0.1 up to a depth
            of 18, 1e-5 at 24 and 1e-6 beyond.

    Example:
        >>> layer_scale(neutral=False, init=1e-5)
        layer_scale(neutral=False, init=1e-05)

    Source:
        Touvron et al., Going deeper with Image Transformers, arXiv 2103.17239.
    """
    return LayerScale(site.channels, axis=site.axis, init=1.0 if neutral else init or 1e-4)


@block(BESIDE, beside=True, any_axis=True)
def residual_gate(site: TensorSpec) -> nn.Module:
    """Describe a gate back to what the target took: ``y + g (x - y)``, with one ``g`` to learn.

    Works beside any target that gives the shape it takes. Neutral at the start, as ``g``
    starts at zero; at one the target would be skipped.

    Args:
        site: the place.

    Returns:
        The block.

    Raises:
        OptionError: an option is given; there are none.

    Example:
        >>> residual_gate()
        residual_gate()
    """
    refuse_in_place(site, "residual_gate")
    return ResidualGate()

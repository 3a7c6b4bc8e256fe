"""Residual units: convolutions whose result is added to what they took."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.blocks.contract import UNIT, Activation, Norm, activation, conv_unit, norm_layer
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Odd, Positive
from torchgraft.blocks.start import he_start, zero
from torchgraft.spec import TensorSpec


class Residual(nn.Module):
    """Add what convolutions make of a value to the value, or to a projection of it.

    Parameters are named as in torchvision's ResNets, so that weights can be carried over.

    Args:
        taken: channels that go in.
        convs: of each convolution the channels that come out, its size and its stride.
        norm: the normalisation behind each convolution.
        act: the activation between them, and behind the sum.
        neutral: start as the identity where the shape is kept.
    """

    def __init__(
        self, taken: int, convs: list[tuple[int, int, int]], *, norm: Norm, act: Activation, neutral: bool
    ) -> None:
        super().__init__()
        width, stride, self.depth = taken, 1, len(convs)
        for i, (given, kernel, step) in enumerate(convs, 1):
            conv = nn.Conv2d(width, given, kernel, step, padding=kernel // 2, bias=norm == "none")
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", norm_layer(norm, given))
            width, stride = given, stride * step
        kept = width == taken and stride == 1
        self.act = activation(act)
        self.downsample = nn.Identity() if kept else conv_unit(taken, width, stride=stride, norm=norm)
        # An activation behind the sum would change what is below zero.
        self.last = nn.Identity() if neutral and kept else activation(act)
        he_start(self)
        if neutral and kept:
            zero(getattr(self, f"{'conv' if norm == 'none' else 'bn'}{self.depth}"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Work on ``n c h w``."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = self.act(y) if i < self.depth else y
        summed: torch.Tensor = self.last(y + self.downsample(x))
        return summed


@block(UNIT, maps=True)
def basic_residual(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
    neutral: bool = True,
) -> nn.Module:
    """Describe a basic residual unit: two convolutions, added to what went in.

    Works on ``n c h w`` and ``n h w c``. Where width or stride change, what goes in is
    projected by a convolution of size 1.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: of the first convolution; that of a replaced layer, else 1, if ``None``.
        kernel: size of the convolutions, odd.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations.
        neutral: start as the identity where the shape is kept: the last normalisation (the
            last convolution where there is none) starts at zero, and no activation follows
            the sum, now and later. It has no effect where width or stride change. ``False``
            gives the arithmetic and the initialisation of the paper.

    Example:
        >>> basic_residual(channels=128, stride=2)
        basic_residual(channels=128, stride=2)

    Source:
        He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385.
    """
    given = site.out(channels)
    convs = [(given, kernel, site.step(stride)), (given, kernel, 1)]
    return Residual(site.channels, convs, norm=norm, act=act, neutral=neutral)


@block(UNIT, maps=True)
def bottleneck_residual(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    reduction: Positive = 4,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
    neutral: bool = True,
) -> nn.Module:
    """Describe a bottleneck residual unit: narrow, filter, widen, add to what went in.

    Works on ``n c h w`` and ``n h w c``. Where width or stride change, what goes in is
    projected by a convolution of size 1. The stride is in the middle convolution, as in what
    is called version 1.5; the paper has it in the first.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: of the middle convolution; that of a replaced layer, else 1, if ``None``.
        kernel: size of the middle convolution, odd.
        reduction: channels given divided by the width inside.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations.
        neutral: start as the identity where the shape is kept: the last normalisation (the
            last convolution where there is none) starts at zero, and no activation follows
            the sum, now and later. It has no effect where width or stride change. ``False``
            gives the arithmetic and the initialisation of the paper.

    Example:
        >>> bottleneck_residual(reduction=2)
        bottleneck_residual(reduction=2)

    Source:
        He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385.
    """
    given = site.out(channels)
    inner = max(1, given // reduction)
    convs = [(inner, 1, 1), (inner, kernel, site.step(stride)), (given, 1, 1)]
    return Residual(site.channels, convs, norm=norm, act=act, neutral=neutral)

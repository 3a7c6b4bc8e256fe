"""Inverted residuals: wide inside, narrow at both ends."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from torchgraft.blocks.contract import UNIT, Activation, Norm, activation, conv_unit
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Odd, Positive
from torchgraft.blocks.start import he_start, zero
from torchgraft.spec import TensorSpec


class Inverted(nn.Module):
    """Run layers, and add what went in where the shape is kept.

    Args:
        layers: the layers; the last one ends without an activation where it starts at zero.
        residual: add what went in.
        neutral: start as the identity, by a last layer of zeros.
    """

    def __init__(self, layers: list[nn.Module], *, residual: bool, neutral: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)
        self.residual = residual
        he_start(self.block)
        if neutral:
            zero(list(layers[-1].children())[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Work on ``n c h w``."""
        y: torch.Tensor = self.block(x)
        return x + y if self.residual else y

    def extra_repr(self) -> str:
        """Write the option."""
        return f"residual={self.residual}"


@block(UNIT, maps=True)
def mbconv(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    expand: Positive = 6,
    reduction: Positive | None = 4,
    norm: Norm = "batch_norm",
    act: Activation = "silu",
    neutral: bool = True,
) -> nn.Module:
    """Describe a mobile inverted bottleneck: widen, filter each channel, gate, narrow.

    Works on ``n c h w`` and ``n h w c``. What goes in is added where the shape is kept. The
    defaults are EfficientNet's; ``mbconv(reduction=None, act="relu6")`` is MobileNetV2's.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        kernel: size of the depthwise convolution, odd.
        expand: width inside divided by the channels taken; 1 for no widening convolution.
        reduction: channels taken divided by the width of the squeeze-and-excitation inside;
            ``None`` for none.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations; none follows the last convolution.
        neutral: start as the identity where the shape is kept: the last normalisation (the
            last convolution where there is none) starts at zero. It has no effect where
            width or stride change. ``False`` gives the initialisation of the paper.

    Example:
        >>> mbconv(expand=4, kernel=5)
        mbconv(kernel=5, expand=4)

    Source:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv
        1801.04381; Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional
        Neural Networks, arXiv 1905.11946.
    """
    taken, given, step = site.channels, site.out(channels), site.step(stride)
    hidden, kept = taken * expand, taken == given and step == 1
    layers: list[nn.Module] = [conv_unit(taken, hidden, norm=norm, act=act)] if expand > 1 else []
    layers += [conv_unit(hidden, hidden, kernel=kernel, stride=step, groups=hidden, norm=norm, act=act)]
    layers += _gate(hidden, taken, reduction, act)
    layers += [conv_unit(hidden, given, norm=norm)]
    return Inverted(layers, residual=kept, neutral=neutral and kept)


@block(UNIT, maps=True)
def fused_mbconv(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    expand: Positive = 4,
    reduction: Positive | None = None,
    norm: Norm = "batch_norm",
    act: Activation = "silu",
    neutral: bool = True,
) -> nn.Module:
    """Describe a fused inverted bottleneck: widen by a full convolution, gate, narrow.

    Works on ``n c h w`` and ``n h w c``. What goes in is added where the shape is kept.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        kernel: size of the widening convolution, odd.
        expand: width inside divided by the channels taken; 1 for one convolution that does
            both, with its activation behind it.
        reduction: channels taken divided by the width of the squeeze-and-excitation inside;
            ``None`` for none.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations; none follows the narrowing convolution.
        neutral: start as the identity where the shape is kept: the last normalisation (the
            last convolution where there is none) starts at zero. ``expand=1`` then has a
            narrowing convolution too, as nothing learns behind a ReLU of zeros. It has no
            effect where width or stride change. ``False`` gives the arithmetic and the
            initialisation of the paper.

    Example:
        >>> fused_mbconv(channels=48, stride=2)
        fused_mbconv(channels=48, stride=2)

    Source:
        Tan and Le, EfficientNetV2: Smaller Models and Faster Training, arXiv 2104.00298.
    """
    taken, given, step = site.channels, site.out(channels), site.step(stride)
    kept = taken == given and step == 1
    narrows = expand > 1 or (neutral and kept)
    hidden = taken * expand if narrows else given
    layers: list[nn.Module] = [conv_unit(taken, hidden, kernel=kernel, stride=step, norm=norm, act=act)]
    layers += _gate(hidden, taken, reduction, act)
    layers += [conv_unit(hidden, given, norm=norm)] if narrows else []
    return Inverted(layers, residual=kept, neutral=neutral and kept)


def _gate(hidden: int, taken: int, reduction: int | None, act: Activation) -> list[nn.Module]:
    if reduction is None:
        return []
    return [SqueezeExcitation(hidden, max(1, taken // reduction), activation=lambda: activation(act))]

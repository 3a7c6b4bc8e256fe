"""Plain convolution units: with a norm and an activation, separable, with coordinates."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from torchgraft.blocks.contract import UNIT, Activation, Norm, conv_unit
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Odd, Positive
from torchgraft.spec import TensorSpec


class Coordinates(nn.Module):
    """Add channels that tell each place where it is.

    Rows and columns run from -1 to 1; a single one is at 0, the centre.

    Args:
        radius: also add the distance from the centre.
    """

    def __init__(self, *, radius: bool = False) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn ``n c h w`` into ``n c+2 h w``, or ``n c+3 h w`` with the radius."""
        return torch.cat([x, coordinates(x, radius=self.radius)], 1)

    def extra_repr(self) -> str:
        """Write the option."""
        return f"radius={self.radius}"


def coordinates(x: torch.Tensor, *, radius: bool = False) -> torch.Tensor:
    """Tell each place of a map where it is.

    Args:
        x: ``n c h w``.
        radius: also tell the distance from the centre.

    Returns:
        Row, column and maybe distance, ``n 2 h w`` or ``n 3 h w``.
    """
    if has_torch_function_unary(x):  # as torch's own functions do: one step to what traces it
        traced: torch.Tensor = handle_torch_function(coordinates, (x,), x, radius=radius)
        return traced
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count far
    steps = [torch.arange(1 - side, side, 2, dtype=wide, device=x.device) for side in x.shape[2:]]
    row, column = torch.meshgrid(*(s / max(s.numel() - 1, 1) for s in steps), indexing="ij")
    maps = [row, column, torch.hypot(row, column)] if radius else [row, column]
    return torch.stack(maps).to(x.dtype).expand(x.size(0), -1, -1, -1)


@block(UNIT, maps=True)
def conv_norm_act(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
) -> nn.Module:
    """Describe a convolution, a normalisation and an activation.

    Works on ``n c h w`` and ``n h w c``; adds ``kernel^2 c channels`` weights. It has no
    neutral start.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        kernel: size of the convolution, odd.
        norm: the normalisation; with ``"none"`` the convolution has a bias.
        act: the activation.

    Example:
        >>> conv_norm_act(channels=64, act="silu")
        conv_norm_act(channels=64, act="silu")
    """
    return conv_unit(
        site.channels, site.out(channels), kernel=kernel, stride=site.step(stride), norm=norm, act=act
    )


@block(UNIT, maps=True)
def depthwise_separable(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
) -> nn.Module:
    """Describe a depthwise separable convolution: each channel by itself, then all by place.

    Works on ``n c h w`` and ``n h w c``; adds ``c (kernel^2 + channels)`` weights, where a
    convolution has ``kernel^2 c channels``. Both convolutions are followed by a
    normalisation and an activation. It has no neutral start.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        kernel: size of the depthwise convolution, odd.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations.

    Example:
        >>> depthwise_separable(kernel=5)
        depthwise_separable(kernel=5)

    Source:
        Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications, arXiv 1704.04861.
    """
    taken = site.channels
    depthwise = conv_unit(
        taken, taken, kernel=kernel, stride=site.step(stride), groups=taken, norm=norm, act=act
    )
    pointwise = conv_unit(taken, site.out(channels), norm=norm, act=act)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


@block(UNIT, maps=True)
def coord_conv(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    kernel: Odd = 3,
    radius: bool = False,
    norm: Norm = "none",
    act: Activation = "none",
) -> nn.Module:
    """Describe a convolution that sees where it is: coordinates are two more channels.

    Works on ``n c h w`` and ``n h w c``; adds ``kernel^2 (c + 2) channels`` weights. The
    coordinates are made for the size at hand. It has no neutral start.

    Args:
        site: the place.
        channels: channels to give; those of a replaced layer, else those taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        kernel: size of the convolution, odd.
        radius: a third channel with the distance from the centre of the map.
        norm: the normalisation; with ``"none"`` the convolution has a bias.
        act: the activation.

    Example:
        >>> coord_conv(radius=True)
        coord_conv(radius=True)

    Source:
        Liu et al., An Intriguing Failing of Convolutional Neural Networks and the CoordConv
        Solution, arXiv 1807.03247.
    """
    taken = site.channels + (3 if radius else 2)
    conv = conv_unit(taken, site.out(channels), kernel=kernel, stride=site.step(stride), norm=norm, act=act)
    return nn.Sequential(OrderedDict(coordinates=Coordinates(radius=radius), conv=conv))

"""What units have in common: contracts on shapes, words for norms and activations, a convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import attrs
from torch import nn
from torchvision.ops import Conv2dNormActivation

Shape = tuple[int, ...]
Options = Mapping[str, object]
Norm = Literal["batch_norm", "group_norm", "none"]
Activation = Literal["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "mish", "none"]

_GROUPS = 32


@attrs.frozen
class Contract:
    """Say which shape comes out when one goes in, with the channels on axis 1.

    Args:
        says: the contract in a few words.
        shape: gives the output shape from the input shape and the options of the block.
    """

    says: str
    shape: Callable[[Shape, Options], Shape]


def _number(options: Options, name: str, otherwise: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) else otherwise


def _unit(shape: Shape, options: Options) -> Shape:
    stride = _number(options, "stride", 1)
    return shape[0], _number(options, "channels", shape[1]), *(math.ceil(side / stride) for side in shape[2:])


def _grown(shape: Shape, options: Options) -> Shape:
    grown = _number(options, "growth", 0) * _number(options, "layers", 1)
    return shape[0], shape[1] + grown, *shape[2:]


KEEPS_SHAPE = Contract("keeps the shape", lambda shape, options: shape)
POOLS = Contract(
    "keeps the channels, pools the places", lambda shape, options: (*shape[:2], *(1 for _ in shape[2:]))
)
UNIT = Contract("channels and stride as asked, else those of its place", _unit)
GROWS = Contract("adds channels, keeps the places", _grown)


def grouped(channels: int) -> nn.GroupNorm:
    """Make group normalisation for a width.

    The 32 groups of the paper (arXiv 1803.08494) do not divide every width, and a group of
    one channel has nothing to normalise on a map of one place.

    Args:
        channels: number of channels.

    Returns:
        The layer: as many groups as divide the channels, at most 32, of two channels or more.
    """
    most = max(1, min(_GROUPS, channels // 2))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)


_NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "batch_norm": nn.BatchNorm2d,
    "group_norm": grouped,
    "none": None,
}
_ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "none": None,
}


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Make the normalisation of a word; ``"none"`` gives the identity."""
    make = _NORMS[norm]
    return make(channels) if make else nn.Identity()


def activation(act: Activation) -> nn.Module:
    """Make the activation of a word; ``"none"`` gives the identity."""
    make = _ACTIVATIONS[act]
    return make() if make else nn.Identity()


def conv_unit(
    taken: int,
    given: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    norm: Norm = "batch_norm",
    act: Activation = "none",
) -> nn.Sequential:
    """Make a convolution with its normalisation and activation.

    A side of ``s`` places becomes one of ``ceil(s / stride)``. The convolution has a bias
    where no normalisation follows.

    Args:
        taken: channels that go in.
        given: channels that come out.
        kernel: size of the convolution, odd.
        stride: input places for each output place.
        groups: groups of channels that do not see each other.
        norm: the normalisation.
        act: the activation.

    Returns:
        The layers that there are, as children ``0`` to ``2``.
    """
    made: nn.Sequential = Conv2dNormActivation(
        taken,
        given,
        kernel,
        stride,
        groups=groups,
        norm_layer=_NORMS[norm],
        activation_layer=_ACTIVATIONS[act],
        inplace=None,  # not all activations have it, and a step may be put before this one
    )
    return made

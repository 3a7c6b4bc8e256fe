"""Units that join values on the channel axis: parallel branches, dense connections."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.blocks.contract import (
    GROWS,
    UNIT,
    Activation,
    Norm,
    activation,
    conv_unit,
    norm_layer,
)
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Few, Odd, Positive
from torchgraft.blocks.start import he_start
from torchgraft.errors import OptionError
from torchgraft.spec import TensorSpec

_BRANCHES = 4


class Inception(nn.Module):
    """Look at a map with four branches and join what they see.

    Args:
        taken: channels that go in.
        given: channels that come out, at least four.
        stride: input places for each output place.
        norm: the normalisation behind each convolution.
        act: the activation behind each convolution.
    """

    def __init__(self, taken: int, given: int, stride: int, *, norm: Norm, act: Activation) -> None:
        super().__init__()
        one, three, five, pooled = widths(given)
        before3, before5 = max(1, three * 3 // 4), max(1, five // 2)

        def conv(a: int, b: int, kernel: int = 1, step: int = 1) -> nn.Sequential:
            return conv_unit(a, b, kernel=kernel, stride=step, norm=norm, act=act)

        self.branch1 = conv(taken, one, step=stride)
        self.branch2 = nn.Sequential(conv(taken, before3), conv(before3, three, 3, stride))
        self.branch3 = nn.Sequential(conv(taken, before5), conv(before5, five, 5, stride))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride, padding=1), conv(taken, pooled))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Work on ``n c h w``."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class DenseLayer(nn.Module):
    """Compute new channels from all there are, and append them.

    Parameters are named as in torchvision's DenseNets, so that weights can be carried over.

    Args:
        taken: channels that go in.
        growth: channels to append.
        hidden: width between the two convolutions.
        kernel: size of the second convolution, odd.
        norm: the normalisation before each convolution.
        act: the activation before each convolution.
    """

    def __init__(
        self, taken: int, growth: int, hidden: int, kernel: int, *, norm: Norm, act: Activation
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, taken)
        self.conv1 = nn.Conv2d(taken, hidden, 1, bias=bias)
        self.norm2 = norm_layer(norm, hidden)
        self.conv2 = nn.Conv2d(hidden, growth, kernel, padding=kernel // 2, bias=bias)
        self.act = activation(act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn ``n c h w`` into ``n c+growth h w``."""
        y = self.conv1(self.act(self.norm1(x)))
        return torch.cat([x, self.conv2(self.act(self.norm2(y)))], 1)


def widths(given: int) -> tuple[int, int, int, int]:
    """Share out channels among the branches in the proportions of inception (3a): 2 4 1 1."""
    narrow = max(1, given // 8)
    rest = given - 2 * narrow
    one = max(1, rest // 3)
    return one, rest - one, narrow, narrow


@block(UNIT, maps=True)
def inception(
    site: TensorSpec,
    *,
    channels: Positive | None = None,
    stride: Positive | None = None,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
) -> nn.Module:
    """Describe an inception unit: convolutions of sizes 1, 3 and 5 and a pool side by side.

    Works on ``n c h w`` and ``n h w c``. The branches share the channels in the proportions
    of the first unit of the paper (3a): 1/4, 1/2, 1/8 and 1/8. The paper has no
    normalisation: ``norm="none"``. It has no neutral start.

    Args:
        site: the place.
        channels: channels to give, at least four; those of a replaced layer, else those
            taken, if ``None``.
        stride: input places for each output place; that of a replaced layer, else 1, if
            ``None``.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations.

    Returns:
        The block.

    Raises:
        OptionError: an option is unknown or out of range, or fewer than four channels are to
            be given, which shows when the place is known.

    Example:
        >>> inception(channels=256)
        inception(channels=256)

    Source:
        Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842.
    """
    given = site.out(channels)
    if given < _BRANCHES:
        raise OptionError(
            "inception has four branches, so it gives at least four channels",
            asked="inception()" if channels is None else f"inception(channels={channels})",
            found=f"{given} to give at {site!r}",
            write=f"inception(channels={_BRANCHES})" if channels else "conv_norm_act()",
        )
    return Inception(site.channels, given, site.step(stride), norm=norm, act=act)


@block(GROWS, maps=True)
def dense(
    site: TensorSpec,
    *,
    growth: Positive = 32,
    layers: Few = 6,
    kernel: Odd = 3,
    expand: Positive = 4,
    norm: Norm = "batch_norm",
    act: Activation = "relu",
) -> nn.Module:
    """Describe a dense block: layers that each append channels made from all before them.

    Works on ``n c h w`` and ``n h w c``, and gives ``growth layers`` channels more than it
    takes. Normalisation and activation come before each convolution. The defaults are those
    of the first block of DenseNet-121. It has no neutral start.

    Args:
        site: the place.
        growth: channels that each layer appends.
        layers: number of layers, 1,000 at most.
        kernel: size of the second convolution of a layer, odd.
        expand: width between the two convolutions of a layer divided by ``growth``.
        norm: the normalisations; with ``"none"`` the convolutions have a bias.
        act: the activations.

    Example:
        >>> dense(growth=12, layers=4)
        dense(growth=12, layers=4)

    Source:
        Huang et al., Densely Connected Convolutional Networks, arXiv 1608.06993.
    """
    made = nn.Sequential()
    for i in range(layers):
        taken = site.channels + i * growth
        layer = DenseLayer(taken, growth, growth * expand, kernel, norm=norm, act=act)
        made.add_module(f"denselayer{i + 1}", layer)
    he_start(made)
    return made

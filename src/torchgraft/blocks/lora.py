"""Low-rank adaptation of linear layers and convolutions."""

from __future__ import annotations

import math

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.options import Above, Parts, Positive
from torchgraft.errors import ShapeError, TargetError
from torchgraft.spec import TensorSpec
from torchgraft.text import kind

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@attrs.frozen
class Geometry:
    """Say how a layer applies its weight, in plain numbers.

    Args:
        shape: shape of the weight: what goes out, what one group takes, the kernel.
        groups: number of groups.
        stride: stride of a convolution.
        padding: its padding; zero where the input is padded before.
        dilation: its dilation.
        edges: what is put around the input before, the last axis first.
        mode: what is put there.
    """

    shape: tuple[int, ...]
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: str | tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    edges: tuple[int, ...] = ()
    mode: str = "zeros"

    @property
    def places(self) -> int:
        """Number of axes that the kernel has."""
        return len(self.shape) - 2

    @property
    def axis(self) -> int:
        """Axis of the channels, counted from the end."""
        return -1 - self.places

    def apply(self, x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
        """Apply a weight as the layer applies its own."""
        if not self.places:
            return F.linear(x, weight)
        if self.edges:
            x = F.pad(x, self.edges, self.mode)
        convolve = _CONVOLVE[self.places]
        return convolve(x, weight, None, self.stride, self.padding, self.dilation, groups)

    def mix(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Apply a matrix to the channels at each place."""
        if not self.places:
            return F.linear(x, weight)
        return _CONVOLVE[self.places](x, weight.reshape(*weight.shape, *(1,) * self.places))


def geometry_of(layer: nn.Module | None) -> Geometry | None:
    """Read how a layer applies its weight; ``None`` where it is not known to do no more than that."""
    forward = type(layer).forward if layer is not None else None
    if isinstance(layer, nn.Linear) and forward is nn.Linear.forward:
        return Geometry((layer.out_features, layer.in_features))
    for places, cls in _CONVOLUTIONS.items():
        if (
            isinstance(layer, cls)
            and forward is cls.forward
            and type(layer)._conv_forward is cls._conv_forward
        ):
            shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
            around = layer.padding_mode != "zeros"
            return Geometry(
                shape,
                layer.groups,
                layer.stride,
                (0,) * places if around else layer.padding,
                layer.dilation,
                tuple(layer._reversed_padding_repeated_twice) if around else (),
                layer.padding_mode,
            )
    return None


class LoRA(nn.Module):
    """Add the output of a low-rank weight to that of a layer.

    Args:
        geometry: how the layer applies its weight.
        rank: rank of the weight, for each part.
        scale: factor of what is added.
        fused: number of equal parts of the output.
        parts: positions of those that are adapted.
    """

    def __init__(
        self, geometry: Geometry, rank: int, scale: float, fused: int = 1, parts: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__()
        given, *taken = geometry.shape
        self.down = nn.Parameter(torch.empty(len(parts) * rank, *taken))
        self.up = nn.Parameter(torch.zeros(len(parts) * (given // fused), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as torch's own layers start
        self.geometry = geometry
        self.scale = scale
        self.fused = fused
        self.parts = parts

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add to ``y`` what the low-rank weight makes of ``x``."""
        layer = self.geometry
        if layer.groups > 1:  # a low rank of the whole weight is none of the groups
            return torch.add(y, layer.apply(x, self.weight(), layer.groups), alpha=self.scale)
        count, axis = len(self.parts), layer.axis
        narrow = layer.apply(x, self.down, 1).chunk(count, axis)
        pieces = list(y.chunk(self.fused, axis))
        for part, inner, up in zip(self.parts, narrow, self.up.chunk(count)):
            pieces[part] = torch.add(pieces[part], layer.mix(inner, up), alpha=self.scale)
        return torch.cat(pieces, axis) if self.fused > 1 else pieces[0]

    def weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the low-rank weight in the shape of the layer's, without the scale."""
        count = len(self.parts)
        down, up = self.down.flatten(1).to(dtype), self.up.to(dtype)
        made = [b @ a for a, b in zip(down.chunk(count), up.chunk(count))]
        if count < self.fused:
            blank = torch.zeros_like(made[0])
            adapted = dict(zip(self.parts, made))
            made = [adapted.get(part, blank) for part in range(self.fused)]
        return torch.cat(made).reshape(self.geometry.shape)

    def extra_repr(self) -> str:
        """Return what a printed model says of it."""
        parts = f", parts={self.parts} of {self.fused}" if self.fused > 1 else ""
        return f"weight={self.geometry.shape}, rank={self.up.shape[1]}, scale={self.scale:g}{parts}"


@block(beside=True, any_axis=True)
def lora(
    site: TensorSpec,
    rank: Positive = 8,
    *,
    alpha: Above | None = None,
    fused: Positive = 1,
    parts: Parts | None = None,
) -> nn.Module:
    """Describe low-rank adaptation: add ``alpha / rank * B A`` to the weight of a layer.

    Works beside ``nn.Linear`` and convolutions of any kernel, stride, padding, dilation and
    groups: the weight is seen as a matrix of outputs by inputs times kernel. ``B`` starts at
    zero, so the model starts unchanged to the bit; ``A`` starts as torch's own layers do.
    ``merge_lora`` folds it into the layer.

    Args:
        site: the place.
        rank: rank of what is added, for each part.
        alpha: the scale times the rank; the rank if ``None``, which is a scale of one.
        fused: number of equal parts of the output, for layers that are several in one: 3 for
            query, key and value.
        parts: positions of those that are adapted, each with an ``A`` and a ``B`` of its own;
            all if ``None``.

    Returns:
        The block.

    Raises:
        OptionError: an option is unknown or out of range.

    Example:
        >>> lora(8, fused=3, parts=(0, 2))
        lora(8, fused=3, parts=(0, 2))

    Source:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    geometry = geometry_of(site.layer)
    if geometry is None:
        raise _no_layer(site)
    if geometry.shape[0] % fused:
        raise ShapeError(
            f"the output of the layer does not consist of {fused} equal parts",
            found=f"{kind(site.layer)} that gives {geometry.shape[0]} channels",
            write=f"a number that divides {geometry.shape[0]}: fused={math.gcd(fused, geometry.shape[0])}",
        )
    return LoRA(geometry, rank, (alpha or rank) / rank, fused, parts or tuple(range(fused)))


def _no_layer(site: TensorSpec) -> TargetError:
    """Say what the target is instead of a layer that can be adapted."""
    layer = site.layer
    if layer is None:
        return TargetError(
            "lora adapts the weight of a layer, and this target is no call of a layer",
            found="an operation, or a container with its own forward",
            write="nn.Linear or a convolution inside it as the target",
        )
    if isinstance(layer, nn.MultiheadAttention):
        return TargetError(
            "lora adapts layers that are called, and the projections of attention are parameters of it",
            found="nn.MultiheadAttention, whose in_proj_weight and out_proj no forward calls",
            write="the layers around it, or attention with layers of its own for its projections",
        )
    inside = [
        name
        for name, part in layer.named_modules()
        if geometry_of(part)
        and not isinstance(layer.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
    own = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    return TargetError(
        "lora adapts nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d",
        found=kind(layer) + (" with a forward of its own" if own else ""),
        near=inside,
        write=f'a layer inside it: "<target>.{inside[0]}"' if inside else "nn.Linear as the target",
    )

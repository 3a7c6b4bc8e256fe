"""Low-rank adaptation of linear layers and convolutions."""

from __future__ import annotations

import math

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.beside import Adapting
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Above, Parts, Positive, Probability
from torchgraft.blocks.start import start
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


def geometry_of(layer: nn.Module | None) -> Geometry | None:
    """Read how a layer applies its weight; ``None`` where it is not known to do no more than that."""
    forward = type(layer).forward if layer is not None else None
    if isinstance(layer, nn.MultiheadAttention) and layer._parameters["in_proj_weight"] is not None:
        return Geometry((3 * layer.embed_dim, layer.embed_dim))
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


def weight_of(layer: nn.Module) -> str:
    """Name the weight of a layer that is adapted."""
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


class LoRA(Adapting):
    """Add the output of a low-rank weight to that of a layer.

    Args:
        geometry: how the layer applies its weight.
        rank: rank of the weight, for each part.
        scale: factor of what is added.
        fused: number of equal parts of the output.
        parts: positions of those that are adapted.
        dropout: share of what the layer takes that is dropped for the low-rank weight in training.
    """

    def __init__(
        self,
        geometry: Geometry,
        rank: int,
        scale: float,
        fused: int = 1,
        parts: tuple[int, ...] = (0,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        given, *taken = geometry.shape
        self.down = nn.Parameter(torch.empty(len(parts) * rank, *taken))
        self.up = nn.Parameter(torch.empty(len(parts) * (given // fused), rank))
        start(self, _low_rank)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.geometry = geometry
        ones = (1,) * geometry.places
        self.mixing = Geometry((len(self.up), rank, *ones), 1, ones, (0,) * geometry.places, ones)
        self.rank = rank
        self.scale = scale
        self.fused = fused
        self.parts = parts

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add to ``y`` what the low-rank weight makes of ``x``."""
        layer = self.geometry
        if not self.enabled:
            return y
        x = x if self.dropout is None else self.dropout(x)
        if layer.groups > 1:  # a low rank of the whole weight is none of the groups
            return torch.add(y, layer.apply(x, self.weight(), layer.groups), alpha=self.scale)
        narrow, mix = layer.apply(x, self.down, 1), self.mixing.apply
        up = self.up.reshape(self.mixing.shape) if layer.places else self.up
        if self.fused == 1:
            return torch.add(y, mix(narrow, up, 1), alpha=self.scale)
        count, pieces = len(self.parts), y.chunk(self.fused, layer.axis)
        inner, ups = narrow.chunk(count, layer.axis), up.chunk(count)
        made = [pieces[part] for part in range(self.fused)]
        for i, part in enumerate(self.parts):
            made[part] = torch.add(made[part], mix(inner[i], ups[i], 1), alpha=self.scale)
        return torch.cat(made, layer.axis)

    def weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the low-rank weight in the shape of the layer's, without the scale."""
        count = len(self.parts)
        downs, ups = self.down.flatten(1).to(dtype).chunk(count), self.up.to(dtype).chunk(count)
        made = [ups[i] @ downs[i] for i in range(count)]
        if count < self.fused:
            blank = torch.zeros_like(made[0])
            adapted = dict(zip(self.parts, made, strict=True))
            made = [adapted.get(part, blank) for part in range(self.fused)]
        return (torch.cat(made) if self.fused > 1 else made[0]).reshape(self.geometry.shape)

    def extra_repr(self) -> str:
        """Return what a printed model says of it."""
        parts = f", parts={self.parts} of {self.fused}" if self.fused > 1 else ""
        return f"weight={self.geometry.shape}, rank={self.rank}, scale={self.scale:g}{parts}"


def _low_rank(layer: nn.Module) -> None:
    nn.init.kaiming_uniform_(layer.get_parameter("down"), a=math.sqrt(5))  # as torch's own layers start
    nn.init.zeros_(layer.get_parameter("up"))


class WeightLoRA(LoRA):
    """Add a low-rank weight to that of a layer, where the weight is used without a call of the layer."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # called otherwise
        """Return the weight with what is added to it."""
        return torch.add(weight, self.weight(), alpha=self.scale) if self.enabled else weight


@block(beside=True, any_axis=True, on_weight=True)
def lora(
    site: TensorSpec,
    rank: Positive = 8,
    *,
    alpha: Above | None = None,
    fused: Positive = 1,
    parts: Parts | None = None,
    dropout: Probability = 0.0,
) -> nn.Module:
    """Describe low-rank adaptation: add ``alpha / rank * B A`` to the weight of a layer.

    Works beside ``nn.Linear`` and convolutions of any kernel, stride, padding, dilation and
    groups: the weight is seen as a matrix of outputs by inputs times kernel. ``B`` starts at
    zero, so the model starts unchanged to the bit; ``A`` starts as torch's own layers do.
    ``merge_lora`` folds it into the layer, ``set_adapters`` switches it off and on. Where the
    weight of a layer is used without a call of the layer, as in ``nn.MultiheadAttention``, it
    works on the weight; the attention as the target means its ``in_proj_weight``.

    Args:
        site: the place.
        rank: rank of what is added, for each part.
        alpha: the scale times the rank; the rank if ``None``, which is a scale of one.
        fused: number of equal parts of the output, for layers that are several in one: 3 for
            query, key and value.
        parts: positions of those that are adapted, each with an ``A`` and a ``B`` of its own;
            all if ``None``.
        dropout: share of what the layer takes that ``A`` does not see in training; only where the
            layer is called.

    Example:
        >>> lora(8, fused=3, parts=(0, 2))
        lora(8, fused=3, parts=(0, 2))

    Source:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    geometry = geometry_of(site.layer)
    if geometry is None or (isinstance(site.layer, nn.MultiheadAttention) and not site.weight):
        raise _no_layer(site)
    if geometry.shape[0] % fused:
        raise ShapeError(
            f"the output of the layer does not consist of {fused} equal parts",
            found=f"{kind(site.layer)} that gives {geometry.shape[0]} channels",
            write=f"a number that divides {geometry.shape[0]}: fused={math.gcd(fused, geometry.shape[0])}",
        )
    if site.weight and dropout:
        raise TargetError(
            "the weight of this layer is used without a call of it, so nothing that it takes can be dropped",
            found=f"{kind(site.layer)} with dropout={dropout}",
            write=repr(lora(rank, alpha=alpha, fused=fused, parts=parts)),
        )
    made = WeightLoRA if site.weight else LoRA
    return made(geometry, rank, (alpha or rank) / rank, fused, parts or tuple(range(fused)), dropout)


def _no_layer(site: TensorSpec) -> TargetError:
    """Say what the target is instead of a layer that can be adapted."""
    layer = site.layer
    if layer is None:
        return TargetError(
            "lora adapts the weight of a layer, and this target is no call of a layer",
            found="an operation, or a container with its own forward",
            write="nn.Linear or a convolution inside it as the target",
        )
    inside = [name for name, part in layer.named_modules() if name and geometry_of(part)]
    own = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    return TargetError(
        "lora adapts nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d and, by wrap, nn.MultiheadAttention",
        found=kind(layer) + (" with a forward of its own" if own else ""),
        near=inside,
        write=f'a layer inside it: "<target>.{inside[0]}"' if inside else "nn.Linear as the target",
    )

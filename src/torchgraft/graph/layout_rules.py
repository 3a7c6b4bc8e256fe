"""What layers and operations say about the axis of the channels: a convolution fixes axis 1."""

from __future__ import annotations

import attrs
import torch
from torch import fx, nn

from torchgraft.graph.nodes import plain_name


@attrs.frozen(eq=False)
class Fact:
    """Say that an axis holds so many channels.

    Args:
        channels: how many.
        axis: which axis.
        told_by: the tensor that told it.
        sure: ``False`` for what a linear layer gives, which may have mixed something else.
        rank: number of axes, where it is known.
    """

    channels: int
    axis: int
    told_by: torch.Tensor | None
    sure: bool = attrs.field(default=True, kw_only=True)
    rank: int | None = attrs.field(default=None, kw_only=True)


SAME = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.PReLU,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
POOLS = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.padding._ConstantPadNd, nn.Upsample,
)  # fmt: skip
_NORMS = nn.modules.batchnorm._NormBase


def given(module: nn.Module) -> Fact | None:
    """Read off a layer what it gives."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return Fact(module.out_channels, 1, module.weight, rank=module.weight.ndim)
    if isinstance(module, nn.Linear):
        return Fact(module.out_features, -1, module.weight, sure=False)
    return _kept(module)


def taken(module: nn.Module) -> Fact | None:
    """Read off a layer what it takes."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return Fact(module.in_channels, 1, module.weight, rank=module.weight.ndim)
    if isinstance(module, nn.Linear):
        return Fact(module.in_features, -1, module.weight, sure=False)
    return _kept(module)


def _kept(module: nn.Module) -> Fact | None:
    forward = type(module).forward
    if isinstance(module, _NORMS):
        told_by = module.weight if module.weight is not None else module.running_mean
        return Fact(module.num_features, 1, told_by, rank=4 if isinstance(module, nn.BatchNorm2d) else None)
    if isinstance(module, nn.GroupNorm) and forward is nn.GroupNorm.forward:
        return Fact(module.num_channels, 1, module.weight)
    # A LayerNorm with a forward of its own may be one for channels first.
    if (
        isinstance(module, nn.LayerNorm)
        and forward is nn.LayerNorm.forward
        and len(module.normalized_shape) == 1
    ):
        return Fact(module.normalized_shape[0], -1, module.weight)
    return None


def ancestral(module: nn.Module) -> Fact | None:
    """Read an attribute that layers which cannot be followed still have in common."""
    told_by = next(module.parameters(), None)
    for name in ("out_channels", "num_features"):
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and isinstance(getattr(module, name, None), int):
            return Fact(getattr(module, name), 1, told_by)
    return None


def operation(node: fx.Node) -> str:
    """Name what a node does, the same for a function, a method and its in-place form."""
    name = node.target if isinstance(node.target, str) else plain_name(node.target)
    return name.rstrip("_") if not name.startswith("__") else name


ELEMENTWISE = frozenset(
    (
        "add", "sub", "mul", "truediv", "div", "iadd", "imul", "relu", "relu6", "gelu", "silu", "sigmoid",
        "tanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "softplus", "dropout", "dropout2d",
        "contiguous", "float", "to", "clone", "neg", "stochastic_depth", "drop_path", "normalize",
        "batch_norm", "layer_norm",
    )
)  # fmt: skip
"""Operations that leave the axes as they are."""

POOLING = frozenset(
    (
        "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate",
        "max_pool1d", "max_pool3d", "avg_pool1d", "avg_pool3d",
    )
)  # fmt: skip
"""Operations that do so where the channels stand on axis 1."""

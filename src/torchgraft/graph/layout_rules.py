"""What layers and operations say about the axis of the channels.

A convolution fixes axis 1, a linear layer the last; an addition has the layout of what it
adds, a permute moves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import torch
from torch import fx, nn

from torchgraft.graph.nodes import plain_name


@attrs.frozen(eq=False)
class Fact:
    """Say that an axis holds so many channels, and which tensor told it."""

    channels: int
    axis: int
    told_by: torch.Tensor | None


class Follow(Protocol):
    """The search that rules ask to go on."""

    def back(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow a value back."""

    def first(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow the first argument of a node."""

    def any(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow the arguments of a node until one of them tells."""

    def tensor(self, owner: str, node: object) -> torch.Tensor | None:
        """Return the parameter or buffer that a node reads."""

    def module(self, owner: str, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""

    def shape(self, owner: str, node: fx.Node) -> torch.Size | None:
        """Return the shape of a value; ``None`` where it is unknown."""


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
        return Fact(module.out_channels, 1, module.weight)
    if isinstance(module, nn.Linear):
        return Fact(module.out_features, -1, module.weight)
    return _kept(module)


def taken(module: nn.Module) -> Fact | None:
    """Read off a layer what it takes."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return Fact(module.in_channels, 1, module.weight)
    if isinstance(module, nn.Linear):
        return Fact(module.in_features, -1, module.weight)
    return _kept(module)


def _kept(module: nn.Module) -> Fact | None:
    forward = type(module).forward
    if isinstance(module, _NORMS):
        told_by = module.weight if module.weight is not None else module.running_mean
        return Fact(module.num_features, 1, told_by)
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


Rule = Callable[[Follow, str, fx.Node, int], Fact | None]


def operation(node: fx.Node) -> str:
    """Name what a node does, the same for a function, a method and its in-place form."""
    name = node.target if isinstance(node.target, str) else plain_name(node.target)
    return name.rstrip("_") if not name.startswith("__") else name


def _any(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    return search.any(owner, node, depth)


def _first(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    return search.first(owner, node, depth)


def _conv(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:  # noqa: ARG001 - a rule
    weight = search.tensor(owner, node.args[1] if len(node.args) > 1 else node.kwargs.get("weight"))
    return Fact(weight.shape[0], 1, weight) if weight is not None else None


def _linear(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:  # noqa: ARG001 - a rule
    weight = search.tensor(owner, node.args[1] if len(node.args) > 1 else node.kwargs.get("weight"))
    return Fact(weight.shape[0], -1, weight) if weight is not None else None


def _layer_norm(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    weight = search.tensor(owner, node.args[2] if len(node.args) > 2 else node.kwargs.get("weight"))
    if isinstance(shape, (tuple, list)) and len(shape) == 1 and isinstance(shape[0], int):
        return Fact(shape[0], -1, weight)
    return search.first(owner, node, depth)


def _batch_norm(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:  # noqa: ARG001 - a rule
    mean = search.tensor(owner, node.args[1] if len(node.args) > 1 else node.kwargs.get("running_mean"))
    return Fact(mean.shape[0], 1, mean) if mean is not None else None


def _permute(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    fact = search.first(owner, node, depth)
    given = (
        node.args[1:]
        if len(node.args) > 2
        else node.args[1]
        if len(node.args) > 1
        else node.kwargs.get("dims")
    )
    if fact is None or not isinstance(given, (tuple, list)) or not all(isinstance(d, int) for d in given):
        return None
    dims = [int(d) % len(given) for d in given]
    axis = dims.index(fact.axis % len(dims))
    return attrs.evolve(fact, axis=-1 if axis == len(dims) - 1 else axis)


def _transpose(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    fact, source = search.first(owner, node, depth), node.args[0]
    named = [node.kwargs[key] for key in ("dim0", "dim1", "axis0", "axis1") if key in node.kwargs]
    pair = [d for d in (*node.args[1:3], *named) if isinstance(d, int)]
    if fact is None or len(pair) != 2 or not isinstance(source, fx.Node):
        return None
    if fact.axis == -1 and max(pair) < -1:  # axes before the last, however many there are
        return fact
    rank = len(search.shape(owner, source) or ())
    if not rank:
        return None
    one, other = (d % rank for d in pair)
    axis = {one: other, other: one}.get(fact.axis % rank, fact.axis % rank)
    return attrs.evolve(fact, axis=-1 if axis == rank - 1 else axis)


def _cat(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if isinstance(dim, int) and dim < -1:
        dim %= len(search.shape(owner, node) or range(-dim))
    joined = node.args[0] if node.args else node.kwargs.get("tensors")
    nodes = [n for n in joined if isinstance(n, fx.Node)] if isinstance(joined, (tuple, list)) else []
    parts = [search.back(owner, part, depth + 1) for part in nodes]  # one value may be joined twice
    first = next((p for p in parts if p is not None), None)
    if first is None or dim != first.axis:
        return first
    known = [p for p in parts if p is not None]
    return attrs.evolve(first, channels=sum(p.channels for p in known)) if len(known) == len(parts) else None


def _pool(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    fact = search.first(owner, node, depth)
    return fact if fact is not None and fact.axis == 1 else None


def _mean(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    fact = search.first(owner, node, depth)
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if fact is None or not isinstance(dims, (tuple, list)) or fact.axis in dims:
        return None
    return fact if fact.axis == 1 or all(isinstance(d, int) and d >= 0 for d in dims) else None


def _like(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    return search.back(owner, other, depth + 1) if isinstance(other, fx.Node) else None


def reshaped(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    """Follow an axis through a reshape, where it survives."""
    fact, source = search.first(owner, node, depth), node.args[0]
    if fact is None or not isinstance(source, fx.Node):
        return None
    old, new = search.shape(owner, source), search.shape(owner, node)
    if not old or not new:
        return None
    # In row-major order an axis survives where what comes after it, or before it, does.
    if fact.axis == -1:
        return fact if old[-1] == new[-1] else None
    return fact if fact.axis == 1 and old[:2] == new[:2] else None


def _getitem(search: Follow, owner: str, node: fx.Node, depth: int) -> Fact | None:
    source, index = node.args[0], node.args[1]
    if not isinstance(source, fx.Node):
        return None
    if index == 0 and source.op == "call_module":
        module = search.module(owner, source)
        if isinstance(module, nn.MultiheadAttention):
            return Fact(module.embed_dim, -1, module.out_proj.weight)
    # A token, or a range of tokens: the channels stand behind what is indexed.
    if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and ... not in index:
        fact = search.first(owner, node, depth)
        return fact if fact is not None and fact.axis == -1 else None
    return None


RULES: dict[str, Rule] = {
    **dict.fromkeys(("add", "sub", "mul", "truediv", "div", "iadd", "imul"), _any),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("mean",), _mean),
    **dict.fromkeys(
        (
            "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate",
            "max_pool1d", "max_pool3d", "avg_pool1d", "avg_pool3d",
        ),
        _pool,
    ),
    **dict.fromkeys(
        (
            "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "leaky_relu",
            "elu", "softplus", "dropout", "dropout2d", "contiguous", "float", "to", "clone", "neg",
            "stochastic_depth", "drop_path", "normalize",
        ),
        _first,
    ),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "permute": _permute,
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys(("reshape_as", "view_as", "expand_as"), _like),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    "getitem": _getitem,
}  # fmt: skip

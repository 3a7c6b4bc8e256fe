"""Which rule a layer or an operation follows on the way of a map, and what the walk is used for."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from torch import fx, nn

from torchgraft.graph.density import dense
from torchgraft.graph.density.meetings import first, pointwise, unknown
from torchgraft.graph.density.places import (
    adaptive,
    apart,
    argument,
    axes_of,
    by_group,
    item,
    moved,
    multiplied,
    reduced,
    reshaped,
    resized,
    spares,
)
from torchgraft.graph.density.walk import Each, Fact, Facts, Grid, Rule, Rules, Tokens, Walk
from torchgraft.graph.density.window import KINDS
from torchgraft.graph.density.windows import call_window, helper, layer_window, pad, pad_layer
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout_rules import SAME, operation


def strides_of(draft: Draft) -> tuple[tuple[int, ...], str]:
    """List the strides of the maps of a model, and name the first step behind which they are not known.

    Raises:
        TargetError: a stride cannot be told.
        TraceError: a forward on the way cannot be followed.
    """
    walk = Walk(draft, _RULES)
    walk.run()
    return tuple(sorted(walk.strides)), next(iter(walk.lost), "")


def densify(draft: Draft, output_stride: int) -> bool:
    """Make the maps of a model dense enough, and tell whether anything had to be done.

    Raises:
        TargetError: something on the way cannot be made denser.
        TraceError: a forward on the way cannot be followed.
    """
    walk = Walk(draft, _RULES, output_stride)
    walk.run()
    acts = [decision.act for decision in walk.plan.values() if decision.act is not None]
    for act in acts:
        act()
    if acts:
        draft.forget()
    return bool(acts)


def _nothing(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:  # noqa: ARG001 - a rule
    return None


_SIZES = frozenset(("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"))


def _asked(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    return None if node.args[1] in _SIZES else unknown(walk, owner, node, facts)


def _spread(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let vectors be spread over a map as they are."""
    fact = first(walk, owner, node, facts)
    return None if fact is None else unknown(walk, owner, node, facts)


def _listed(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:  # noqa: ARG001 - a rule
    return walk.fact(facts, node.args)


def _along(place: int, names: tuple[str, ...], *, last: bool = False) -> Rule:
    """Make the rule of what works along some axes and keeps the shape, or works along the last."""

    def rule(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
        fact = (first if last else pointwise)(walk, owner, node, facts)
        if not isinstance(fact, (Grid, Tokens)):
            return fact
        given = argument(node, place, names)
        if last:
            count = len(given) if isinstance(given, Sequence) else 1
            axes: set[int] | None = set(range(-count, 0))
        else:
            axes = axes_of(given)
        # Along all tokens an operation sees what it saw before, as these are never in between.
        keeps = spares(fact, axes) or (isinstance(fact, Tokens) and not last)
        return fact if keeps else unknown(walk, owner, node, facts)

    return rule


def _cat(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    fact = _along(1, ("dim", "axis"))(walk, owner, node, facts)
    given = argument(node, 1, ("dim", "axis"))
    if isinstance(fact, Grid) and operation(node) == "stack":
        new = int(given or 0) % (fact.rank + 1)  # type: ignore[call-overload]  # an integer, as it is spared
        a, b = (axis + (axis >= new) for axis in fact.axes)
        return attrs.evolve(fact, axes=(a, b), rank=fact.rank + 1)
    return fact


def _parts(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    fact = (
        _along(2, ("dim",))(walk, owner, node, facts) if len(node.args) > 2 or "dim" in node.kwargs else None
    )
    if fact is None:
        fact = unknown(walk, owner, node, facts)
    return Each(fact) if isinstance(fact, (Grid, Tokens)) else None


_PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
_STATISTICS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
_GROUPS = (nn.GroupNorm.forward, nn.modules.instancenorm._InstanceNorm.forward)


def _of_module(module: nn.Module) -> Rule | None:
    forward = type(module).forward
    if isinstance(module, KINDS):
        return layer_window
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return adaptive
    if isinstance(module, SAME) or forward in _STATISTICS:
        return pointwise
    if isinstance(module, _PADS):
        return pad_layer
    return by_group if forward in _GROUPS else None


_OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "add", "sub", "rsub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "neg", "pow",
            "abs", "addcmul", "addcdiv", "lerp", "where", "sqrt", "rsqrt", "square", "exp", "log", "sign",
            "floor", "round", "reciprocal", "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum",
            "masked_fill", "gt", "lt", "ge", "le", "eq", "ne", "bernoulli",
            "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh",
            "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "softsign", "prelu", "rrelu",
            "threshold", "logsigmoid", "dropout", "dropout2d", "dropout1d", "alpha_dropout",
            "feature_dropout", "feature_alpha_dropout", "stochastic_depth", "drop_path", "batch_norm",
            "local_response_norm", "contiguous", "float", "half", "double", "bfloat16", "to", "type_as",
            "clone", "detach", "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like",
        ),
        pointwise,
    ),
    **dict.fromkeys(
        (
            "size", "dim", "numel", "type", "len", "guard", "baked", "counted", "passed_on", "nothing",
            "_assert", "enter", "leave", "is_contiguous", "new_empty", "new_zeros", "new_ones", "new_full",
            "new_tensor", "arange", "is_tensor", "is_floating_point", "stride", "get_device",
        ),
        _nothing,
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"), reduced(1)),
    **dict.fromkeys(("norm", "vector_norm"), reduced(2)),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), moved),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys(("cat", "concat", "stack"), _cat),
    **dict.fromkeys(("softmax", "log_softmax", "cumsum"), _along(1, ("dim",))),
    "normalize": _along(2, ("dim",)),
    "linear": _along(9, (), last=True),
    "layer_norm": _along(1, ("normalized_shape",), last=True),
    "rms_norm": _along(1, ("normalized_shape",), last=True),
    **dict.fromkeys(("group_norm", "instance_norm"), by_group),
    **dict.fromkeys(("chunk", "split", "tensor_split"), _parts),
    **dict.fromkeys(("conv2d", "max_pool2d", "avg_pool2d"), call_window),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), adaptive),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "reshape_as", "view_as", "spread"), _spread),
    **dict.fromkeys(("matmul", "bmm"), multiplied),
    **dict.fromkeys(("interpolate", "upsample"), resized),
    "getattr": _asked,
    "pad": pad,
    "getitem": item,
    "listed": _listed,
}  # fmt: skip
_OWN: dict[object, Rule] = {
    dense.widen: helper,
    dense.trim: helper,
    dense.average: helper,
    dense.split: apart,
    dense.join: apart,
}


def _of_operation(node: fx.Node) -> Rule:
    if node.target in _OWN:
        return _OWN[node.target]
    return _OPERATIONS.get(operation(node), unknown)


_RULES = Rules(_of_module, _of_operation, unknown)

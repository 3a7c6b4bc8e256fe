"""Tell tensors from other values, and those with the channels on axis 1, without a run.

What makes a value tells, and what takes it: a convolution takes tensors alone, with the
channels on axis 1. The cheap signs come first; forwards are followed where these do not do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container
from torchgraft.graph.nodes import canonical, name_of
from torchgraft.graph.taps.likeness import likeness, where_taken
from torchgraft.graph.taps.memory import FRESH, end_of, inputs_given
from torchgraft.graph.taps.places import Tap

_PLANES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.LocalResponseNorm,
)  # fmt: skip
_ALIKE = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Mish,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
)
_SEVERAL = (nn.MultiheadAttention, nn.RNNBase, nn.modules.pooling._AdaptiveMaxPoolNd)
_OF_PLANES = frozenset(name for name in FRESH if name.startswith(("conv", "max_pool", "avg_pool"))) | {
    "batch_norm"
}
_OF_SIZES = frozenset(("add", "sub", "mul", "div", "neg", "pow", "abs", "sum", "sqrt", "exp", "log"))
_BY_PLACE = frozenset(("relu", "relu6", "gelu", "silu", "hardswish", "sigmoid", "clone", *_OF_SIZES)) - {
    "sum"
}
_MOVING = frozenset(
    ("view", "reshape", "flatten", "permute", "transpose", "contiguous", "unflatten", "movedim")
)


class Sign(enum.IntEnum):
    """What is known of a value."""

    NOTHING = 0
    TENSOR = 1
    PLANES = 2


class Signs:
    """Look for signs of what values are; each forward is followed once.

    Args:
        draft: the model; it is only read.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: dict[object, Sign] = {}

    def of(self, tap: Tap, enough: Sign) -> Sign:
        """Return the best sign of a value, looking until one is enough.

        Raises:
            TargetError: it is no tensor.
        """
        best = Sign.TENSOR if tap.item else Sign.NOTHING
        for deep in (False, True):
            for look in (self._taken, self._made):
                if best < enough:
                    best = max(best, look(tap.owner, tap.nodes[0], deep))
        if best is Sign.NOTHING:
            self._check(tap)
        return best

    def _check(self, tap: Tap) -> None:
        try:
            value = self._draft.value(tap.owner, tap.nodes[0])
        except AnalysisError:
            return  # a model that does not run on meta tensors may still run
        if isinstance(value, torch.Tensor):
            return
        users = (user for node in tap.nodes for user in node.users)
        items = sorted({name_of(user, tap.owner) for user in users if canonical(user) == "getitem"})
        held = len(value) if isinstance(value, (tuple, list, dict)) else 0
        raise TargetError(
            f"{tap.name!r} is no tensor",
            found=f"a {type(value).__name__}" + (f" of {held} items" if held else ""),
            write=f'one of its items: "{items[0]}"' if items else "a target that gives a tensor",
        )

    def _taken(self, owner: str, node: fx.Node, deep: bool) -> Sign:
        """Tell by what takes a value."""
        return _best(self._taken_by(owner, user, node, deep) for user in node.users)

    def _taken_by(self, owner: str, user: fx.Node, value: fx.Node, deep: bool) -> Sign:
        if user.op == "call_module":
            path = f"{owner}.{user.target}".lstrip(".")
            return self._module_takes(path, deep, user, value)
        if user.op == "output" or not user.args or user.args[0] is not value:
            return Sign.NOTHING
        name = canonical(user)
        if name in _OF_PLANES:
            return Sign.PLANES
        return Sign.TENSOR if name in _MOVING or name in FRESH - _OF_SIZES else Sign.NOTHING

    def _module_takes(
        self, path: str, deep: bool, call: fx.Node | None = None, value: fx.Node | None = None
    ) -> Sign:
        module = self._draft.get(path)
        if _is_sequence(module):
            return self._module_takes(f"{path}.{next(iter(module._modules))}", deep)
        sign = _of_layer(module)
        if sign is not None or not deep:
            return sign or Sign.NOTHING
        taken = set() if value is None else {value}
        key = likeness(module), where_taken(call, taken) if call is not None else (0,)
        if key not in self._known:
            self._known[key] = Sign.NOTHING
            graph = self._graph(path)
            inputs = [] if graph is None else inputs_given(graph, call, taken)
            self._known[key] = _best(self._taken(path, node, deep) for node in inputs)
        return self._known[key]

    def _made(self, owner: str, node: fx.Node, deep: bool) -> Sign:
        """Tell by what makes a value."""
        if node.op == "call_module":
            return self._module_gives(f"{owner}.{node.target}".lstrip("."), deep)
        if node.op not in ("call_function", "call_method"):
            return Sign.NOTHING
        name = canonical(node)
        if name in _OF_PLANES:
            return Sign.PLANES
        if name in _BY_PLACE or name == "cat":
            looks = (self._made, self._taken)
            best = _best(look(owner, source, deep) for look in looks for source in node.all_input_nodes)
            if name != "cat":
                return best
            return best if node.args[1:] == (1,) or node.kwargs.get("dim") == 1 else Sign.TENSOR
        return Sign.TENSOR if name in _MOVING or name in FRESH else Sign.NOTHING

    def _module_gives(self, path: str, deep: bool) -> Sign:
        module = self._draft.get(path)
        if _is_sequence(module):
            for name in reversed(module._modules):
                if not isinstance(module._modules[name], _ALIKE):
                    return self._module_gives(f"{path}.{name}", deep)
            return Sign.NOTHING
        if isinstance(module, _SEVERAL) or getattr(module, "return_indices", False):
            return Sign.NOTHING
        sign = _of_layer(module)
        if sign is not None:
            return sign
        if not deep:
            return Sign.NOTHING
        key = likeness(module)
        if key not in self._known:
            self._known[key] = Sign.NOTHING
            graph = self._graph(path)
            value = end_of(graph).args[0] if graph is not None else None
            self._known[key] = self._made(path, value, deep) if isinstance(value, fx.Node) else Sign.NOTHING
        return self._known[key]

    def _graph(self, path: str) -> fx.Graph | None:
        try:
            return self._draft.graphs(path)[0]
        except TraceError:
            return None


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward and bool(module._modules)


def _of_layer(module: nn.Module) -> Sign | None:
    """Tell what a layer takes and gives; ``None`` for what has a forward of its own."""
    if isinstance(module, _PLANES):
        return Sign.PLANES
    if isinstance(module, nn.Identity):
        return Sign.NOTHING
    is_own = is_container(module) or not type(module).__module__.startswith("torch.nn.")
    return None if is_own else Sign.TENSOR


def _best(signs: Iterable[Sign]) -> Sign:
    best = Sign.NOTHING
    for sign in signs:
        best = max(best, sign)
        if best is Sign.PLANES:
            break
    return best

"""Infer which axis of a value holds the channels, by following the graph to what fixes it.

Only the forwards on the way are followed, so the answer costs far less than a run of the
model. Where no rule tells, two runs on meta tensors do: the axis of the channels is the one
that does not grow with the input.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, LayoutError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout_rules import (
    POOLS,
    RULES,
    SAME,
    Fact,
    ancestral,
    given,
    operation,
    reshaped,
    taken,
)
from torchgraft.spec import TensorSpec

_DEPTH = 400


def spec_of(draft: Draft, owner: str, node: fx.Node, *, needs_rank: bool = False) -> TensorSpec:
    """Describe the value of a node.

    Args:
        draft: the draft.
        owner: path of the level with the node.
        node: the node.
        needs_rank: also find out the number of axes, which may need a run on meta tensors.

    Returns:
        What is known of the value.

    Raises:
        LayoutError: nothing on the way tells where the channels are.
    """
    fact = Search(draft).find(owner, node)
    rank = None
    if fact is None or needs_rank:
        shape = value_shape(draft, owner, node)
        rank = len(shape)
        if fact is None:
            fact = _by_size(draft, owner, node, shape)
        if fact is None:
            raise LayoutError(
                f"the axis of the channels of {node.name!r} in {owner or 'the root'} cannot be told",
                found=f"a value with {rank} axes, and no layer near it that fixes a layout",
                write="edit(<function of the draft>, name=...)",
            )
    told_by = fact.told_by if fact.told_by is not None else next(draft.root.parameters(), None)
    return TensorSpec(
        fact.channels,
        fact.axis,
        rank,
        told_by.dtype if told_by is not None else torch.get_default_dtype(),
        told_by.device if told_by is not None else torch.device("cpu"),
    )


def value_shape(draft: Draft, owner: str, node: fx.Node) -> torch.Size:
    """Return the shape of a node's value, by a run of its level on meta tensors.

    Raises:
        AnalysisError: the value is no tensor, or the level does not run.
    """
    value = draft.value(owner, node)
    if not isinstance(value, torch.Tensor):
        raise AnalysisError(
            f"{node.name!r} in {owner or 'the root'} is not a tensor", found=f"a {type(value).__name__}"
        )
    return value.shape


def _by_size(draft: Draft, owner: str, node: fx.Node, shape: torch.Size) -> Fact | None:
    """Take the one axis that does not grow with the input; without places, there is but one."""
    kept = list(range(1, len(shape)))
    if len(shape) > 2:
        try:
            larger = draft.value(owner, node, resized=True)
        except Exception:  # noqa: BLE001 - what runs at one size may fail in any way at another
            return None
        if not isinstance(larger, torch.Tensor) or larger.ndim != len(shape):
            return None
        kept = [axis for axis in kept if larger.shape[axis] == shape[axis]]
    if len(kept) != 1:
        return None
    (axis,) = kept
    return Fact(shape[axis], -1 if axis == len(shape) - 1 and axis > 1 else axis, None)


class Search:
    """Look for what fixes the layout of values; every answer is found once."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: dict[tuple[str, fx.Node], Fact | None] = {}

    def find(self, owner: str, node: fx.Node) -> Fact | None:
        """Look back from a node, then ahead to what takes it."""
        return self.back(owner, node, 0) or self.ahead(owner, node, 0)

    def back(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow a value back to a layer that fixes its layout."""
        if (owner, node) in self._known or depth > _DEPTH:
            return self._known.get((owner, node))
        self._known[owner, node] = None  # a value that is asked for while it is looked up tells nothing
        fact: Fact | None = None
        if node.op == "placeholder":
            fact = self._argument(owner, node, depth)
        elif node.op == "call_module":
            fact = self._module(owner, node, depth)
        elif node.op in ("call_function", "call_method"):
            rule = RULES.get(operation(node))
            fact = rule(self, owner, node, depth) if rule else None
        self._known[owner, node] = fact
        return fact

    def ahead(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Read the layout off a consumer that fixes what it takes."""
        for user in node.users:
            if user.op != "call_module" or not user.args or user.args[0] is not node:
                continue
            module = self.module(owner, user)
            fact = taken(module)
            if fact is not None:
                return fact
            if isinstance(module, SAME) and depth < _DEPTH:
                fact = self.ahead(owner, user, depth + 1)
                if fact is not None:
                    return fact
        return None

    def first(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow the first tensor argument."""
        source = node.args[0] if node.args else None
        return self.back(owner, source, depth + 1) if isinstance(source, fx.Node) else None

    def any(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow the arguments until one of them tells; what has one channel may be spread over many."""
        single, unknown = None, False
        # What came from outside the level leads far away: it is asked last.
        for source in sorted(node.all_input_nodes, key=lambda n: n.op == "placeholder"):
            fact = self.back(owner, source, depth + 1)
            if fact is not None and fact.channels > 1:
                return fact
            single, unknown = single or fact, unknown or fact is None
        return None if unknown else single

    def module(self, owner: str, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self._draft.get(f"{owner}.{node.target}".lstrip("."))

    def tensor(self, owner: str, node: object) -> torch.Tensor | None:
        """Return the parameter or buffer that a node reads."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            parent, _, name = f"{owner}.{node.target}".lstrip(".").rpartition(".")
            value = getattr(self._draft.get(parent), name, None)
            return value if isinstance(value, torch.Tensor) else None
        return None

    def _module(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        module = self.module(owner, node)
        path = f"{owner}.{node.target}".lstrip(".")
        fact = given(module)
        if fact is not None:
            return fact
        if isinstance(module, SAME):
            return self.first(owner, node, depth)
        if isinstance(module, POOLS):
            fact = self.first(owner, node, depth)
            return fact if fact is not None and fact.axis == 1 else None
        if isinstance(module, nn.Flatten):
            return reshaped(self, owner, node, depth)
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.Sequential):
            return None
        try:
            graph = self._draft.graphs(path)[0]
        except TraceError:
            return ancestral(module)
        (result,) = next(n for n in graph.nodes if n.op == "output").args
        return self.back(path, result, depth + 1) if isinstance(result, fx.Node) else None

    def _argument(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        if not owner:
            return None
        names = [n.target for n in node.graph.nodes if n.op == "placeholder"]
        try:
            calls = self._draft.calls(owner)
        except (TargetError, TraceError):
            return None
        for call in calls:
            position = names.index(node.target)
            passed = (
                call.node.args[position]
                if position < len(call.node.args)
                else call.node.kwargs.get(str(node.target))
            )
            if isinstance(passed, fx.Node):
                return self.back(call.owner, passed, depth + 1)
        return None

    def shape(self, owner: str, node: fx.Node) -> torch.Size | None:
        """Return the shape of a value; ``None`` where the model does not run."""
        try:
            return value_shape(self._draft, owner, node)
        except AnalysisError:
            return None

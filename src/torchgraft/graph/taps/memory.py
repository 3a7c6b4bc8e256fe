"""Which values may share memory, and which operations may write into it.

Only what is certain counts: where it cannot be told, a value may be written into.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Container, Iterable
from collections.abc import Set as AbstractSet

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.guard import baked, counted, guard, nothing, passed_on, typed
from torchgraft.graph.kinds import is_unit
from torchgraft.graph.modes import enter, leave
from torchgraft.graph.nodes import canonical, is_in_place

CHECKS = frozenset((guard, baked, counted, nothing, passed_on, typed, torch._assert, torch._check))
_HARMLESS = CHECKS | {enter, leave, OrderedDict}
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.PixelShuffle)
FRESH = frozenset(
    (
        "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "bilinear", "matmul", "mm", "bmm",
        "addmm", "baddbmm", "scaled_dot_product_attention", "add", "sub", "mul", "div",
        "neg", "pow", "sqrt", "rsqrt", "exp", "log", "abs", "sin", "cos", "clamp",
        "where", "cat", "stack", "roll", "clone", "mean", "sum",
        "amax", "amin", "var", "std", "norm", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu",
        "silu", "mish", "sigmoid", "logsigmoid", "tanh", "softmax", "log_softmax", "softplus", "hardswish",
        "hardsigmoid", "hardtanh", "prelu", "glu", "batch_norm", "layer_norm", "group_norm", "instance_norm",
        "rms_norm", "local_response_norm", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate",
    )
)  # fmt: skip
"""Operations that always give a tensor of new memory, whatever they are given."""


class Effect(enum.IntEnum):
    """What a node does with a value that it takes."""

    READS = 0
    PASSES = 1
    """Its own value may share the memory."""
    WRITES = 2


class Memory:
    """Follow the memory of values through the graphs of a model.

    Args:
        draft: the model; it is only read.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: dict[object, Effect] = {}

    def written_after(self, owner: str, position: fx.Node, value: fx.Node) -> bool:
        """Return True if something may write into a value once a node has run.

        Args:
            owner: path of the level.
            position: the node.
            value: node with the value.
        """
        written, above = self._written(owner, position), self._is_written_above(owner)
        if not (written or above):
            return False
        shared, end = self.shared(owner, [value]), end_of(value.graph)
        if above and any(node.op == "placeholder" or end in node.users for node in shared):
            return True  # where what leaves a level goes is not looked up
        # Each read of a parameter is a node of its own.
        return bool(written) and (not shared.isdisjoint(written) or any(n.op == "get_attr" for n in shared))

    def _written(self, owner: str, position: fx.Node) -> set[fx.Node]:
        """Return the nodes whose values may be written into after another node."""
        nodes = list(position.graph.nodes)
        place = nodes.index(position) + 1
        later = set(nodes[place:])
        return {
            n for n in nodes[:place] if not later.isdisjoint(n.users) and self._is_written(owner, n, later)
        }

    def _is_written(self, owner: str, node: fx.Node, later: AbstractSet[fx.Node]) -> bool:
        if later.isdisjoint(node.users):
            return False
        shared = self.shared(owner, [node], later)
        return any(self.effect(owner, u, n) is Effect.WRITES for n in shared for u in n.users if u in later)

    def _is_written_above(self, owner: str) -> bool:
        calls = self._draft.calls(owner) if owner else ()
        return any(self._written(c.owner, c.node) or self._is_written_above(c.owner) for c in calls)

    def shared(
        self, owner: str, sources: Iterable[fx.Node], within: Container[fx.Node] | None = None
    ) -> set[fx.Node]:
        """Return the nodes of a graph that may share memory with some of them.

        Args:
            owner: path of the level.
            sources: the nodes.
            within: look ahead only, among these; otherwise also back.
        """
        found, waiting = set(), list(sources)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            users = [user for user in node.users if within is None or user in within]
            waiting += [user for user in users if self.effect(owner, user, node)]
            if within is None:
                waiting += [source for source in node.all_input_nodes if self.effect(owner, node, source)]
        return found

    def effect(self, owner: str, node: fx.Node, source: fx.Node) -> Effect:
        """Tell what a node does with a value that it takes; where nobody knows, it writes."""
        if node.op == "output" or node.target in _HARMLESS:
            return Effect.READS
        if node.op == "call_module":
            return self._of_module(f"{owner}.{node.target}".lstrip("."), node, source)
        if not _is_known(node.target) or node.kwargs.get("out") is source:
            return Effect.WRITES
        if is_in_place(node):
            return Effect.WRITES if node.all_input_nodes[0] is source else Effect.READS
        return Effect.READS if canonical(node) in FRESH and "out" not in node.kwargs else Effect.PASSES

    def _of_module(self, path: str, call: fx.Node, source: fx.Node) -> Effect:
        module = self._draft.get(path)
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not all(map(_is_known, hooks)):
            return Effect.WRITES
        if is_unit(module):
            if getattr(module, "inplace", False) is True:
                return Effect.WRITES
            return Effect.PASSES if isinstance(module, _PASSING) else Effect.READS
        try:
            return max(self._of_level(path, graph, call, source) for graph in self._draft.graphs(path))
        except TraceError:
            return Effect.WRITES

    def _of_level(self, path: str, graph: fx.Graph, call: fx.Node, source: fx.Node) -> Effect:
        inputs = [n for n in graph.nodes if n.op == "placeholder" and source in given_for(call, n)]
        key = (graph, *inputs)
        if key not in self._known:
            self._known[key] = Effect.WRITES  # of a module that calls itself
            shared = self.shared(path, inputs, set(graph.nodes))
            effects = {self.effect(path, user, n) for n in shared for user in n.users}
            returned = not shared.isdisjoint(end_of(graph).all_input_nodes)
            writes = Effect.WRITES in effects
            self._known[key] = Effect.WRITES if writes else Effect(returned)
        return self._known[key]


def _is_known(function: object) -> bool:
    home = getattr(function, "__module__", None) or "torch"
    return home.partition(".")[0] in ("torch", "torchgraft", "_operator", "builtins", "math")


def given_for(call: fx.Node, parameter: fx.Node) -> list[fx.Node]:
    """Return the nodes that a call passes for a parameter of its level."""
    name = str(parameter.target)
    names = [str(n.target) for n in parameter.graph.nodes if n.op == "placeholder"]
    place = names.index(name)
    given: object = call.kwargs.get(name)
    if name.startswith("*"):
        given = (call.args[place:], dict(call.kwargs))
    elif place < len(call.args):
        given = call.args[place]
    return [item for item in tree_leaves(given) if isinstance(item, fx.Node)]


def end_of(graph: fx.Graph) -> fx.Node:
    """Return the output of a graph."""
    end: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return end

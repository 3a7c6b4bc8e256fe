"""Which values may share memory, and which operations may write into it.

Where that cannot be told, the answer is that they may.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Collection, Iterable

import attrs
import torch
from torch import fx, nn
from torch.nn import functional as F

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.guard import baked, counted, guard, nothing, passed_on
from torchgraft.graph.kinds import is_container
from torchgraft.graph.modes import enter, leave
from torchgraft.graph.nodes import canonical, plain_name
from torchgraft.graph.taps.codes import is_of_torch, only_reads
from torchgraft.graph.taps.likeness import likeness, nodes_in, where_taken

CHECKS = frozenset((guard, baked, counted, nothing, passed_on, torch._assert, torch._check))
_HARMLESS = CHECKS | {enter, leave}
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.PixelShuffle)
_WRITERS = frozenset(("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul", "imod", "setitem"))
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


@attrs.frozen
class Inside:
    """What a module does with an argument: write into it, hand its memory on."""

    writes: bool
    passes: bool


_ANYTHING = Inside(writes=True, passes=True)


class Memory:
    """Follow the memory of values through the graphs of a model.

    Args:
        draft: the model.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: dict[object, Inside] = {}
        self._calls: dict[str, list[Call]] = {}

    def written_after(self, owner: str, position: fx.Node, sources: Iterable[fx.Node]) -> bool:
        """Tell whether something may write into values once a node has run.

        Args:
            owner: path of the level.
            position: the node.
            sources: nodes with the values.
        """
        sources = list(sources)
        later = _after(position)
        # Most values are made of what nobody looks at again: then it does not matter what they share.
        shared = self.shared(owner, sources, back=self._used_later(owner, position, sources))
        if any(self.writes(owner, node, shared) for node in later):
            return True
        if not owner:
            return False
        for call in self._calls_of(owner):
            given = [s for n in shared if n.op == "placeholder" for s in passed(call.node, n)]
            given += _received(call.node, position.graph, shared)
            if given and self.written_after(call.owner, call.node, given):
                return True
        return False

    def _used_later(self, owner: str, position: fx.Node, sources: Iterable[fx.Node]) -> bool:
        """Tell whether what some values are made of is used once a node has run."""
        made_of: set[fx.Node] = set()
        waiting = [n for source in sources for n in source.all_input_nodes]
        while waiting:
            node = waiting.pop()
            if node not in made_of:
                made_of.add(node)
                waiting += node.all_input_nodes
        if any(self._looked_at(owner, node, position) for node in made_of):
            return True
        inputs = [node for node in made_of if node.op == "placeholder"]
        if not owner or not inputs:
            return False
        for call in self._calls_of(owner):
            given = [s for n in inputs for s in passed(call.node, n)]
            if any(self._looked_at(call.owner, node, call.node) for node in given):
                return True
            if self._used_later(call.owner, call.node, [call.node]):
                return True
        return False

    def _looked_at(self, owner: str, node: fx.Node, position: fx.Node) -> bool:
        """Tell whether something that may write, or hand memory on, takes a value after a node has run."""
        later = set(_after(position))
        for user in node.users:
            if user not in later or user.target is OrderedDict or _only_makes(user):
                continue
            if user.op != "output":
                return True
            for call in self._calls_of(owner) if owner else ():
                received = _received(call.node, node.graph, {node})
                if any(self._looked_at(call.owner, part, call.node) for part in received):
                    return True
        return False

    def shared(self, owner: str, sources: Iterable[fx.Node], *, back: bool = True) -> set[fx.Node]:
        """Return the nodes of a graph that may share memory with some of them.

        Args:
            owner: path of the level.
            sources: the nodes.
            back: also look at what they are made of.
        """
        found, waiting = set(), list(sources)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            waiting += [user for user in node.users if self._passes(owner, user, node)]
            if back:
                waiting += [source for source in node.all_input_nodes if self._passes(owner, node, source)]
        return found

    def writes(self, owner: str, node: fx.Node, values: set[fx.Node]) -> bool:
        """Tell whether a node may write into one of some values."""
        taken = [source for source in node.all_input_nodes if source in values]
        if not taken or node.op == "output" or node.target in _HARMLESS:
            return False
        if node.op == "call_module":
            return self._inside(owner, node, taken).writes
        if node.op == "call_function" and not is_of_torch(node.target):
            return not only_reads(node.target)
        return (_in_place(node) and node.all_input_nodes[0] in values) or node.kwargs.get("out") in values

    def _passes(self, owner: str, node: fx.Node, source: fx.Node) -> bool:
        if node.op in ("output", "placeholder", "get_attr") or node.target in _HARMLESS:
            return False
        if node.op == "call_module":
            return self._inside(owner, node, [source]).passes
        if _in_place(node):
            return node.all_input_nodes[0] is source
        return not _only_makes(node)

    def _inside(self, owner: str, call: fx.Node, taken: list[fx.Node]) -> Inside:
        path = f"{owner}.{call.target}".lstrip(".")
        known = self._of_unit(path)
        if known is not None:
            return known
        return self._of_level(path, call, set(taken))

    def _of_unit(self, path: str) -> Inside | None:
        """Tell what a layer does, or a sequence of modules; ``None`` for what has to be followed."""
        module = self._draft.get(path)
        if any(not is_of_torch(hook) for hook in _hooks(module)):
            return _ANYTHING
        if type(module).forward is nn.Sequential.forward:
            for name in module._modules:
                inside = self._of_unit(f"{path}.{name}") or self._of_level(f"{path}.{name}")
                if inside.writes or not inside.passes:
                    return inside
            return Inside(writes=False, passes=True)
        if not is_container(module) and type(module).__module__.startswith("torch.nn."):
            in_place = getattr(module, "inplace", False) is True
            return Inside(in_place, in_place or isinstance(module, _PASSING))
        return None

    def _of_level(self, path: str, call: fx.Node | None = None, taken: Collection[fx.Node] = ()) -> Inside:
        """Tell what a forward does with what a call passes; without a call, with its first input."""
        key = likeness(self._draft.get(path)), where_taken(call, set(taken)) if call is not None else (0,)
        if key not in self._known:
            self._known[key] = _ANYTHING  # of a module that calls itself
            try:
                every = [self._in_graph(path, graph, call, taken) for graph in self._draft.graphs(path)]
            except TraceError:
                return _ANYTHING
            self._known[key] = Inside(any(i.writes for i in every), any(i.passes for i in every))
        return self._known[key]

    def _in_graph(
        self, path: str, graph: fx.Graph, call: fx.Node | None, taken: Collection[fx.Node]
    ) -> Inside:
        shared = self.shared(path, inputs_given(graph, call, taken), back=False)
        returned = any(node in shared for node in end_of(graph).all_input_nodes)
        return Inside(any(self.writes(path, node, shared) for node in graph.nodes), returned)

    def _calls_of(self, owner: str) -> list[Call]:
        if owner not in self._calls:
            self._calls[owner] = self._draft.calls(owner)
        return self._calls[owner]


def _only_makes(node: fx.Node) -> bool:
    """Tell whether an operation makes new memory, and writes into no other."""
    makes = node.op in ("call_function", "call_method") and canonical(node) in FRESH
    return makes and not _in_place(node) and "out" not in node.kwargs


def _after(position: fx.Node) -> list[fx.Node]:
    nodes = list(position.graph.nodes)
    return nodes[nodes.index(position) + 1 :]


def _hooks(module: nn.Module) -> list[object]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _in_place(node: fx.Node) -> bool:
    """Tell whether an operation writes into its first argument."""
    target = node.target
    name = target if isinstance(target, str) else plain_name(target)
    if (name.endswith("_") and not name.endswith("__")) or name in _WRITERS:
        return True
    if "inplace" in node.kwargs or getattr(F, name, None) is not target or not inspect.isfunction(target):
        return node.kwargs.get("inplace", False) is not False
    signature = inspect.signature(target)
    if "inplace" not in signature.parameters:
        return False
    return signature.bind(*node.args, **node.kwargs).arguments.get("inplace", False) is not False


def passed(call: fx.Node, parameter: fx.Node) -> list[fx.Node]:
    """Return the nodes that a call passes for a parameter of its level."""
    name = str(parameter.target)
    names = [str(n.target) for n in parameter.graph.nodes if n.op == "placeholder"]
    place = names.index(name)
    given: object = call.kwargs.get(name)
    if name.startswith("*"):
        given = (call.args[place:], dict(call.kwargs))
    elif place < len(call.args):
        given = call.args[place]
    return nodes_in(given)


def inputs_given(graph: fx.Graph, call: fx.Node | None, taken: Collection[fx.Node]) -> list[fx.Node]:
    """Return the parameters of a level for which a call passes some values; without a call, the first."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if call is None:
        return inputs[:1]
    return [node for node in inputs if any(source in taken for source in passed(call, node))]


def _received(call: fx.Node, graph: fx.Graph, shared: set[fx.Node]) -> list[fx.Node]:
    """Return where a call hands on what a level returns of some values: parts of a tuple one by one."""
    (value,) = end_of(graph).args
    if not isinstance(value, tuple):
        return [call] if any(node in shared for node in end_of(graph).all_input_nodes) else []
    parts = [user for user in call.users if plain_name(user.target) == "getitem"]
    if len(parts) < len(call.users):
        return [call]
    return [part for part in parts if any(node in shared for node in nodes_in(value[part.args[1]]))]  # type: ignore[index]  # a number


def end_of(graph: fx.Graph) -> fx.Node:
    """Return the output of a graph."""
    end: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return end

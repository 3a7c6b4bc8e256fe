"""The flow of values through one graph: what each is made from, and by how many layers.

Sizes, settings and parameters are no values here: what depends on them alone does not
depend on the input.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph import guard
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container

_SCALES = frozenset((operator.mul, operator.imul, torch.mul, "mul", "mul_"))
_SHIFTS = frozenset((operator.add, operator.iadd, torch.add, "add", "add_"))
_CHECKS = frozenset((guard.guard, guard.baked, guard.counted, guard.passed_on, guard.nothing))
_FACTS = frozenset(("shape", "size", "dim", "ndim", "ndimension", "dtype", "device", "numel", "len"))
_MADE = ("_like", "empty", "zeros", "ones", "arange")


class Flow:
    """The values of one graph.

    Args:
        draft: the model.
        owner: path of the level.
        graph: one of its graphs.
        caller: the flow that calls the level; ``None`` for the root and where it is unknown.
        call: the call there; parameters that it passes no values for are settings.
    """

    def __init__(
        self,
        draft: Draft,
        owner: str,
        graph: fx.Graph,
        caller: Flow | None = None,
        call: fx.Node | None = None,
    ) -> None:
        self._draft = draft
        self._owner = owner
        self.sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self.origins: dict[fx.Node, frozenset[fx.Node]] = {}
        self.users: dict[fx.Node, list[fx.Node]] = {}
        self._learnt: set[fx.Node] = set()
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        for node in graph.nodes:
            sources = tuple(n for n in node.all_input_nodes if n in self.sources)
            if node.op == "placeholder":
                if caller is None or call is None or caller.passes(call, inputs.index(node), node):
                    self._add(node, (), frozenset((node,)))
            elif sources and not _is_fact(node) and self._gives(node):
                self._add(node, sources, frozenset().union(*(self.origins[n] for n in sources)))
            elif self._is_parameter(node) or self._learnt.intersection(node.all_input_nodes):
                self._learnt.add(node)
        self.stream = next(iter(self.sources), None)
        """The first input, which the others are conditions of."""

    def path(self, node: fx.Node) -> str:
        """Return the path of what a node calls or reads."""
        return f"{self._owner}.{node.target}".lstrip(".")

    def passes(self, call: fx.Node, position: int, parameter: fx.Node) -> bool:
        """Tell whether a call passes values for a parameter, and no sizes or settings."""
        name = str(parameter.target)
        passed: object = call.args[position] if position < len(call.args) else call.kwargs.get(name)
        if name.startswith("*"):
            passed = (call.args[position:], dict(call.kwargs))
        return any(node in self.sources for node in _nodes(passed))

    def above(self, node: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
        """Return a value and all it is made from, up to one that stops."""
        return _reach([node], self.sources, stop)

    def below(self, node: fx.Node, stop: fx.Node) -> set[fx.Node]:
        """Return all that is made from a value, down to one that stops."""
        return _reach(self.users.get(node, []), self.users, stop)

    def steps(self, node: fx.Node) -> int:
        """Count the layers with parameters that a node runs; scaling and shifting are none."""
        if node.op == "call_module":
            parts = self._draft.get(self.path(node)).modules()
            return sum(any(p is not None for p in part._parameters.values()) for part in parts)
        learnt = self._learnt.intersection(node.all_input_nodes)
        return int(bool(learnt) and node.target not in _SCALES | _SHIFTS)

    def span(self, inside: set[fx.Node], start: fx.Node, end: fx.Node) -> tuple[int, int]:
        """Count the layers from one value to another, on the shortest way and on the longest.

        Args:
            inside: the nodes that the ways may run through.
            start: the first value.
            end: the last value, which is inside.
        """
        known = {start: (0, 0)}
        for node, sources in self.sources.items():
            before = [known[n] for n in sources if n in known] if node in inside else []
            if before:
                own = self.steps(node)
                known[node] = min(b[0] for b in before) + own, max(b[1] for b in before) + own
        return known[end]

    def ending(self, node: fx.Node, entry: fx.Node | None) -> Iterator[nn.Module]:
        """Yield the modules before a node, last one first, until one that mixes channels.

        Args:
            node: the node.
            entry: the value to stop at.
        """
        while node is not entry and len(self.sources.get(node, ())) == 1:
            if node.op == "call_module":
                module = self._draft.get(self.path(node))
                yield module
                if is_container(module):
                    yield from self._ending_inside(node)
                if any(sum(side > 1 for side in p.shape) > 1 for p in module.parameters()):
                    return
            elif self.steps(node):
                return
            (node,) = self.sources[node]

    def _ending_inside(self, call: fx.Node) -> Iterator[nn.Module]:
        path = self.path(call)
        try:
            graph = self._draft.graphs(path)[-1]
        except TraceError:
            return
        value = _output(graph)
        if isinstance(value, fx.Node):
            yield from Flow(self._draft, path, graph, self, call).ending(value, None)

    def _gives(self, part: fx.Node) -> bool:
        """Tell whether a part of what a level returns is a value; some return sizes too."""
        call, index = part.args[:2] if part.target is operator.getitem else (None, None)
        if not isinstance(call, fx.Node) or call.op != "call_module" or not isinstance(index, int):
            return True
        path = self.path(call)
        if not is_container(self._draft.get(path)):
            return True
        try:
            graph = self._draft.graphs(path)[-1]
        except TraceError:
            return True
        items = _output(graph)
        if not isinstance(items, (tuple, list)) or index >= len(items):
            return True
        inner = Flow(self._draft, path, graph, self, call)
        return any(node in inner.sources for node in _nodes(items[index]))

    def _add(self, node: fx.Node, sources: tuple[fx.Node, ...], origins: frozenset[fx.Node]) -> None:
        self.sources[node] = sources
        self.origins[node] = origins
        for source in sources:
            self.users.setdefault(source, []).append(node)

    def _is_parameter(self, node: fx.Node) -> bool:
        if node.op != "get_attr":
            return False
        parent, _, name = self.path(node).rpartition(".")
        return name in self._draft.get(parent)._parameters


def _reach(
    waiting: list[fx.Node],
    onward: Mapping[fx.Node, tuple[fx.Node, ...] | list[fx.Node]],
    stop: fx.Node | None,
) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(waiting)
    while waiting:
        here = waiting.pop()
        if here not in found and here is not stop:
            found.add(here)
            waiting += onward.get(here, ())
    return found


def _is_fact(node: fx.Node) -> bool:
    """Tell whether a node checks, reads a size or a dtype, makes a value of a size, or is read by nobody."""
    checked = all(user.target in _CHECKS for user in node.users)
    if node.target in _CHECKS or (checked and (node.users or node.target is operator.getitem)):
        return True
    asked = node.args[1] if node.target is getattr else node.target
    name = asked if isinstance(asked, str) else getattr(asked, "__name__", "")
    return node.op != "call_module" and (name in _FACTS or name.startswith("new_") or name.endswith(_MADE))


def _output(graph: fx.Graph) -> object:
    (value,) = next(node for node in reversed(graph.nodes) if node.op == "output").args
    return value


def _nodes(value: object) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [node for item in items for node in _nodes(item)]

"""Anchors: places in the graph of a level, as plain data that another trace of it can be asked for."""

from __future__ import annotations

import attrs
from torch import fx

from torchgraft.graph.nodes import canonical

Lines = tuple[tuple[str, int], ...]


@attrs.frozen
class Anchor:
    """Name one node of a graph.

    Args:
        kind: the op of the node.
        name: path of a called module, name of a parameter or of an operation.
        lines: files and lines of the forward that made an operation, the innermost first.
        number: which one of the nodes with that kind, name and lines.
        count: how many of these there are.
    """

    kind: str
    name: str = ""
    lines: Lines = ()
    number: int = 0
    count: int = 1

    def find(self, graph: fx.Graph, *, every: bool = False) -> list[fx.Node]:
        """Return the node in a graph, or every node of its kind; none where it is missing or ambiguous."""
        found = [node for node in graph.nodes if _key(node) == (self.kind, self.name, self.lines)]
        if every:
            return found
        return [found[self.number]] if len(found) == self.count else []

    def __str__(self) -> str:
        where = f" ({self.lines[0][0]}:{self.lines[0][1]})" if self.lines else ""
        number = f", number {self.number + 1} of {self.count}" if self.count > 1 else ""
        return f"{_WORDS.get(self.kind, 'the operation')} {self.name!r}{number}{where}".replace(" ''", "")


def anchor_of(node: fx.Node) -> Anchor:
    """Return the anchor of a node."""
    key = _key(node)
    alike = [other for other in node.graph.nodes if _key(other) == key]
    return Anchor(*key, alike.index(node), len(alike))


_WORDS = {
    "call_module": "the call of",
    "placeholder": "the argument",
    "output": "the output",
    "get_attr": "the read of",
}


def _key(node: fx.Node) -> tuple[str, str, Lines]:
    if node.op in _WORDS:
        return node.op, "" if node.op == "output" else str(node.target).lstrip("*"), ()
    return "operation", canonical(node), tuple(node.meta.get("line") or ())

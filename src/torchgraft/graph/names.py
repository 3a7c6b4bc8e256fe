"""Look nodes up by their qualified names in a draft."""

from __future__ import annotations

from torchgraft.errors import TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.nodes import Node as Node
from torchgraft.graph.nodes import all_names, names_in


def nodes_named(draft: Draft, owner: str, name: str) -> tuple[Node, ...]:
    """Return the nodes of a level that have a qualified name, one for each mode that has it.

    Raises:
        TargetError: the name means different operations in the two modes.
        TraceError: the forward of the level cannot be followed.
    """
    graphs = draft.graphs(owner) if has_forward(draft.get(owner)) else ()
    found = [names_in(graph, owner).get(name) for graph in graphs]
    nodes = tuple(node for node in found if node is not None)
    lines = {node.meta["line"] for node in nodes if "line" in node.meta}
    if len(lines) > 1:
        raise TargetError(
            f"{name!r} is one operation in training and another in evaluation",
            found=", ".join(sorted(f"{calls[0][0]}:{calls[0][1]}" for calls in lines if calls)),
            write="a target that both modes have in common",
        )
    return nodes


def node_names(draft: Draft, owner: str) -> list[str]:
    """List the qualified names of a level's nodes; empty where it cannot be followed."""
    try:
        return list(all_names(draft.graphs(owner), owner))
    except TraceError:
        return []

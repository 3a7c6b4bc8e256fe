"""Edges: where a value flows in the graph of a level, so that a call can be put there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs
from torch import fx, nn

from torchgraft.errors import TargetError
from torchgraft.graph.anchor import anchor_of
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.rewrites import Insert
from torchgraft.paths import join_path, parent_of
from torchgraft.text import literal

_BESIDE = "_torchgraft_beside"


@attrs.frozen(eq=False)
class Edge:
    """A value and those of its uses that a new call takes over.

    Args:
        owner: path of the level.
        graph: the graph.
        value: the node with the value.
        users: the nodes that will take the new value instead.
        entry: the node with what the target took; ``None`` where it is no one value.
        side: which uses these are: all of the value, that of one node, that of the output, some.
        every: one of the edges at every call of a module.
    """

    owner: str
    graph: fx.Graph
    value: fx.Node
    users: tuple[fx.Node, ...]
    entry: fx.Node | None = None
    side: Literal["after", "before", "output", "between"] = "between"
    every: bool = False

    def consumer(self) -> str:
        """Name what takes the value."""
        first = next(iter(self.users), None)
        if first is None or first.op == "output":
            return f"the output of {self.owner or 'the model'}"
        return join_path(self.owner, str(first.target if first.op == "call_module" else first.name))


def after(owner: str, graph: fx.Graph, node: fx.Node) -> Edge:
    """Return the edge from a node to all its users.

    Raises:
        TargetError: nothing takes the value, so nothing behind it would show.
    """
    if not node.users:
        raise TargetError(
            f"nothing takes the value of {node.name!r} in {owner or 'the root'}",
            found="a call for its effect alone, such as an operation in place",
            write="a target whose value is used",
        )
    return Edge(owner, graph, node, tuple(node.users), next(iter(node.all_input_nodes), None), "after")


def before(owner: str, graph: fx.Graph, node: fx.Node) -> Edge:
    """Return the edge into the first tensor argument of a node.

    Raises:
        TargetError: the node takes no value of the graph.
    """
    sources = node.all_input_nodes
    if not sources:
        raise TargetError(f"{node.name!r} takes no value, so nothing can come before it")
    if node.args and isinstance(node.args[0], (list, tuple)) and len(sources) > 1:
        raise TargetError(
            f"{node.name!r} takes {len(sources)} values, so it is open which one is meant",
            found=", ".join(source.name for source in sources),
            write=f'inject(<the target that gives one of them>, ..., where="after"): {sources[0].name}',
        )
    return Edge(owner, graph, sources[0], (node,), None, "before")


def output(draft: Draft, path: str) -> list[Edge]:
    """Return the edges from the value of a level to its output, one for each mode.

    Raises:
        TargetError: the level returns something that is not one value.
    """
    edges = []
    for graph in draft.graphs(path):
        end = next(node for node in graph.nodes if node.op == "output")
        (value,) = end.args
        if not isinstance(value, fx.Node):
            raise TargetError(
                f"{path!r} does not return one tensor",
                found=f"it returns a {type(value).__name__.removeprefix('immutable_')}",
                write="a target inside it, or the level that takes its output apart",
            )
        entry = next((node for node in graph.nodes if node.op == "placeholder"), None)
        edges.append(Edge(path, graph, value, (end,), entry, "output"))
    return edges


def around(calls: list[Call], side: Callable[[str, fx.Graph, fx.Node], Edge]) -> dict[str, list[Edge]]:
    """Return the edges on one side of some calls, by level."""
    found: dict[str, list[Edge]] = {}
    for call in calls:
        edge = side(call.owner, call.graph, call.node)
        found.setdefault(call.owner, []).append(attrs.evolve(edge, every=True))
    return found


def insert_child(
    draft: Draft, edges: list[Edge], name: str, *, channels_last: bool = False, with_entry: bool = False
) -> None:
    """Call a child of a level on the values of some edges, and give the results to their users.

    Args:
        draft: the draft.
        edges: edges of one level.
        name: name of the child.
        channels_last: move the channels to axis 1 for the call, and back.
        with_entry: call it with what the target took, then the value.
    """
    made: dict[tuple[int, Insert], fx.Graph] = {}
    for edge in edges:
        at = anchor_of(edge.value if edge.side in ("after", "between") else edge.users[0])
        if edge.every:
            at = attrs.evolve(at, number=0, count=1)
        users = tuple(map(anchor_of, edge.users)) if edge.side == "between" else ()
        insert = Insert(
            name, at, edge.side, users, channels_last, with_entry and edge.entry is not None, edge.every
        )
        made[id(edge.graph), insert] = edge.graph
    draft.rewrite(edges[0].owner, [(graph, insert) for (_, insert), graph in made.items()])


def called(draft: Draft, path: str) -> bool:
    """Tell whether a forward calls the module, and not its children one by one."""
    try:
        calls = draft.calls(path)
    except TargetError:
        return False
    owner = calls[0].owner
    prefix = relative(path, owner) + "."
    for graph in draft.graphs(owner):
        called_here = any(call.graph is graph for call in calls)
        if not called_here and any(
            n.op == "call_module" and str(n.target).startswith(prefix) for n in graph.nodes
        ):
            raise TargetError(
                f"{path!r} is called in one mode, and its children one by one in the other",
                found=f"both in {owner or 'the root'}",
                swap=(literal(path), f'"{path}.<child>"'),
            )
    return True


def exits(draft: Draft, path: str) -> list[Edge]:
    """Return the edges that leave a container whose children are called one by one.

    Raises:
        TargetError: nothing in it is called, or several values leave it.
    """
    owner = path
    while owner:
        owner = parent_of(owner)
        prefix = relative(path, owner) + "."
        edges = []
        for graph in draft.graphs(owner) if has_forward(draft.get(owner)) else ():
            inside = {n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith(prefix)}
            for node in graph.nodes:
                outside = tuple(user for user in node.users if user not in inside)
                if node in inside and outside:
                    edges.append(Edge(owner, graph, node, outside))
        if edges:
            if len({id(edge.graph) for edge in edges}) < len(edges):
                raise TargetError(
                    f"{len(edges)} values leave {path!r}, whose children are called one by one",
                    found=", ".join(sorted({str(edge.value.target) for edge in edges})[:6]),
                    swap=(literal(path), literal(join_path(owner, str(edges[-1].value.target)))),
                )
            return edges
    raise TargetError(f"no forward calls {path!r} or anything in it", wrong=path, outside=path)


def relative(path: str, owner: str) -> str:
    """Return a path as seen from a level."""
    return path[len(owner) :].lstrip(".")


def feeds_output_only(draft: Draft, edge: Edge) -> bool:
    """Tell whether a value is the output of the model and goes nowhere else."""
    if not edge.users or any(user.op != "output" for user in edge.users):
        return False
    if not edge.owner:
        return True
    return all(feeds_output_only(draft, after(c.owner, c.graph, c.node)) for c in draft.calls(edge.owner))


def is_beside(module: object) -> bool:
    """Tell whether a module was put beside a target: it is called with its input, then its output."""
    return isinstance(module, nn.Module) and vars(module).get(_BESIDE) is True


def set_beside(module: nn.Module) -> None:
    """Note on a module that it stands beside a target, so that it can be taken out again."""
    vars(module)[_BESIDE] = True

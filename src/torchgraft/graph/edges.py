"""Edges: where a value flows in the graph of a level, so that a call can be put there."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TargetError
from torchgraft.graph.draft import Call, Draft

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
    """

    owner: str
    graph: fx.Graph
    value: fx.Node
    users: tuple[fx.Node, ...]
    entry: fx.Node | None = None

    def insert(self, name: str, *, channels_last: bool, with_entry: bool = False) -> fx.Node:
        """Call the child ``name`` on the value and give the result to the users.

        Args:
            name: name of a child of the level.
            channels_last: move the channels to axis 1 for the call, and back.
            with_entry: call it with what the target took, then the value.

        Returns:
            The node with the new value.
        """
        taken = [self.entry, self.value] if with_entry and self.entry is not None else [self.value]
        graph, last = self.graph, self.value
        if channels_last:
            for i, given in enumerate(taken):
                with graph.inserting_after(last):
                    taken[i] = last = graph.call_function(torch.movedim, (given, -1, 1))
        with graph.inserting_after(last):
            node = graph.call_module(name, tuple(taken))
        if channels_last:
            with graph.inserting_after(node):
                node = graph.call_function(torch.movedim, (node, 1, -1))
        for user in self.users:
            user.replace_input_with(self.value, node)
        return node

    def consumer(self) -> str:
        """Name what takes the value."""
        first = next(iter(self.users), None)
        if first is None or first.op == "output":
            return f"the output of {self.owner or 'the model'}"
        return f"{self.owner}.{first.target if first.op == 'call_module' else first.name}".lstrip(".")


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
    return Edge(owner, graph, node, tuple(node.users), next(iter(node.all_input_nodes), None))


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
    return Edge(owner, graph, sources[0], (node,))


def output(draft: Draft, path: str) -> list[Edge]:
    """Return the edges from the value of a level to its output, one for each mode.

    Raises:
        TargetError: the level returns something that is not one value.
    """
    edges = []
    for graph in draft.open(path).graphs:
        end = next(node for node in graph.nodes if node.op == "output")
        (value,) = end.args
        if not isinstance(value, fx.Node):
            raise TargetError(
                f"{path!r} does not return one tensor",
                found=f"it returns a {type(value).__name__}",
                write="a target inside it, or the level that takes its output apart",
            )
        entry = next((node for node in graph.nodes if node.op == "placeholder"), None)
        edges.append(Edge(path, graph, value, (end,), entry))
    return edges


def around(calls: list[Call], side: Callable[[str, fx.Graph, fx.Node], Edge]) -> dict[str, list[Edge]]:
    """Return the edges on one side of some calls, by level."""
    found: dict[str, list[Edge]] = {}
    for call in calls:
        found.setdefault(call.owner, []).append(side(call.owner, call.graph, call.node))
    return found


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
                write=f'a target inside it: "{path}.<a child>"',
            )
    return True


def exits(draft: Draft, path: str) -> list[Edge]:
    """Return the edges that leave a container whose children are called one by one.

    Raises:
        TargetError: nothing in it is called, or several values leave it.
    """
    owner = path
    while owner:
        owner = owner.rpartition(".")[0]
        prefix = relative(path, owner) + "."
        edges = []
        for graph in draft.graphs(owner):
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
                    write=f"one of its children: {path}.{str(edges[-1].value.target)[len(prefix) :]}",
                )
            return edges
    raise TargetError(f"no forward calls {path!r} or anything in it", write="a target that is called")


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


def exchange_node(node: fx.Node, name: str) -> fx.Node:
    """Put the call of a child in the place of a node; it takes the values that the node took."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_module(name, tuple(node.all_input_nodes))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def turn(call: fx.Node) -> None:
    """Move the channels to axis 1 for a call, and back."""
    (source, *others), graph = call.args, call.graph
    with graph.inserting_before(call):
        entry = graph.call_function(torch.movedim, (source, -1, 1))
    call.args = (entry, *others)
    users = tuple(call.users)
    with graph.inserting_after(call):
        back = graph.call_function(torch.movedim, (call, 1, -1))
    for user in users:
        user.replace_input_with(call, back)


def later_users(node: fx.Node) -> list[fx.Node]:
    """List the uses of what a node takes that come after it: they see what it wrote in place."""
    source = next(iter(node.all_input_nodes), None)
    if source is None:
        return []
    behind = False
    found = []
    for other in node.graph.nodes:
        if behind and other in source.users and other is not node:
            found.append(other)
        behind = behind or other is node
    return found


def is_beside(module: object) -> bool:
    """Tell whether a module was put beside a target: it is called with its input, then its output."""
    return isinstance(module, nn.Module) and vars(module).get(_BESIDE) is True


def set_beside(module: nn.Module) -> None:
    """Note on a module that it stands beside a target, so that it can be taken out again."""
    vars(module)[_BESIDE] = True


def bypass(node: fx.Node, source: fx.Node) -> None:
    """Take a node out; its users get one of its inputs instead."""
    graph, taken = node.graph, node.all_input_nodes
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    if source.target is torch.movedim:
        # What moved the channels for the node alone goes with it.
        for user in list(source.users):
            if user.target is torch.movedim and user.args[1:] == source.args[:0:-1]:
                user.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]  # a node
                graph.erase_node(user)
    for moved in taken:
        if moved.target is torch.movedim and not moved.users:
            graph.erase_node(moved)

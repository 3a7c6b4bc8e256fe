"""Rewrites: what edits do to the graph of a level, as plain data that can be done to another graph of it."""

from __future__ import annotations

from typing import Literal, Protocol

import attrs
import torch
from torch import fx

from torchgraft.graph.anchor import Anchor


class MissingAnchorError(Exception):
    """Say that a graph does not have the one place that an edit is about."""


class Rewrite(Protocol):
    """One change of a graph."""

    @property
    def at(self) -> Anchor:
        """The place that it is about."""

    def apply(self, graph: fx.Graph) -> None:
        """Change a graph; raises ``MissingAnchorError`` before anything is changed."""


@attrs.frozen
class Insert:
    """Call a child on a value, and give the result to those that took the value.

    Args:
        child: name of the child.
        at: the node whose value it is, or the node that takes it.
        side: the value of the node for all its users, what the node takes first, what the
            graph returns, or the value for some users.
        users: the users that take the new value, where these are some.
        channels_last: move the channels to axis 1 for the call, and back.
        with_entry: call it with what the target took, then the value.
        every: at every call of the module, however many there are.
    """

    child: str
    at: Anchor
    side: Literal["after", "before", "output", "between"]
    users: tuple[Anchor, ...] = ()
    channels_last: bool = False
    with_entry: bool = False
    every: bool = False

    def apply(self, graph: fx.Graph) -> None:
        """Insert the calls."""
        nodes = find_nodes(graph, self.at, every=self.every)
        users = tuple(node for user in self.users for node in find_nodes(graph, user))
        for node in nodes:
            self._insert(graph, node, users)

    def _insert(self, graph: fx.Graph, node: fx.Node, users: tuple[fx.Node, ...]) -> None:
        entry = next(iter(node.all_input_nodes), None)
        if self.side == "output":
            entry = next((n for n in graph.nodes if n.op == "placeholder"), None)
        if self.side in ("after", "between"):
            value, users = node, users or tuple(node.users)
        elif not node.all_input_nodes or (node.op == "output" and not isinstance(node.args[0], fx.Node)):
            raise MissingAnchorError(f"one value of {self.at}")
        else:
            value, users = node.all_input_nodes[0], (node,)
        insert_call(
            self.child,
            value,
            users,
            entry=entry if self.with_entry else None,
            channels_last=self.channels_last,
        )


@attrs.frozen
class Exchange:
    """Call a child in the place of an operation."""

    child: str
    at: Anchor

    def apply(self, graph: fx.Graph) -> None:
        """Exchange the operation for the call; it takes the values that the operation took."""
        (node,) = find_nodes(graph, self.at)
        with graph.inserting_before(node):
            new = graph.call_module(self.child, tuple(node.all_input_nodes))
        node.replace_all_uses_with(new)
        graph.erase_node(node)


@attrs.frozen
class Turn:
    """Move the channels to axis 1 for a call, and back."""

    at: Anchor

    def apply(self, graph: fx.Graph) -> None:
        """Put the moves around the call."""
        (call,) = find_nodes(graph, self.at)
        source, *others = call.args
        with graph.inserting_before(call):
            entry = graph.call_function(torch.movedim, (source, -1, 1))
        call.args = (entry, *others)
        users = tuple(call.users)
        with graph.inserting_after(call):
            back = graph.call_function(torch.movedim, (call, 1, -1))
        for user in users:
            user.replace_input_with(call, back)


@attrs.frozen
class Bypass:
    """Take a node out; its users get one of its inputs instead.

    Args:
        at: the node.
        position: which of its inputs.
    """

    at: Anchor
    position: int = 0

    def apply(self, graph: fx.Graph) -> None:
        """Take the node out, and what moved the channels for it alone."""
        (node,) = find_nodes(graph, self.at)
        if self.position >= len(node.all_input_nodes):
            raise MissingAnchorError(f"{self.at} takes {len(node.all_input_nodes)} values")
        taken = node.all_input_nodes
        source = taken[self.position]
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        if source.target is torch.movedim:
            for user in list(source.users):
                if user.target is torch.movedim and user.args[1:] == source.args[:0:-1]:
                    user.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]  # a node
                    graph.erase_node(user)
        for moved in taken:
            if moved.target is torch.movedim and not moved.users:
                graph.erase_node(moved)


@attrs.frozen
class Redirect:
    """Let the uses of a value that come behind a node take what the node gives.

    They see what the node wrote in place, so that whatever takes its place has to be seen too.
    """

    at: Anchor

    def apply(self, graph: fx.Graph) -> None:
        """Redirect the later users of what the node takes."""
        (node,) = find_nodes(graph, self.at)
        for user in later_users(node):
            user.replace_input_with(node.all_input_nodes[0], node)


@attrs.frozen
class Reargue:
    """Give a call another plain value for one of its arguments.

    Args:
        at: the call.
        place: where the argument stands.
        word: its keyword.
        value: the value.
    """

    at: Anchor
    place: int
    word: str
    value: object

    def apply(self, graph: fx.Graph) -> None:
        """Exchange the argument."""
        (node,) = find_nodes(graph, self.at)
        if len(node.args) > self.place:
            node.update_arg(self.place, self.value)  # type: ignore[arg-type]  # a plain value
        else:
            node.update_kwarg(self.word, self.value)  # type: ignore[arg-type]  # a plain value


def find_nodes(graph: fx.Graph, anchor: Anchor, *, every: bool = False) -> list[fx.Node]:
    """Return the nodes of an anchor.

    Raises:
        MissingAnchorError: it is missing, or not unique.
    """
    found = anchor.find(graph, every=every)
    if not found:
        raise MissingAnchorError(str(anchor))
    return found


def insert_call(
    child: str,
    value: fx.Node,
    users: tuple[fx.Node, ...],
    *,
    entry: fx.Node | None = None,
    channels_last: bool = False,
) -> fx.Node:
    """Call a child on a value and give the result to the users.

    Args:
        child: name of a child of the level.
        value: the node with the value.
        users: the nodes that take the new value instead.
        entry: what it is called with before the value, if anything.
        channels_last: move the channels to axis 1 for the call, and back.

    Returns:
        The node with the new value.
    """
    taken = [value] if entry is None else [entry, value]
    graph, last = value.graph, value
    if channels_last:
        for i, given in enumerate(taken):
            with graph.inserting_after(last):
                taken[i] = last = graph.call_function(torch.movedim, (given, -1, 1))
    with graph.inserting_after(last):
        node = graph.call_module(child, tuple(taken))
    if channels_last:
        with graph.inserting_after(node):
            node = graph.call_function(torch.movedim, (node, 1, -1))
    for user in users:
        user.replace_input_with(value, node)
    return node


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

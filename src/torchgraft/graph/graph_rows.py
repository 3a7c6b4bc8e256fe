"""Graphs as rows of plain data, which pickle without deep recursion."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import fx

from torchgraft.graph.nodes import MADE_LATE, function_named
from torchgraft.graph.proxy import rebuilt


class _Ref:
    """Name a node inside pickled arguments."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return _Ref, (self.name,)


class _Late(_Ref):
    """Name a function that pickle does not find; it is read back as the function."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        return function_named, (self.name,)


def write_rows(graph: fx.Graph) -> list[tuple[object, ...]]:
    """Write a graph as rows."""
    ref = cast("Callable[[fx.Node], fx.node.Argument]", lambda node: _Ref(node.name))
    return [
        (
            n.op,
            n.name,
            _Late(MADE_LATE[id(n.target)]) if id(n.target) in MADE_LATE else n.target,
            fx.map_arg(n.args, ref),
            fx.map_arg(n.kwargs, ref),
            n.type,
            n.meta.get("line"),
        )
        for n in graph.nodes
    ]


def read_rows(rows: list[tuple[object, ...]]) -> fx.Graph:
    """Make the graph that was written as rows."""
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def back(value: object) -> object:
        if isinstance(value, _Ref):
            return made[value.name]
        if isinstance(value, (tuple, list)):
            items = [back(item) for item in value]
            return rebuilt(value, items)
        if isinstance(value, dict):
            return {key: back(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(back(value.start), back(value.stop), back(value.step))
        return value

    for op, name, target, args, kwargs, type_expr, line in rows:
        node = graph.create_node(op, target, back(args), back(kwargs), name, type_expr)  # type: ignore[arg-type]  # rows come from a graph
        node.meta["line"] = line
        made[str(name)] = node
    return graph

"""Nodes of graphs: their qualified names, as torchvision gives them, and their operations.

A name is the path of the level, then the child or the operation, numbered in call order:
``layer1.0.add``, ``layer1.0.relu_2``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from torch import fx
from torch.nn import functional as F

from torchgraft.paths import join_path

Node = fx.Node


def names_in(graph: fx.Graph, owner: str) -> dict[str, fx.Node]:
    """Name the nodes of one graph, in execution order."""
    named: dict[str, fx.Node] = {}
    count: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in ("output", "get_attr"):
            continue
        base = str(node.target) if node.op == "call_module" else re.sub(r"_\d+$", "", node.name)
        number = count.get(base, 0)
        count[base] = number + 1
        path = f"{base}_{number}" if number else base
        named[join_path(owner, path)] = node
    return named


def name_of(node: Node, owner: str) -> str:
    """Return the qualified name of a node."""
    return next(name for name, found in names_in(node.graph, owner).items() if found is node)


_SAME = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "true_divide": "div",
    "divide": "div", "subtract": "sub", "multiply": "mul", "concat": "cat", "concatenate": "cat",
    "imatmul": "matmul", "ipow": "pow", "negative": "neg", "absolute": "abs",
}  # fmt: skip


def operation_name(name: str) -> str:
    """Bring the spellings of one operation to one name: ``iadd`` and ``add_`` are ``add``."""
    name = name.strip("_") if name.startswith("__") else name.rstrip("_")
    return _SAME.get(name, name)


def canonical(node: Node) -> str:
    """Name the operation of a node, the same for a function, a method and its in-place form."""
    target = node.target
    return operation_name(target if isinstance(target, str) else plain_name(target))


_WRITERS = frozenset(("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul", "imod", "setitem"))


def is_in_place(node: fx.Node) -> bool:
    """Return True if an operation writes into its first argument."""
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


def plain_name(function: object) -> str:
    """Return the name of a function: some of torch's are made at run time and do not know it."""
    return MADE_LATE.get(id(function)) or str(getattr(function, "__name__", type(function).__name__))


MADE_LATE: dict[int, str] = {
    id(function): name
    for name, function in vars(F).items()
    if inspect.isfunction(function) and "<locals>" in function.__qualname__
}
"""Functions of ``torch.nn.functional`` that dispatch on a flag, with the names they are known by."""


def function_named(name: str) -> object:
    """Return a function of ``torch.nn.functional``; what such a function is pickled as."""
    return getattr(F, name)


def grouped(graphs: tuple[fx.Graph, ...], owner: str) -> list[tuple[str, tuple[Node, ...]]]:
    """Name the nodes of a level, those that are one operation in both modes together."""
    found: dict[tuple[str, object], list[Node]] = {}
    for graph in graphs:
        for name, node in names_in(graph, owner).items():
            if node.op != "placeholder":
                found.setdefault((name, repr(node.meta.get("line"))), []).append(node)
    return [(name, tuple(nodes)) for (name, _), nodes in found.items()]


def all_names(graphs: Iterable[fx.Graph], owner: str) -> tuple[str, ...]:
    """List the qualified names of the nodes of a level, each once."""
    return tuple(dict.fromkeys(name for graph in graphs for name in names_in(graph, owner)))

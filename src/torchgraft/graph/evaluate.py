"""The value of one node on meta tensors, from the values of those before it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import fx, nn

from torchgraft.graph.deep.record import record
from torchgraft.graph.guard import guard, nothing
from torchgraft.graph.proxy import to_meta
from torchgraft.graph.run import Arguments, ModuleCall

_META = torch.device("meta")


def evaluate(node: fx.Node, values: Mapping[fx.Node, object], owner: nn.Module, *, training: bool) -> object:
    """Compute a node on meta tensors.

    Args:
        node: a call of a function, a method or a module.
        values: values of the nodes it takes.
        owner: the module whose forward the graph is.
        training: the mode to run called modules in.

    Returns:
        The value; tensors in it are on the meta device.
    """
    known = cast("Callable[[fx.Node], fx.node.Argument]", values.__getitem__)
    # The values themselves, not copies: a list that one node appends to has one more for the next.
    args = cast("tuple[object, ...]", fx.map_arg(node.args, known))
    kwargs = cast("dict[str, object]", fx.map_arg(node.kwargs, known))
    if node.op != "call_module" and node.target not in (getattr, guard):
        args = tuple(_META if isinstance(a, torch.device) else a for a in args)
        kwargs = {name: _META if name == "device" else a for name, a in kwargs.items()}
    result = _compute(node, args, kwargs, owner, training=training)
    if isinstance(result, torch.device):  # the model is not really on the meta device
        return next((p.device for p in owner.parameters()), torch.device("cpu"))
    return result


def _compute(
    node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object], owner: nn.Module, *, training: bool
) -> object:
    with torch.no_grad(), torch.device("meta"):
        if node.op == "call_module":
            called = owner.get_submodule(str(node.target))
            return record(called, (args, kwargs), training=training).output
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a function


def node_value(node: fx.Node, call: ModuleCall, owner: nn.Module, known: dict[fx.Node, object]) -> object:
    """Compute a node of a level from the arguments of a call of that level.

    Args:
        node: the node.
        call: what the level got.
        owner: the level.
        known: values that were computed before; those that are needed are added.

    Returns:
        The value; tensors in it are on the meta device.
    """
    if node not in known:
        _compute_all([node], (call.args, call.kwargs), owner, known, training=False)
    return known[node]


def run_guards(graph: fx.Graph, given: Arguments, owner: nn.Module) -> None:
    """Run the guards of a graph, and what they depend on, on meta tensors.

    Args:
        graph: the graph.
        given: positional and keyword arguments of its level.
        owner: the level.

    Raises:
        SpecialisedError: a decision falls otherwise than it did at tracing.
    """
    guards = [node for node in graph.nodes if node.target in (guard, nothing)]
    if guards:
        _compute_all(guards, given, owner, {}, training=owner.training)


def _compute_all(
    wanted: list[fx.Node],
    given: Arguments,
    owner: nn.Module,
    values: dict[fx.Node, object],
    *,
    training: bool,
) -> None:
    bound = inspect.signature(owner.forward).bind(*given[0], **given[1]).arguments
    needed = _ancestors(wanted)
    for step in wanted[0].graph.nodes:
        if step not in needed or step in values:
            continue
        if step.op == "placeholder":
            default = step.args[0] if step.args else None
            values[step] = to_meta(bound.get(str(step.target).lstrip("*"), default))
        elif step.op == "get_attr":
            parent, _, name = str(step.target).rpartition(".")
            values[step] = to_meta(getattr(owner.get_submodule(parent), name))
        else:
            values[step] = evaluate(step, values, owner, training=training)
        if step is wanted[-1]:
            break


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    found, waiting = set(nodes), list(nodes)
    while waiting:
        taken = waiting.pop()
        written = [user for user in taken.users if user.target is operator.setitem or _is_effect(user)]
        for source in (*taken.all_input_nodes, *written):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _is_effect(node: fx.Node) -> bool:
    """Tell whether a method is called for what it does to its object, such as ``append``."""
    return node.op == "call_method" and all(user.target is nothing for user in node.users)

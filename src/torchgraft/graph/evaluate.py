"""The value of one node on meta tensors, from the values of those before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import fx, nn

from torchgraft.graph.guard import guard
from torchgraft.graph.proxy import to_meta
from torchgraft.graph.run import ModuleCall, run_on_meta

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
    args = cast("tuple[object, ...]", to_meta(fx.map_arg(node.args, known)))
    kwargs = cast("dict[str, object]", to_meta(fx.map_arg(node.kwargs, known)))
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
            return run_on_meta(owner.get_submodule(str(node.target)), args, kwargs, training=training).output
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a function


def node_value(node: fx.Node, call: ModuleCall, owner: nn.Module) -> object:
    """Compute a node of a level from the arguments of a call of that level.

    Args:
        node: the node.
        call: what the level got.
        owner: the level.

    Returns:
        The value; tensors in it are on the meta device.
    """
    bound = inspect.signature(owner.forward).bind(*call.args, **call.kwargs).arguments
    values: dict[fx.Node, object] = {}
    needed = _ancestors(node)
    for step in node.graph.nodes:
        if step not in needed:
            continue
        if step.op == "placeholder":
            default = step.args[0] if step.args else None
            values[step] = bound.get(str(step.target).lstrip("*"), default)
        elif step.op == "get_attr":
            parent, _, name = str(step.target).rpartition(".")
            values[step] = to_meta(getattr(owner.get_submodule(parent), name))
        else:
            values[step] = evaluate(step, values, owner, training=False)
    return values[node]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found

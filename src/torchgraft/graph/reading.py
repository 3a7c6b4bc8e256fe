"""Read facts off the graphs of a model."""

from __future__ import annotations

from torch import nn

from torchgraft.graph.guard import baked, guard
from torchgraft.graph.level import Level


def guards_of(model: nn.Module) -> tuple[str, ...]:
    """List what the levels of a model check at each call, each fact once."""
    said = {
        str(node.args[2])
        for module in model.modules()
        if isinstance(module, Level)
        for graph in module.graphs
        for node in graph.nodes
        if node.target is guard
    }
    settings = {
        f"{path or 'the root'} was traced with {node.args[2]}={node.args[1]!r}"
        for path, module in model.named_modules()
        if isinstance(module, Level)
        for graph in module.graphs
        for node in graph.nodes
        if node.target is baked
    }
    return (*sorted(said), *sorted(settings))

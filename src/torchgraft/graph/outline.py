"""The outline of a model: its names, classes and shapes, to tell later what was changed."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import nn

from torchgraft.graph.level import Level
from torchgraft.graph.nodes import all_names


@attrs.frozen
class Outline:
    """What a model consists of, without its values.

    Args:
        modules: the class of the module at each path.
        tensors: shape of each parameter and buffer, and whether it gets a gradient;
            ``None`` for a buffer.
        nodes: names of the nodes of the levels, by path.
    """

    modules: Mapping[str, str]
    tensors: Mapping[str, tuple[tuple[int, ...], bool | None]]
    nodes: Mapping[str, tuple[str, ...]]


def outline_of(model: nn.Module) -> Outline:
    """Write the outline of a model; it is only read."""
    modules: dict[str, str] = {}
    tensors: dict[str, tuple[tuple[int, ...], bool | None]] = {}
    nodes: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        path, module = waiting.pop()
        modules[path] = type(module).__name__
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tensors[prefix + name] = (tuple(parameter.shape), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                tensors[prefix + name] = (tuple(buffer.shape), None)
        waiting += [
            (prefix + n, child) for n, child in reversed(module._modules.items()) if child is not None
        ]
        if isinstance(module, Level):
            nodes[path] = all_names(module.graphs, path)
    return Outline(modules, tensors, nodes)

"""The outline of a model: its names, classes and shapes, to tell later what was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import nn

from torchgraft.graph.level import Level, runs_graph
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


def named_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its path, several times as fast as ``model.named_modules()``."""
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        path, module = waiting.pop()
        yield path, module
        prefix = f"{path}." if path else ""
        held = reversed(module._modules.items())
        waiting += [(prefix + name, child) for name, child in held if child is not None]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer with its name; one that has several under each of them."""
    for path, module in named_parts(model):
        prefix = f"{path}." if path else ""
        for held in (module._parameters, module._buffers):
            yield from ((prefix + name, tensor) for name, tensor in held.items() if tensor is not None)


def outline_of(model: nn.Module) -> Outline:
    """Write the outline of a model; it is only read."""
    parts = dict(named_parts(model))
    tensors = {
        name: (tuple(tensor.shape), tensor.requires_grad if isinstance(tensor, nn.Parameter) else None)
        for name, tensor in named_tensors(model)
    }
    levels = {path: part for path, part in parts.items() if isinstance(part, Level) and runs_graph(part)}
    nodes = {path: all_names(level.graphs, path) for path, level in levels.items()}
    return Outline({path: type(part).__name__ for path, part in parts.items()}, tensors, nodes)

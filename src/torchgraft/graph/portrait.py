"""Portraits: what a model is made of, put into words that can be compared."""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from torch import nn

from torchgraft.graph.level import Level

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType)


def portrait(model: nn.Module) -> dict[str, str]:
    """Put into words what a model is made of, but for values, modes and what gets a gradient.

    Two models with one portrait have the same forwards, as far as these can be told from
    classes, plain public attributes, shapes, numbers of hooks and the graphs of levels.

    Args:
        model: the model; it is only read.

    Returns:
        By path: the class of each module, each of its plain attributes, the shape of each
        tensor, and the operations of each level.

    Example:
        >>> portrait(nn.Linear(3, 2, bias=False))
        {'': 'Linear', 'in_features': '3', 'out_features': '2', 'weight': 'parameter 2 3'}
    """
    told: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        told[path] = type(module).__name__
        told.update((prefix + name, text) for name, text in _parts(module))
    return told


def _parts(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        if name != "training" and not name.startswith("_") and (text := _said(value)):
            yield name, text
        elif "hooks" in name and isinstance(value, dict) and value:
            yield name, f"{len(value)}"
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, f"parameter {_dims(parameter)}"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            # One that is not kept may be a table for the last input, of any size.
            kept = name not in module._non_persistent_buffers_set
            yield name, f"buffer {_dims(buffer)}" if kept else "buffer, not kept"
    if isinstance(module, Level):
        for number, graph in enumerate(module.graphs):
            calls = [f"{node.op} {_target(node.target)}" for node in graph.nodes if node.op != "placeholder"]
            yield f"<forward {number}>", "; ".join(calls)


def _said(value: object) -> str:
    """Write a plain value; nothing for others."""
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, _CODE):
        return f"{value.__module__}.{value.__qualname__}"
    if type(value) in (tuple, list, torch.Size):
        said = [_said(item) for item in value]  # type: ignore[attr-defined]  # it is a sequence
        return f"({', '.join(said)})" if all(said) else ""
    return ""


def _target(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))


def _dims(tensor: torch.Tensor) -> str:
    return " ".join(map(str, tensor.shape)) or "scalar"

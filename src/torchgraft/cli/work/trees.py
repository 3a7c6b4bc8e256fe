"""Trees of modules and of names, as deep as they can be read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchgraft.select.drawing import draw_as_deep, lines_by_path
from torchgraft.text import write_dims


def module_tree(model: nn.Module, *, every: bool = False) -> str:
    """Draw the modules of a model with their classes and numbers of parameters.

    Example:
        >>> print(module_tree(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.ReLU())))
          0        Linear         8
          1 ... 2  ReLU, 2 alike  0
    """
    counts = {
        path: (type(module).__name__, sum(parameter.numel() for parameter in module.parameters()))
        for path, module in model.named_modules(remove_duplicate=False)
    }
    wide = len(f"{counts.pop('')[1]:,}")
    lines = lines_by_path({path: (kind, f"{count:>{wide},}") for path, (kind, count) in counts.items()})
    return draw_as_deep(lines, "--all shows everything", every=every)


def name_tree(tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, every: bool = False) -> str:
    """Draw the names of tensors with their dtypes and shapes.

    Example:
        >>> print(name_tree({"fc.weight": ("F32", (2, 3)), "fc.bias": ("F32", (2,))}))
          fc
            weight  F32  2 3
            bias    F32  2
    """
    lines = lines_by_path({name: (dtype, write_dims(shape)) for name, (dtype, shape) in tensors.items()})
    return draw_as_deep(lines, "--all shows everything", every=every)

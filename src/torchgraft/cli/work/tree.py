"""Trees of modules and of names, as deep as they can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torchgraft.select.drawing import Line, joined, lines_of
from torchgraft.text import columns, write_dims

_LONGEST = 40
_DEEPEST = 40


def module_tree(model: nn.Module, *, every: bool = False) -> str:
    """Draw the modules of a model with their classes and numbers of parameters.

    Args:
        model: the model; it is only read.
        every: as deep as it goes, however long that is.

    Example:
        >>> print(module_tree(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.ReLU())))
          0        Linear         8
          1 ... 2  ReLU, 2 alike  0
    """
    wide = len(f"{_count(model):,}")

    def under(module: nn.Module) -> tuple[Line, ...]:
        parts = [(name, part) for name, part in module._modules.items() if part is not None]
        return joined([Line((n,), "", type(p).__name__, f"{_count(p):>{wide},}", under(p)) for n, p in parts])

    return _drawn(under(model), every=every)


def name_tree(tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, every: bool = False) -> str:
    """Draw the names of tensors with their dtypes and shapes.

    Args:
        tensors: dtype and shape by name.
        every: as deep as it goes, however long that is.

    Example:
        >>> print(name_tree({"fc.weight": ("F32", (2, 3)), "fc.bias": ("F32", (2,))}))
          fc
            weight  F32  2 3
            bias    F32  2
    """
    top: dict[str, Any] = {}
    for name, (dtype, shape) in tensors.items():
        *path, last = name.split(".", _DEEPEST)
        held = top
        for part in path:
            held = held.setdefault(f"{part}.", {})  # so named that no tensor is in its way
        held[last] = dtype, write_dims(shape)

    return _drawn(_names(top), every=every)


def _names(held: Mapping[str, Any]) -> tuple[Line, ...]:
    lines = []
    for name, item in held.items():
        if isinstance(item, dict):
            lines.append(Line((name[:-1],), "", "", "", _names(item)))
        else:
            dtype, shape = item
            lines.append(Line((name,), "", dtype, shape, ()))
    return joined(lines)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _drawn(lines: tuple[Line, ...], *, every: bool) -> str:
    whole, deepest = len(lines_of(lines, 1)), 1
    rows = lines_of(lines, 1, deepest)
    while len(rows) < whole:
        deeper = lines_of(lines, 1, deepest + 1)
        if len(deeper) > _LONGEST and not every:
            break
        rows, deepest = deeper, deepest + 1
    drawn = columns([(mark + text, alike, shapes) for mark, text, alike, shapes in rows])
    return drawn if len(rows) == whole else f"{drawn}\n  ... deeper: --all shows everything"

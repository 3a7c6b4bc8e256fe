"""Nested shapes: read off values, made into meta tensors, and written."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TypeGuard

import torch

from torchgraft.graph.proxy import rebuilt

Shape = tuple[int, ...]


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Tell whether a value is a shape: a sequence of integers."""
    return isinstance(value, (tuple, list)) and all(type(side) is int for side in value)


def shaped(value: object) -> object:
    """Put shapes in the place of the tensors of a nested value."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [shaped(item) for item in value])
    names = _fields(value)
    if not names and not isinstance(value, dict):
        return value
    copied = copy.copy(value)
    for name in names:
        object.__setattr__(copied, name, shaped(getattr(value, name)))
    if isinstance(copied, dict):  # some classes of outputs are both
        for name, item in dict.items(copied):
            dict.__setitem__(copied, name, shaped(item))
    return copied


def made(value: object, dtype: torch.dtype) -> object:
    """Put meta tensors in the place of the shapes of a nested value."""
    if is_shape(value):
        return torch.empty(tuple(value), dtype=dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [made(item, dtype) for item in value])
    if isinstance(value, dict):
        return {name: made(item, dtype) for name, item in value.items()}
    return value


def dims(shape: Sequence[int]) -> str:
    """Write a shape: ``1 3 224 224``."""
    return " ".join(map(str, shape)) or "scalar"


def written(shape: object) -> str:
    """Write a nested shape: ``(1 10, 1 10)``."""
    if is_shape(shape):
        return dims(shape)
    if isinstance(shape, (tuple, list)):
        return f"({', '.join(map(written, shape))})"
    if isinstance(shape, dict):
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in shape.items()) + "}"
    names = _fields(shape)
    if names:
        return f"{type(shape).__name__}({', '.join(f'{n}: {written(getattr(shape, n))}' for n in names)})"
    return repr(shape) if shape is None or isinstance(shape, (int, float, str)) else type(shape).__name__


def _fields(value: object) -> list[str]:
    """Name the fields of a dataclass."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    return [field.name for field in dataclasses.fields(value)]

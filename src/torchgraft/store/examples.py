"""Examples of inputs as plain data: what their tensors look like, and not what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from torchgraft.alignment.files.strict_json import Reader
from torchgraft.errors import StoreError
from torchgraft.graph.probe import Example
from torchgraft.store.stock import BY_NAME
from torchgraft.text import kind

_PLAIN = (bool, int, float, str, type(None))
_DEEPEST = 20
_READ = Reader(StoreError, "a fresh copy of the file")


def to_plain(example: object) -> object:
    """Write an example as plain data.

    Args:
        example: tensors and plain values, in tuples, lists and mappings.

    Returns:
        What JSON can hold.

    Raises:
        StoreError: there is something else in it.

    Example:
        >>> to_plain((torch.zeros(1, 3), 2))
        {'tuple': [{'tensor': [1, 3], 'dtype': 'float32'}, 2]}
    """
    if isinstance(example, torch.Tensor):
        return {"tensor": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
    if type(example) in _PLAIN:
        return example
    if isinstance(example, (tuple, list)):
        return {"tuple" if isinstance(example, tuple) else "list": [to_plain(item) for item in example]}
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return {"mapping": {key: to_plain(value) for key, value in example.items()}}
    raise StoreError(
        f"the example of the model holds {kind(example)}, which a file cannot tell",
        write="pipe(model, example=<tensors and plain values>), then save(...)",
    )


def from_plain(data: object) -> Example:
    """Read an example back; its tensors are on the meta device.

    Args:
        data: what ``to_plain`` wrote.

    Raises:
        StoreError: it is something else.
    """
    made = _read(data, 0)
    if not isinstance(made, (torch.Tensor, tuple, dict)):
        raise _READ.wrong("the example", "a tensor, a tuple or a mapping", data)
    return made


def _read(data: object, depth: int) -> object:
    where = "the example"
    if depth > _DEEPEST:
        raise _READ.wrong(where, f"nested at most {_DEEPEST} deep", "more")
    if type(data) in _PLAIN:
        return data
    held = _READ.mapping(data, where, ("tensor", "dtype", "tuple", "list", "mapping"))
    match held:
        case {"tensor": shape, "dtype": str(name), **rest} if not rest:
            dtype = BY_NAME.get(name)
            sizes = _READ.numbers(shape, "the shape of the example")
            if dtype is not None:
                return _empty(sizes, dtype)
        case {"tuple": items, **rest} if not rest:
            return tuple(_read(item, depth + 1) for item in _READ.items(items, where))
        case {"list": items, **rest} if not rest:
            return [_read(item, depth + 1) for item in _READ.items(items, where)]
        case {"mapping": inner, **rest} if not rest:
            return {name: _read(item, depth + 1) for name, item in _READ.mapping(inner, where).items()}
    raise _READ.wrong(where, "tensors and plain values", ", ".join(held) or "{}")


def _empty(sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    try:
        return torch.empty(sizes, dtype=dtype, device="meta")
    except RuntimeError as error:
        raise _READ.wrong(
            "the shape of the example", "one that a tensor can have", cast("object", str(sizes))
        ) from error

"""Mappings that are known to be right, written down for some pairs in ``tests/data/alignment``.

A file maps the name of each target tensor to what it is made of: the name of a source tensor,
or parts that are joined along their first axis and seen in the target's shape. A part is a
name, or an object with ``key`` and those of ``view``, ``axes`` and ``rows`` that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent.parent / "data" / "alignment"
Written = str | list[object]


def known() -> list[str]:
    """Name the pairs whose mapping is written down."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> dict[str, Written]:
    """Read the mapping of a pair."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def made(
    written: Mapping[str, Written], source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Make the target's tensors."""
    return {key: _joined(parts, source).reshape(target[key].shape) for key, parts in written.items()}


def _joined(parts: Written, source: Mapping[str, Tensor]) -> Tensor:
    found = [_part(part, source) for part in ([parts] if isinstance(parts, str) else parts)]
    return torch.cat(found) if len(found) > 1 else found[0]


def _part(part: str | dict[str, object], source: Mapping[str, Tensor]) -> Tensor:
    if isinstance(part, str):
        return source[part]
    if not part["key"]:
        return torch.zeros(part["view"])
    tensor = source[part["key"]].reshape(part.get("view", source[part["key"]].shape))
    tensor = tensor.permute(part.get("axes", tuple(range(tensor.ndim))))
    first, after = part.get("rows", (0, tensor.shape[0]))
    return tensor[first:after]

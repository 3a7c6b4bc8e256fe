"""A difference as plain data."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from torchgraft.show.difference.facts import Side
from torchgraft.show.difference.tensors import TensorDiff
from torchgraft.show.difference.tree import ModuleDiff


def plain(
    same: bool, sides: tuple[Side, Side], tree: ModuleDiff, tensors: Iterable[TensorDiff]
) -> dict[str, object]:
    """Turn a difference into plain data, without the modules that are the same.

    Args:
        same: whether there is no difference.
        sides: the two models in figures.
        tree: their modules.
        tensors: their tensors that differ.

    Returns:
        Dictionaries, lists, texts, numbers, booleans and ``None``.
    """
    modules = [module for module in tree.walk() if module.status != "same" or module.spread]
    return {
        "same": same,
        "before": attrs.asdict(sides[0]),
        "after": attrs.asdict(sides[1]),
        "modules": [_module(module) for module in modules],
        "tensors": [attrs.asdict(tensor) for tensor in tensors],
    }


def _module(module: ModuleDiff) -> dict[str, object]:
    return {
        "status": module.status,
        "before": attrs.asdict(module.before) if module.before else None,
        "after": attrs.asdict(module.after) if module.after else None,
        "changes": [attrs.asdict(change) for change in module.changes],
        "spread": [attrs.asdict(item) for item in module.spread],
    }

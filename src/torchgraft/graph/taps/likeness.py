"""Modules that do the same with what they are given, whatever their widths: one is followed for all."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from torchgraft.graph.residual import codes_of

_ATOMS = frozenset((bool, int, float, str, type(None)))
_names: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def likeness(module: nn.Module) -> object:
    """Sum up what a forward does by its class, the settings that it reads, and its children."""
    held, cls = vars(module), type(module)
    plain = cls.__module__.startswith("torch.nn.")
    read = frozenset(("inplace", "return_indices")) if plain else _read(module)
    hooks = held["_forward_hooks"] or held["_forward_pre_hooks"]
    return (
        cls,
        id(module) if hooks or "forward" in held else None,
        tuple((name, _setting(held[name])) for name in read if name in held),
        tuple((name, likeness(child)) for name, child in held["_modules"].items() if child is not None),
    )


def _setting(value: object) -> object:
    """Compare plain settings by value, tensors not at all, and anything else by what it is."""
    if isinstance(value, torch.Tensor):
        return None
    return value if type(value) in _ATOMS else id(value)


def where_taken(call: fx.Node, taken: set[fx.Node]) -> object:
    """Tell at which places a call takes some values."""
    places = [i for i, value in enumerate(call.args) if not taken.isdisjoint(nodes_in(value))]
    return *places, *(name for name, value in call.kwargs.items() if not taken.isdisjoint(nodes_in(value)))


def nodes_in(value: object) -> list[fx.Node]:
    """List the nodes in an argument."""
    if isinstance(value, fx.Node):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [node for item in items for node in nodes_in(item)]


def _read(module: nn.Module) -> frozenset[str]:
    cls = type(module)
    if cls not in _names:
        _names[cls] = frozenset(name for code in codes_of(module) for name in code.co_names)
    return _names[cls]

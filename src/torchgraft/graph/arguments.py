"""Turn what a forward passes on into arguments of nodes, or refuse it."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import fx

from torchgraft.graph import proxy as px

_PLAIN: tuple[type, ...] = (str, int, float, bool, complex, type(None), type(...), slice, range)
_PLAIN += (torch.dtype, torch.device, torch.memory_format, torch.layout)


def argument(value: object, call: Callable[..., fx.Proxy], keep: Callable[[object], object]) -> object:
    """Bring a value into a form that generated code can write.

    Args:
        value: anything but a proxy or a tensor.
        call: records a call, as ``create_proxy`` does.
        keep: keeps an object on the level and records the read of it.

    Returns:
        A plain value, a container of the kinds that graphs know, or a proxy.

    Raises:
        UnfollowableError: the value holds proxies where a graph cannot put them.
    """
    kind = type(value)
    if kind in (tuple, list, dict) or (isinstance(value, _PLAIN) and not isinstance(value, enum.Enum)):
        return value if kind not in (int, float) and not hasattr(value, "dtype") else _item(value)
    if hasattr(value, "_fields"):
        return value
    if isinstance(value, torch.Size):
        return tuple(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if px.holds_proxy(given):
            return call("call_function", kind, (), given)
    elif kind is OrderedDict and px.holds_proxy(value):
        pairs = [(key, item) for key, item in value.items()]  # type: ignore[attr-defined]  # a dict
        return call("call_function", OrderedDict, (pairs,), {})
    elif hasattr(value, "item") and hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        return value.item()  # a number of NumPy
    inner = {**getattr(value, "__dict__", {}), "": value}
    if any(px.holds_proxy(item) for item in inner.values()):
        raise px.UnfollowableError(f"it puts a value into a {kind.__name__}")
    return keep(value)


def _item(value: object) -> object:
    return value.item() if hasattr(value, "item") else value

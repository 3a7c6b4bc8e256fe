"""Turn what a forward passes on into arguments of nodes, or refuse it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import gc
import inspect
import keyword
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import fx, nn
from torch.fx.graph import _format_target

from torchgraft.graph import proxy as px
from torchgraft.graph.hooking import UNSEEN


def _pairs(value: object) -> list[tuple[object, object]]:
    """List the items of a dictionary past what its class says: keys may be proxies, which have no hash."""
    return list(dict.items(cast("dict[object, object]", value)))


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
    if value is UNSEEN:
        raise px.UnfollowableError("it uses what a hook of a child sees")
    kind = type(value)
    if kind is dict and any(map(px.is_proxy, value)):  # type: ignore[call-overload]  # a dict
        return call("call_function", dict, (_pairs(value),), {})
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
        return call("call_function", OrderedDict, (_pairs(value),), {})
    elif hasattr(value, "item") and hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        return value.item()  # a number of NumPy
    if kind in _VIEWS and px.holds_proxy(dict(value.mapping)):  # type: ignore[attr-defined]  # a view has it
        return call("call_method", _VIEWS[kind], (dict(value.mapping),), {})  # type: ignore[attr-defined]  # likewise
    if _reaches_proxy(value):
        raise px.UnfollowableError(f"it puts a value into a {kind.__name__}")
    return keep(value)


_VIEWS: dict[type, str] = {type(getattr({}, name)()): name for name in ("keys", "values", "items")}


def _reaches_proxy(value: object) -> bool:
    """Tell whether an object holds a proxy, or is a function that closes over one."""
    level, seen = [value], set[int]()
    for _ in range(6):
        seen.update(map(id, level))
        if any(px.is_proxy(item) for item in level):
            return True
        spaces = {id(getattr(item, "__globals__", None)) for item in level if inspect.isfunction(item)}
        below = {id(item): item for item in gc.get_referents(*level) if not isinstance(item, _CLOSED)}
        level = [item for key, item in below.items() if key not in seen | spaces]
    return False


_CLOSED = (type, types.ModuleType, torch.Tensor, nn.Module, fx.Graph)
"""What is not looked into: none of it holds a value by what a forward does with it."""


def _item(value: object) -> object:
    return value.item() if hasattr(value, "item") else value


def spell_keywords(graph: fx.Graph) -> None:
    """Let the code of a graph name children that are called like words of Python, such as ``class``."""
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    spelled = {
        _format_target("self", target): _reached(target.split("."))
        for target in targets
        if any(map(keyword.iskeyword, target.split(".")))
    }
    if spelled:
        graph.on_generate_code(lambda _: functools.partial(_respelled, spelled))


def _reached(names: list[str]) -> str:
    *above, name = ["self", *names]
    return f"getattr({_reached(above[1:])}, {name!r})" if above else name


def _respelled(spelled: dict[str, str], lines: list[str]) -> list[str]:
    for wrong, right in spelled.items():
        lines = [re.sub(rf"(?<!\w){re.escape(wrong)}(?!\w)", right, line) for line in lines]
    return lines

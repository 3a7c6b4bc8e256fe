"""Proxies that may carry example values, so that control flow on sizes can be decided.

Without values a decision raises ``NeedsValues``, and the trace is made again with them.
"""

from __future__ import annotations

import dis
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
from torch import fx


class _Unknown:
    def __repr__(self) -> str:
        return "data"


UNKNOWN = _Unknown()
"""Stands for a value that is not known while a forward is followed."""


class NeedsValues(BaseException):
    """Stop a trace whose forward decides on values; no forward may catch it by accident."""


class UnfollowableError(BaseException):
    """Stop a trace whose forward does what a graph cannot do; no forward may catch it by accident."""


class Decider(Protocol):
    """The part of the tracer that proxies ask."""

    def value(self, node: fx.Node) -> object:
        """Return the example value of a node, or ``UNKNOWN``."""

    def decide(self, proxy: Proxy, read: Callable[[object], object]) -> object:
        """Read a plain value off a proxy and guard it."""


def _asked_by_user() -> bool:
    """Tell whether the forward asks, and not torch or this library."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return not (caller == "torch" or caller.startswith(("torch.", "torchgraft.")))


class Proxy(fx.Proxy):
    """Stand for a value while a forward is followed."""

    @property  # type: ignore[misc]  # answers isinstance checks of the forward
    def __class__(self) -> type:
        return kind_of(self) if _asked_by_user() else Proxy

    @property
    def _decider(self) -> Decider:
        return self.tracer  # type: ignore[return-value]  # our tracer is the only maker of proxies

    def __getattr__(self, name: str) -> Attribute:  # type: ignore[override]  # ours, not that of the base
        value = self._decider.value(self.node)
        if value is UNKNOWN and not hasattr(torch.Tensor, name):
            raise NeedsValues
        if value is not UNKNOWN and not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if value is not UNKNOWN and getattr(value, name) is None:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})  # type: ignore[return-value]  # None
        return Attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("tracer", "node", "root", "attr", "_made"):
            raise UnfollowableError(f"it sets {name!r} of a value")
        object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[fx.Proxy]:
        count = _unpacked(sys._getframe(1))
        if count is None or self._decider.value(self.node) is not UNKNOWN:
            count = self.__len__()
        return iter([self[i] for i in range(count)])  # type: ignore[index]  # fx adds operators at run time

    def __len__(self) -> int:
        return self._decider.decide(self, len)  # type: ignore[return-value, arg-type]  # len gives int

    def __bool__(self) -> bool:
        return bool(self._decider.decide(self, bool))

    def __int__(self) -> int:
        return self._decider.decide(self, int)  # type: ignore[return-value, arg-type]  # int gives int

    def __index__(self) -> int:
        return self.__int__()

    def __float__(self) -> float:
        return self._decider.decide(self, float)  # type: ignore[return-value, arg-type]  # gives float

    def __contains__(self, item: object) -> bool:
        found = self.tracer.create_proxy("call_function", operator.contains, (self, item), {})
        return bool(found)

    def __hash__(self) -> int:
        return hash(self._decider.decide(self, hash)) if _asked_by_user() else id(self)

    def __str__(self) -> str:
        # Texts of messages are made by format and never asked for their truth.
        return str(self._decider.decide(self, str)) if _asked_by_user() else repr(self)

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(name: str) -> Callable[[Proxy, object], fx.Proxy]:
    function = getattr(operator, name)

    def method(self: Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy(
            "call_function", function, (self, other), {}, name=name[1:].strip("_")
        )

    return method


for _name in [
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
    "imatmul",
]:
    setattr(Proxy, f"__{_name}__", _in_place(_name))


class Attribute(Proxy):
    """Stand for an attribute that becomes a node when it is used, or a method when called."""

    def __init__(self, root: Proxy, name: str) -> None:
        self.root = root
        self.attr = name
        self.tracer = root.tracer
        self._made: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]  # made late: a method call needs no node
        """The node that reads the attribute."""
        if self._made is None:
            made = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {})
            self._made = made.node
        return self._made

    def __call__(self, *args: object, **kwargs: object) -> fx.Proxy:
        """Record the call of a method."""
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def kind_of(value: object) -> type:
    """Return the class of what a proxy stands for, guarded; of anything else, its class."""
    if not is_proxy(value):
        return type(value)
    proxy = cast("Proxy", value)
    return cast("type", proxy._decider.decide(proxy, type))


def _unpacked(frame: types.FrameType) -> int | None:
    """Count the names on the left of ``a, b = proxy`` in the calling frame."""
    return _unpackings(frame.f_code).get(frame.f_lasti)


@functools.lru_cache(maxsize=1024)
def _unpackings(code: types.CodeType) -> dict[int, int]:
    """List the offsets of a code at which a value is unpacked, with the number of names."""
    return {i.offset: i.argval for i in dis.get_instructions(code) if i.opname == "UNPACK_SEQUENCE"}


def is_proxy(value: object) -> bool:
    """Tell whether a value is a proxy, without asking for its class."""
    return issubclass(type(value), fx.Proxy)


def holds_proxy(value: object) -> bool:
    """Tell whether a nested argument holds a proxy."""
    kind = type(value)
    if issubclass(kind, fx.Proxy):
        return True
    if issubclass(kind, (tuple, list)):
        return any(holds_proxy(item) for item in value)  # type: ignore[attr-defined]  # a sequence
    if issubclass(kind, dict):
        return any(holds_proxy(item) for item in value.values())  # type: ignore[attr-defined]  # a dict
    if kind is slice:
        return any(holds_proxy(v) for v in (value.start, value.stop, value.step))  # type: ignore[attr-defined]  # a slice
    return False


def holds_node(value: object) -> bool:
    """Tell whether an argument of a node holds another node."""
    found: list[fx.Node] = []
    fx.map_arg(cast("fx.node.Argument", value), found.append)
    return bool(found)


def tensors_in(value: object) -> list[torch.Tensor]:
    """List the tensors of a nested value."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors_in(item)] if isinstance(value, (list, tuple)) else []


def rebuilt(old: tuple[object, ...] | list[object], items: list[object]) -> object:
    """Make a sequence of the same kind with other items; a named tuple keeps its names."""
    make: Callable[..., object] = type(old)
    return make(*items) if hasattr(old, "_fields") else make(items)


def to_meta(value: object) -> object:
    """Move the tensors of a nested value to the meta device; its containers are copied."""
    if isinstance(value, torch.Tensor):
        return value if value.is_meta else torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return rebuilt(value, [to_meta(item) for item in value])
    if isinstance(value, dict) and type(value).__init__ is dict.__init__:
        return type(value)((key, to_meta(item)) for key, item in value.items())
    return value

"""Proxies that may carry example values, so that control flow on sizes can be decided.

Without values a decision raises ``NeedsValues``, and the trace is made again with them.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Protocol, cast

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_list


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

    def decide(self, proxy: Proxy, read: Callable[..., object]) -> object:
        """Read a plain value off a proxy and guard it."""

    def index(self, proxy: Proxy, frame: types.FrameType) -> int:
        """Read an integer off a proxy for what is called in a frame, and guard it."""


def _asked_by_user() -> bool:
    """Tell whether the forward asks, and not torch or this library."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return not (caller == "torch" or caller.startswith(("torch.", "torchgraft.")))


_OF_GRADIENTS = ("requires_grad", "grad", "grad_fn", "is_leaf")


class Proxy(fx.Proxy):
    """Stand for a value while a forward is followed."""

    @property  # type: ignore[misc]  # answers isinstance checks of the forward
    def __class__(self) -> type:
        return kind_of(self) if _asked_by_user() else Proxy

    @property
    def _decider(self) -> Decider:
        return self.tracer  # type: ignore[return-value]  # our tracer is the only maker of proxies

    def __getattr__(self, name: str) -> Attribute:  # type: ignore[override]  # ours, not that of the base
        if name in _OF_GRADIENTS:
            raise UnfollowableError(f"it asks for {name}, whose answer would be fixed for ever")
        value = self._decider.value(self.node)
        if value is UNKNOWN and not hasattr(torch.Tensor, name):
            raise NeedsValues
        if value is not UNKNOWN and not hasattr(torch.Tensor, name):
            self._decider.decide(self, type)  # others have it, or have it not
        if value is not UNKNOWN and not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if value is not UNKNOWN and getattr(value, name) is None:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})  # type: ignore[return-value]  # None
        return Attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("tracer", "node", "root", "attr", "_made"):
            raise UnfollowableError(f"it sets {name!r} of a value")
        object.__setattr__(self, name, value)

    @property  # the one of the base looks at the frame that calls it, so none may stand between
    def __iter__(self) -> Callable[[], Iterator[object]]:  # type: ignore[override]  # what it returns is called
        if self._decider.value(self.node) is UNKNOWN and _gives_sequence(self.node):
            return functools.partial(fx.Proxy.__iter__, self)
        return self._items

    def _items(self) -> Iterator[object]:
        value = self._decider.value(self.node)
        if value is UNKNOWN:
            raise NeedsValues
        if isinstance(value, Mapping):
            return iter(_keys(self))
        if isinstance(value, KeysView):
            return iter(_keys(self.tracer.create_proxy("call_function", list, (self,), {})))  # type: ignore[arg-type]  # one of ours
        if isinstance(value, ItemsView):
            pairs = self.tracer.create_proxy("call_function", dict, (self,), {})
            return iter([(key, pairs[key]) for key in _keys(pairs)])  # type: ignore[index, arg-type]  # one of ours
        if isinstance(value, ValuesView):
            return self.tracer.create_proxy("call_function", list, (self,), {})._items()
        if isinstance(value, (torch.Tensor, Sequence)):
            return iter([self[i] for i in range(len(self))])  # type: ignore[index]  # fx adds operators at run time
        raise UnfollowableError(f"it goes through a {type(value).__name__}")

    def keys(self) -> object:  # type: ignore[override]  # a view: the base has a method of that name
        """Return the keys of a dictionary."""
        return self.__getattr__("keys")()

    def __reversed__(self) -> Iterator[object]:
        return reversed(list(self._items()))

    def __len__(self) -> int:
        return self._decider.decide(self, len)  # type: ignore[return-value]  # len gives int

    def __bool__(self) -> bool:
        return bool(self._decider.decide(self, bool))

    def __int__(self) -> int:
        return self._decider.decide(self, int)  # type: ignore[return-value]  # int gives int

    def __index__(self) -> int:
        return self._decider.index(self, sys._getframe(1))

    def __float__(self) -> float:
        return self._decider.decide(self, float)  # type: ignore[return-value]  # gives float

    def __contains__(self, item: object) -> bool:
        found = self.tracer.create_proxy("call_function", operator.contains, (self, item), {})
        return bool(found)

    def __hash__(self) -> int:
        return hash(self._decider.decide(self, hash)) if _asked_by_user() else id(self)

    def __str__(self) -> str:
        # Texts of messages are made by format and never asked for their truth.
        return str(self._decider.decide(self, str)) if _asked_by_user() else repr(self)

    def __format__(self, spec: str) -> str:
        return repr(self)  # filled in where the text goes into the graph

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
        """Record the call of a method; the parts of a dictionary are values of their own."""
        if self.attr in ("keys", "values", "items"):
            value = self._decider.value(self.root.node)
            if isinstance(value, Mapping):
                keys = _keys(self.root)
                parts = dict.fromkeys(keys) if self.attr == "keys" else {key: self.root[key] for key in keys}  # type: ignore[index]  # fx adds operators at run time
                return getattr(parts, self.attr)(*args, **kwargs)  # type: ignore[no-any-return]  # a view
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def kind_of(value: object) -> type:
    """Return the class of what a proxy stands for, guarded; of anything else, its class."""
    if not is_proxy(value):
        return type(value)
    proxy = cast("Proxy", value)
    return cast("type", proxy._decider.decide(proxy, type))


def _keys(proxy: Proxy) -> list[object]:
    """Return the keys of a dictionary, guarded with their order."""
    return cast("list[object]", proxy._decider.decide(proxy, list))


def _gives_sequence(node: fx.Node) -> bool:
    """Tell whether a node gives a sequence or a tensor, whatever the input."""
    if node.op == "call_method":
        return hasattr(torch.Tensor, str(node.target)) and node.target != "values"
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return isinstance(node.args[1], slice) and _gives_sequence(node.args[0])
    return node.op == "call_function" and f"{getattr(node.target, '__module__', '')}.".startswith("torch.")


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
        # Past what its class says: keys may be proxies, which are not found by their hash.
        return any(
            holds_proxy(key) or holds_proxy(item)
            for key, item in dict.items(cast("dict[object, object]", value))
        )
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
    if not isinstance(value, (tuple, list)):
        value = list((value if isinstance(value, dict) else attributes_of(value)).values())
    return [t for item in value for t in tensors_in(item)]


def attributes_of(value: object) -> dict[str, object]:
    """Return what a plain object holds in its attributes, where there are tensors among it."""
    if isinstance(value, (torch.nn.Module, torch.Tensor, type, types.ModuleType)) or callable(value):
        return {}
    slots = getattr(type(value), "__slots__", ())
    names = (*getattr(value, "__dict__", ()), *((slots,) if isinstance(slots, str) else slots))
    held = {name: getattr(value, name, None) for name in names if not name.startswith("__")}
    kinds = (torch.Tensor, tuple, list, dict)
    return held if any(isinstance(item, kinds) and tensors_in(item) for item in held.values()) else {}


def rebuilt(old: tuple[object, ...] | list[object], items: list[object]) -> object:
    """Make a sequence of the same kind with other items; a named tuple keeps its names."""
    # What a graph holds as a constant is a plain list in its code.
    make: Callable[..., object] = list if isinstance(old, immutable_list) else type(old)
    return make(*items) if hasattr(old, "_fields") else make(items)


def to_meta(value: object) -> object:
    """Move the tensors of a nested value to the meta device; its containers are copied."""
    return map_tensors(lambda t: t if t.is_meta else torch.empty_like(t, device="meta"), value)


def map_tensors(function: Callable[[torch.Tensor], object], value: object) -> object:
    """Apply a function to the tensors of a nested value, also in attributes; its containers are copied."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return rebuilt(value, [map_tensors(function, item) for item in value])
    if isinstance(value, dict) and type(value).__init__ is dict.__init__:
        return type(value)((key, map_tensors(function, item)) for key, item in value.items())
    held, items = attributes_of(value), dict.items(value) if isinstance(value, dict) else ()
    if held or items:
        value = copy.copy(value)
        for name, item in held.items():
            object.__setattr__(value, name, map_tensors(function, item))
        for key, item in items:
            dict.__setitem__(cast("dict[object, object]", value), key, map_tensors(function, item))
    return value

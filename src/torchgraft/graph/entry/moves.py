"""Tensors that name their own elements, and what operations move them to."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import attrs
import torch
from torch import fx
from torch.nn import functional as F

from torchgraft.graph.layout_rules import operation
from torchgraft.graph.proxy import UNKNOWN


@attrs.frozen(eq=False)
class Raw:
    """Stand for the input, or for a part of it in another form.

    Args:
        ids: for each element ``1 + channel + channels * place``; 0 for what was added.
        channels: number of channels of the input.
    """

    ids: torch.Tensor
    channels: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int) -> Self:
        """Name the elements of an input."""
        channels = shape[axis]
        others = [size for i, size in enumerate(shape) if i != axis]
        make: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        places = torch.arange(torch.Size(others).numel(), **make).reshape(others)
        ids = places.unsqueeze(axis) * channels
        names = 1 + torch.arange(channels, **make)
        return cls(ids + names.reshape([channels if i == axis else 1 for i in range(len(shape))]), channels)

    @property
    def is_complete(self) -> bool:
        """Tell whether no channel is missing."""
        found = self.ids[self.ids > 0]
        return len(torch.unique((found - 1) % self.channels)) == self.channels

    def features(self, axis: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Tell the channel and the place of each feature along an axis.

        Returns:
            Both, or ``None`` where a feature is not of one channel, or one is there twice.
        """
        rows = self.ids.movedim(axis, 0).flatten(1)
        real, channel = rows > 0, (rows - 1) % self.channels
        whole = real.all(0).nonzero().flatten()
        if not whole.numel():
            return None
        column = int(whole[0])
        first = channel[:, column]
        if bool(((channel != first[:, None]) & real).any()):
            return None
        places = ((rows[:, column] - 1) // self.channels).long().tolist()
        channels = first.long().tolist()
        wanted = {(c, p) for c in range(self.channels) for p in places}
        pairs = list(zip(channels, places, strict=True))
        if set(pairs) != wanted or len(pairs) != len(wanted):
            return None
        return tuple(channels), tuple(places)


def raws(value: object) -> list[Raw]:
    """List the inputs in a nested value."""
    return [part for part in _parts(value) if isinstance(part, Raw)]


def moved(node: fx.Node, args: Any, kwargs: Any) -> object:
    """Do what an operation does to the elements of the input.

    Args:
        node: the operation.
        args: its arguments; ``UNKNOWN`` for values that do not come from the input alone.
        kwargs: likewise.

    Returns:
        The value, ``UNKNOWN``, or a text that says why the input cannot be followed.
    """
    name, taken = operation(node), raws((args, kwargs))
    if not taken:
        return _plain(node, args, kwargs)
    if name in _OPENS and not any(isinstance(part, Raw) for part in (*args, *kwargs.values())):
        return _opened(node, args, kwargs)
    if name in _KEEPS:
        return Raw(taken[0].ids.contiguous(), taken[0].channels)
    if name in _ASKS:
        return (
            _compute(node, args, kwargs)
            if name in _SIZES or args[1:2] in (("shape",), ("ndim",))
            else UNKNOWN
        )
    if name == "listed":
        return list(args)
    if name in _SCALES:
        others = [a for a in (*args, *kwargs.values()) if not isinstance(a, Raw)]
        if len(taken) == 1 and all(_is_number(other) for other in others):
            return taken[0]
        return f"{name} of the input and something that is no number"
    if name in _MOVES:
        if name == "pad":
            kwargs = {**kwargs, "value": 0.0} if kwargs.get("mode", "constant") == "constant" else kwargs
            args = args[:3]
        made = _compute(node, args, kwargs)
        return f"{name} with other values, or with sizes written down" if made is UNKNOWN else made
    if name in _RESIZES:
        made = _compute(node, args, kwargs)
        if not isinstance(made, Raw):
            return f"{name} with sizes written down"
        return Raw(F.interpolate(taken[0].ids, made.ids.shape[2:]), taken[0].channels)
    return f"{name} of the input as it is"


_OPENS = frozenset(("getitem", "get", "values", "keys", "items", "copy", "len"))
"""What is done to a container that holds the input among other things."""


def _opened(node: fx.Node, args: Any, kwargs: Any) -> object:
    function: Any = node.target
    try:
        return (
            getattr(args[0], function)(*args[1:], **kwargs) if isinstance(function, str) else function(*args)
        )
    except Exception:  # noqa: BLE001 - what is unknown can fail in any way
        return UNKNOWN


_KEEPS = frozenset(
    (
        "to", "float", "half", "double", "bfloat16", "type_as", "clone", "detach", "contiguous", "dropout",
        "dropout2d", "neg", "clamp", "clip", "requires_grad", "cuda", "cpu", "checkpoint_name",
    )
)  # fmt: skip
_SIZES = frozenset(("size", "dim", "numel", "ndim", "len", "shape"))
_ASKS = _SIZES | {
    "getattr", "type", "typed", "is_contiguous", "is_floating_point", "is_tensor", "_assert", "baked",
    "counted", "passed_on", "nothing", "isinstance", "get_device", "new_zeros", "new_ones", "new_empty",
    "new_full",
}  # fmt: skip
_SCALES = frozenset(
    ("add", "sub", "rsub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "pow")
)
_MOVES = frozenset(
    (
        "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "reshape", "view", "flatten",
        "unflatten", "squeeze", "unsqueeze", "getitem", "pad", "unfold", "pixel_unshuffle", "cat", "concat",
        "stack", "chunk", "split", "unbind", "narrow", "flip", "roll", "expand", "t",
    )
)  # fmt: skip
_RESIZES = frozenset(
    ("interpolate", "upsample", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
)


def _plain(node: fx.Node, args: Any, kwargs: Any) -> object:
    """Compute with sizes; anything else is of no interest."""
    if node.op == "call_function" and all(isinstance(part, _NUMBERS) for part in _parts((args, kwargs))):
        return _compute(node, args, kwargs)
    return UNKNOWN


_NUMBERS = (int, float, bool, str, torch.Size, slice, type(None))


def _compute(node: fx.Node, args: Any, kwargs: Any) -> object:
    """Run an operation on the names of the elements."""
    count = [raw.channels for raw in raws((args, kwargs))]
    args, kwargs = mapped((args, kwargs), lambda a: a.ids if isinstance(a, Raw) else a)
    function: Any = node.target
    if isinstance(function, str):
        function = operator.methodcaller(function, *args[1:], **kwargs)
        args, kwargs = args[:1], {}
    try:
        made = function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - sizes that do not fit can fail in any way
        return UNKNOWN
    return mapped(made, lambda a: Raw(a, count[0]) if count and isinstance(a, torch.Tensor) else a)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change the parts of a nested argument."""
    return fx.node.map_aggregate(value, change)


def _parts(value: object) -> list[object]:
    parts: list[object] = []
    mapped(value, parts.append)
    return parts


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, str, type(None))) or getattr(value, "numbers", 0) == 1

"""Windows: how convolutions and poolings read the places of a map, and how to make them denser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TargetError
from torchgraft.graph.deep.record import Op, record
from torchgraft.graph.density.dense import Spec, missing, offset
from torchgraft.text import class_name

Pair = tuple[int, int]
KINDS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_SIZES = (41, 42, 43, 44, 47, 52)


@attrs.frozen
class Window:
    """Describe how a layer reads the places of a map, height first.

    Args:
        kernel: places read along each axis.
        stride: places from one window to the next.
        padding: places added at both ends.
        dilation: places from one that is read to the next.
        ceil: windows may begin inside and end outside.
        same: the padding follows from the size, so that only the stride changes it.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil: bool = False
    same: bool = False

    def specs(self, density: Pair, step: Pair) -> tuple[Spec, Spec]:
        """Write the windows as arguments of what runs in a dilated model."""
        return self._spec(0, density, step), self._spec(1, density, step)

    def _spec(self, axis: int, density: Pair, step: Pair) -> Spec:
        padding = -1 if self.same else self.padding[axis]
        return (
            self.kernel[axis],
            self.stride[axis],
            padding,
            self.dilation[axis],
            density[axis],
            step[axis],
        )

    @property
    def is_pooled_bare(self) -> bool:
        """Tell whether torch refuses the padding in a pooling, where half a kernel is the most."""
        return any(2 * padding > kernel for padding, kernel in zip(self.padding, self.kernel, strict=True))

    def dense(self, density: Pair, step: Pair) -> Window:
        """Return the window that reads the same places where they lie apart."""
        apart = [
            d * times if size > 1 else d
            for d, times, size in zip(self.dilation, density, self.kernel, strict=True)
        ]
        padding = (self.padding[0] * density[0], self.padding[1] * density[1])
        return Window(self.kernel, step, padding, (apart[0], apart[1]), same=self.same)


def widens(specs: Sequence[Spec], *, ceil: bool) -> bool:
    """Tell whether places are missing at the ends of a map of any size."""
    return any(missing(length, spec, ceil) for spec in specs for length in range(64, 200))


def trims(specs: Sequence[Spec]) -> bool:
    """Tell whether "same" padding puts the first place of the original elsewhere for any size."""
    return any(spec[2] < 0 and offset(length, spec) for spec in specs for length in range(64, 200))


def window_of(module: nn.Module) -> Window:
    """Read the window of a convolution or pooling off its attributes, and watch odd ones for "same"."""
    padding: Any = module.padding
    window = Window(
        _pair(module.kernel_size),
        _pair(module.stride),
        (0, 0) if isinstance(padding, str) else _pair(padding),
        _pair(getattr(module, "dilation", 1)),
        ceil=bool(getattr(module, "ceil_mode", False)),
        same=padding == "same",
    )
    if _is_plain(module):
        return window
    seen, alike = _observed(module), attrs.evolve(window, same=True)
    return alike if seen == _expected(alike) and seen != _expected(window) else window


def check_dense(module: nn.Module, path: str, window: Window, density: Pair, step: Pair) -> None:
    """Check that a layer reads the places that it shall when its attributes change.

    Raises:
        TargetError: its padding or its forward cannot be made denser.
    """
    apart = density != (1, 1)
    problem = ""
    if getattr(module, "padding_mode", "zeros") == "circular" and apart:
        problem = "wraps around, which places that lie apart do not"
    elif window.same and step != (1, 1):
        problem = 'pads to "same" and would keep a stride'
    elif getattr(module, "return_indices", False):
        problem = "returns indices, which depend on the size"
    elif not _is_plain(module):
        changed = copy.copy(module)
        vars(changed).update(settings(module, window.dense(density, step)))
        pairs = ((module, window), (changed, window.dense(density, step)))
        if any(_observed(layer) != _expected(read) for layer, read in pairs):
            problem = "reads other places than its attributes tell"
    if problem:
        raise TargetError(
            f"{path!r} ({class_name(type(module))}) cannot be dilated: it {problem}",
            found=f"a map that is {density[0]} x {density[1]} times as dense, stride {step}",
            write=f'replace("{path}", <a convolution or pooling of torch.nn>) before',
        )


def settings(module: nn.Module, window: Window) -> dict[str, object]:
    """Return the attributes that give a layer another window."""
    held: dict[str, object] = {"stride": window.stride}
    if not isinstance(module, nn.AvgPool2d):
        held["dilation"] = window.dilation
    if isinstance(module.padding, str):
        ends = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
        held["_reversed_padding_repeated_twice"] = [
            half for total in reversed(ends) for half in (total // 2, total - total // 2)
        ]
    elif not window.same:
        held["padding"] = window.padding
        if isinstance(module, nn.Conv2d):
            held["_reversed_padding_repeated_twice"] = [p for p in reversed(window.padding) for _ in "ab"]
    if hasattr(module, "ceil_mode"):
        held["ceil_mode"] = window.ceil
    return held


CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
MAX_POOL2D = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVG_POOL2D = (
    "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
)  # fmt: skip
_DEFAULTS: dict[str, object] = {
    "bias": None, "padding": 0, "dilation": 1, "groups": 1, "ceil_mode": False, "return_indices": False,
    "count_include_pad": True, "divisor_override": None, "stride": None,
}  # fmt: skip


def arguments(node: fx.Node, names: Sequence[str]) -> dict[str, object]:
    """Name the arguments of a functional convolution or pooling, defaults included."""
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {name: given.get(name, _DEFAULTS.get(name)) for name in names}


def window_of_call(held: Mapping[str, object], kernel: object = None) -> Window | None:
    """Read the window of a functional convolution or pooling; ``None`` where it is not fixed.

    Args:
        held: its arguments by name.
        kernel: size of the kernel, for a convolution.
    """
    padding = held["padding"]
    kernel = held.get("kernel_size", kernel)
    stride = held["stride"] if held["stride"] not in (None, ()) else held.get("kernel_size", 1)
    plain = (kernel, stride, 0 if isinstance(padding, str) else padding, held.get("dilation", 1))
    if not all(_is_fixed(value) for value in plain) or held.get("return_indices"):
        return None
    kernel_, stride_, padding_, dilation_ = map(_pair, plain)
    return Window(
        kernel_, stride_, padding_, dilation_, ceil=bool(held.get("ceil_mode")), same=padding == "same"
    )


def _is_fixed(value: object) -> bool:
    return isinstance(value, int) or (
        isinstance(value, Sequence) and len(value) in (1, 2) and all(isinstance(v, int) for v in value)
    )


def _pair(value: int | Sequence[int] | object) -> Pair:
    if isinstance(value, Sequence):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))  # type: ignore[call-overload]  # an integer


# Layers with a forward of their own -----------------------------------------------------


def _is_plain(module: nn.Module) -> bool:
    forwards: list[Callable[..., object]] = [kind.forward for kind in KINDS]
    return type(module).forward in forwards and "forward" not in vars(module)


def _expected(window: Window) -> list[tuple[object, ...]]:
    """Tell what a layer with a window does for some sizes: places before, the steps, the output."""
    found: list[tuple[object, ...]] = []
    for size in _SIZES:
        before, outputs = [], []
        for axis in (0, 1):
            kernel, stride = window.kernel[axis], window.stride[axis]
            span = window.dilation[axis] * (kernel - 1)
            if window.same:
                total = max((-(-size // stride) - 1) * stride + span + 1 - size, 0)
                before.append(total // 2)
            else:
                total = 2 * window.padding[axis]
                before.append(window.padding[axis])
            room = size + total - span - 1
            outputs.append((-(-room // stride) if window.ceil else room // stride) + 1)
        found.append((tuple(before), window.stride, window.dilation, tuple(outputs)))
    return found


def _observed(module: nn.Module) -> list[tuple[object, ...]] | None:
    """Record what a layer does with maps of some sizes."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    found: list[tuple[object, ...]] = []
    for size in _SIZES:
        given = torch.empty(2, getattr(module, "in_channels", 3), size, size, dtype=like.dtype, device="meta")
        try:
            made = record(module, ((given,), {}))
        except Exception:  # noqa: BLE001 - a forward of somebody else may fail in any way
            return None
        windows = [_read_off(op) for op in made.ops if op.name in _PLACES]
        if len(windows) != 1 or [way for way, _ in made.scopes[0].outputs] != [()]:
            return None
        stride, before, dilation = windows[0]
        for op in made.ops:
            pads: Any = op.args[1] if op.name == "constant_pad_nd" else ()
            if len(pads) == 4:
                before = (before[0] + pads[2], before[1] + pads[0])
        found.append((before, stride, dilation, tuple(made.shapes[made.outputs[0]][-2:])))
    return found


_PLACES = {"convolution": (3, 4, 5), "max_pool2d_with_indices": (2, 3, 4), "avg_pool2d": (2, 3, 99)}
"""Where the operations that move a window take its stride, padding and dilation."""


def _read_off(op: Op) -> tuple[Pair, Pair, Pair]:
    stride, padding, dilation = (op.args[n] if n < len(op.args) else () for n in _PLACES[op.name])
    return _pair(stride or op.args[1]), _pair(padding or 0), _pair(dilation or 1)

"""What is known of a value that flows through a model: axes, channels, dtype, device."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import nn

_NAMES = {
    (4, 1): ("n", "c", "h", "w"),
    (4, 3): ("n", "h", "w", "c"),
    (3, 1): ("n", "c", "l"),
    (3, 2): ("n", "l", "c"),
    (5, 1): ("n", "c", "d", "h", "w"),
    (2, 1): ("n", "c"),
}


@attrs.frozen
class TensorSpec:
    """Describe a value by its channel count and the axis that holds the channels.

    Args:
        channels: number of channels.
        axis: axis of the channels: 1 for ``n c h w``, -1 for ``n h w c`` and ``n l c``.
        rank: number of axes, or ``None`` where it was not needed to find it out.
        dtype: dtype of the values and of new parameters.
        device: device of new parameters.
        layer: the layer that a block is put beside or in the place of; ``None`` elsewhere.
        out_channels: channels that have to come out; ``None`` for as many as go in.
        stride: input places for each output place that are wanted.
        weight: name of the weight that a block is put on, where a layer is not called.

    Example:
        >>> import torch
        >>> TensorSpec(64, 1, 4, torch.float32, torch.device("cpu"))
        n 64 h w float32
    """

    channels: int
    axis: int
    rank: int | None
    dtype: torch.dtype
    device: torch.device
    layer: nn.Module | None = attrs.field(default=None, eq=False)
    out_channels: int | None = None
    stride: int = 1
    weight: str = ""

    @property
    def channels_last(self) -> bool:
        """Tell whether the channels stand on the last axis and not on axis 1."""
        return self.axis == -1 and self.rank != 2

    def out(self, asked: int | None = None) -> int:
        """Return the channels to give: those asked for, those wanted here, or those taken."""
        return asked or self.out_channels or self.channels

    def step(self, asked: int | None = None) -> int:
        """Return the stride to have: the one asked for, or the one wanted here."""
        return asked or self.stride

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        if self.rank is None:
            dims = f"n ... {self.channels}" if self.axis == -1 else f"n {self.channels} ..."
            return f"{dims} {dtype}"
        names: tuple[str, ...] = _NAMES.get((self.rank, self.axis % self.rank), ())
        dims = " ".join(str(self.channels) if n == "c" else n for n in names)
        return f"{dims or f'{self.rank} axes'} {dtype}"


def drawn(device: torch.device) -> torch.device:
    """Return where what is new is made: on the CPU, so that one seed gives one start on every device."""
    return torch.device("meta" if device.type == "meta" else "cpu")


def made_on(place: TensorSpec | torch.Tensor, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a module for a place, on its device and with its dtype."""
    with drawn(place.device):
        return make().to(place.device, place.dtype)


def shape_text(value: object) -> str:
    """Write the shapes of a value that may be nested: ``n 64 56 56``.

    The first axis is the batch, which is not part of any contract.
    """
    if isinstance(value, torch.Tensor):
        return " ".join(["n", *(str(d) for d in value.shape[1:])]) if value.ndim else "scalar"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shape_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(shape_text(v) for v in value) + ")"
    return type(value).__name__


def layout_name(rank: int, axis: int) -> str | None:
    """Name the layout of a value: ``NCHW``, ``NHWC``, ``NLC``, ``NC``."""
    names = _NAMES.get((rank, axis % (rank or 1)))
    return "".join(names).upper() if names else None

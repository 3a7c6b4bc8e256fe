"""What gates have in common: a sigmoid that starts at one where it should be neutral."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.errors import OptionError


def gate(logits: torch.Tensor, *, neutral: bool) -> torch.Tensor:
    """Turn logits into a gate.

    A sigmoid is one half at zero, which would halve what a pretrained network passes on.
    The neutral gate is twice the sigmoid: exactly one at zero, and with the same reach for
    what follows to learn.

    Args:
        logits: any shape.
        neutral: ``True`` for twice the sigmoid, ``False`` for the sigmoid of the papers.

    Returns:
        The gate, of the same shape.
    """
    return torch.sigmoid(logits) * 2 if neutral else torch.sigmoid(logits)


def zero(layer: nn.Conv2d | nn.Conv1d) -> None:
    """Zero the last layer of a gate, so that its logits start at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def positive(name: str, value: object, asked: str) -> int:
    """Check an option that must be a positive integer.

    Raises:
        OptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        name_of = asked.partition("(")[0]
        raise OptionError(
            f"{name} must be a positive integer",
            asked=asked,
            found=f"{name}={value!r}",
            write=f"{name_of}({name}={_usual(name)})",
        )
    return value


def _usual(name: str) -> int:
    return 16 if name == "reduction" else 3


def squeezed(channels: int, reduction: int) -> int:
    """Return the width of a bottleneck: at least eight, as fewer units may all be dead."""
    return max(min(8, channels), channels // reduction)

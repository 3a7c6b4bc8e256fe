"""What gates have in common: a sigmoid that starts at one where it should be neutral."""

from __future__ import annotations

import torch
from torch.overrides import handle_torch_function, has_torch_function


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


def spread(factors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Give factors of channels, ``n c`` or with single places, as many axes as a value has: ``n c 1 1``."""
    if has_torch_function((factors, x)):  # as torch's own functions do: one step to what traces it
        traced: torch.Tensor = handle_torch_function(spread, (factors, x), factors, x)
        return traced
    return factors.reshape(list(factors.shape[:2]) + [1] * (x.ndim - 2))


def squeezed(channels: int, reduction: int) -> int:
    """Return the width of a bottleneck: at least eight, as fewer units may all be dead."""
    return max(min(8, channels), channels // reduction)

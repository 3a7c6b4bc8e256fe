"""Fingerprints of activations: the same for the same values in any layout.

Two implementations hold one activation as ``n c h w`` and as ``n l c``; its moments and its
extremes do not know.
"""

from __future__ import annotations

import attrs
import torch

_DEAD = 1e-12


@attrs.frozen
class Print:
    """What is known of an activation whatever its layout.

    Args:
        count: number of values.
        size: root of the mean square, the unit of what follows.
        moments: mean, mean size, extremes and skew.
    """

    count: int
    size: float
    moments: tuple[float, ...]

    def distance(self, other: Print) -> float:
        """Return how far two activations are apart, as a share of their size."""
        if self.count != other.count:
            return float("inf")
        size = max(self.size, other.size)
        pairs = zip((self.size, *self.moments), (other.size, *other.moments), strict=True)
        return max(abs(a - b) for a, b in pairs) / size


def print_of(tensor: torch.Tensor) -> Print | None:
    """Take the fingerprint of an activation.

    Args:
        tensor: the activation, in any layout.

    Returns:
        The fingerprint; ``None`` where there is nothing to tell: whole numbers, zeros, NaN.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return None
    flat = tensor.detach().reshape(-1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    low, high = flat.aminmax()
    square = flat.square()
    skew = (square * flat).mean()
    told = torch.stack([square.mean(), flat.mean(), flat.abs().mean(), low, high, skew]).tolist()
    size = told[0] ** 0.5
    if not size > _DEAD or size == float("inf"):
        return None
    third = abs(told[5]) ** (1 / 3)
    return Print(tensor.numel(), size, (*told[1:5], third if told[5] > 0 else -third))

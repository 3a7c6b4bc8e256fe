"""Fingerprints of activations: the same for the same values in any layout.

Two implementations hold one activation as ``n c h w`` and as ``n l c``; its moments and its
extremes do not know.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs
import torch

K = TypeVar("K", bound=Hashable)
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


class Drawer(Generic[K]):
    """Fingerprints kept so that those near one are found without looking at all.

    Args:
        tolerance: how far apart near ones may be.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._cells: dict[tuple[object, ...], list[tuple[int, Print]]] = {}

    def put(self, kind: K, number: int, seen: Print) -> None:
        """Keep a fingerprint, by a number, among those of its kind."""
        self._cells.setdefault((kind, seen.count, *self._cell(seen)), []).append((number, seen))

    def near(self, kind: K, seen: Print) -> list[tuple[float, int]]:
        """Return how far near ones of a kind are, and their numbers, nearest first."""
        around = itertools.product(*((at - 1, at, at + 1) for at in self._cell(seen)))
        held = (one for cell in around for one in self._cells.get((kind, seen.count, *cell), ()))
        apart = ((seen.distance(other), number) for number, other in held)
        return sorted(one for one in apart if one[0] <= self._tolerance)

    def _cell(self, seen: Print) -> tuple[int, ...]:
        # As shares of the size, mean and mean size of near ones differ by less than a cell.
        shares = (math.log(seen.size), seen.moments[0] / seen.size, seen.moments[1] / seen.size)
        return tuple(math.floor(share / (3 * self._tolerance)) for share in shares)


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

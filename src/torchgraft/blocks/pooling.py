"""Pooling with a parameter."""

from __future__ import annotations

import functools

import torch
from torch import nn

from torchgraft.blocks.contract import POOLS
from torchgraft.blocks.described import block
from torchgraft.blocks.gate import spread
from torchgraft.blocks.options import Above
from torchgraft.blocks.start import constant, start
from torchgraft.spec import TensorSpec


class GeM(nn.Module):
    """Pool places by their generalised mean, with an exponent that is learnt.

    Args:
        p: the exponent to start from: 1 is the mean, infinity the maximum.
        eps: what smaller values are raised to.
    """

    def __init__(self, p: float, eps: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.empty(1))
        start(self, functools.partial(constant, value=float(p)))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn ``n c ...`` into ``n c 1 ...``."""
        # The cube of 41 is too large for half precision; a float32 zero widens what is narrower.
        wide = x.new_zeros(1, dtype=torch.float32)
        p = self.p + wide
        places = (x.flatten(2) + wide).clamp(min=self.eps)
        pooled = places.pow(p).mean(2).pow(1 / p).type_as(x)
        return spread(pooled, x)

    def extra_repr(self) -> str:
        """Write the option."""
        return f"eps={self.eps}"


@block(POOLS)
def gem(site: TensorSpec, *, p: Above = 3.0, eps: Above = 1e-6) -> nn.Module:  # noqa: ARG001 - the same everywhere
    """Describe generalised mean pooling: between the mean and the maximum of the places.

    Works on ``n c h w``, ``n c l`` and any other number of axes of places, which become
    axes of one place, as ``nn.AdaptiveAvgPool2d(1)`` gives them. Adds one weight. Powers are
    taken in float32 or wider.

    Args:
        site: the place.
        p: the exponent to start from; it is learnt. 1 gives the mean.
        eps: what smaller values, and so all negative ones, are raised to.

    Example:
        >>> gem(p=4.0)
        gem(p=4.0)

    Source:
        Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, arXiv
        1711.02512.
    """
    return GeM(p, eps)

"""Global context."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import gate, spread, squeezed
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class GlobalContext(nn.Module):
    """Give every place the same context: a bottleneck over a weighted mean of the places.

    Args:
        channels: number of channels.
        squeeze: width of the bottleneck.
        multiply: gate the channels by the context; otherwise it is added.
        neutral: start with a gate of exactly one, or with a context of zero.
    """

    def __init__(self, channels: int, squeeze: int, *, multiply: bool = False, neutral: bool = True) -> None:
        super().__init__()
        # A bias would shift all places alike, which the softmax does not see.
        self.score = nn.Linear(channels, 1, bias=False)
        self.fc1 = nn.Linear(channels, squeeze)
        self.norm = nn.LayerNorm(squeeze)
        self.fc2 = nn.Linear(squeeze, channels)
        self.multiply = multiply
        self.neutral = neutral
        if neutral:
            zero(self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the context to ``n c ...``, or gate its channels by it."""
        places = x.unsqueeze(-1).flatten(2)  # n c places, a vector being one place
        weights = self.score(places.transpose(1, 2)).softmax(1)
        pooled = (places @ weights).squeeze(2)
        context = spread(self.fc2(F.relu(self.norm(self.fc1(pooled)))), x)
        return x * gate(context, neutral=self.neutral) if self.multiply else x + context


@block()
def global_context(
    site: TensorSpec,
    *,
    reduction: Positive = 16,
    fusion: Literal["add", "multiply"] = "add",
    neutral: bool = True,
) -> nn.Module:
    """Describe the global context block: one context, pooled by attention, for all places.

    Works on maps, tokens and vectors, channels first or last (a vector is one place, whose
    score then plays no part); adds ``2 c^2 / reduction`` weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the bottleneck.
        fusion: ``"add"`` the context, or ``"multiply"`` the channels by its sigmoid.
        neutral: start without any effect: the last layer zero, and twice the sigmoid where
            the context multiplies. ``False`` gives the sigmoid of the paper and an ordinary
            initialisation of the last layer.

    Example:
        >>> global_context(fusion="multiply")
        global_context(fusion="multiply")

    Source:
        Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond,
        arXiv 1904.11492.
    """
    squeeze = squeezed(site.channels, reduction)
    return GlobalContext(site.channels, squeeze, multiply=fusion == "multiply", neutral=neutral)

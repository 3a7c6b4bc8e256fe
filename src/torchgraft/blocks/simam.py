"""SimAM, attention without parameters."""

from __future__ import annotations

import torch
from torch import nn

from torchgraft.blocks.described import block
from torchgraft.blocks.options import Above
from torchgraft.blocks.start import constant, start
from torchgraft.spec import TensorSpec


class SimAM(nn.Module):
    """Gate each value by how far it stands out from the others of its channel.

    Args:
        penalty: weight of the regulariser of the energy, the lambda of the paper.
        neutral: blend the gate with one, by a weight that starts at zero.
    """

    def __init__(self, penalty: float = 1e-4, *, neutral: bool = True) -> None:
        super().__init__()
        self.penalty = penalty
        self.blend = nn.Parameter(torch.empty(1)) if neutral else None
        start(self, constant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate ``n c ...`` value by value."""
        places = x.flatten(2)
        count = places.size(2)
        gap = places - places.mean(2, keepdim=True)
        # Over one place less, as in the paper's listing; the last term makes that one for a single place.
        variance = gap.square().mean(2, keepdim=True) * (count / (count - 1 + 1 // count))
        # Divided before it is squared, which stays finite in half precision.
        distinctness = (gap / (2 * (variance + self.penalty).sqrt())).square() + 0.5
        gate = torch.sigmoid(distinctness).reshape_as(x)
        return x * gate if self.blend is None else x * (1 + self.blend * (gate - 1))


@block(places=True)
def simam(site: TensorSpec, *, penalty: Above = 1e-4, neutral: bool = True) -> nn.Module:  # noqa: ARG001 - it has no weights of channels
    """Describe SimAM: gate each value by how far it stands out in its channel.

    Works on maps and tokens, channels first or last; adds one weight if ``neutral``, else none.

    Args:
        site: the place.
        penalty: weight of the regulariser of the energy, above 0; the lambda of the paper.
        neutral: start with a gate of exactly one. The gate of the paper has nothing to learn
            and cannot be neutral, so it is blended in: ``x (1 + g (gate - 1))``, where ``g`` is
            a new weight, zero at the start; at one it is the paper. ``False`` gives the paper
            itself.

    Example:
        >>> simam(penalty=1e-3)
        simam(penalty=0.001)

    Source:
        Yang et al., SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
        Networks, ICML 2021.
    """
    return SimAM(penalty, neutral=neutral)

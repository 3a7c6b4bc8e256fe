"""The non-local block."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.described import block
from torchgraft.blocks.gate import squeezed
from torchgraft.blocks.options import Positive
from torchgraft.blocks.start import zero
from torchgraft.spec import TensorSpec


class NonLocal(nn.Module):
    """Add to each place a mean of all places, weighted by how alike they are.

    Args:
        channels: number of channels.
        squeeze: width of the embeddings.
        neutral: start by adding nothing.
    """

    def __init__(self, channels: int, squeeze: int, *, neutral: bool = True) -> None:
        super().__init__()
        self.theta = nn.Linear(channels, squeeze, bias=False)
        self.phi = nn.Linear(channels, squeeze, bias=False)
        self.g = nn.Linear(channels, squeeze, bias=False)
        self.fc = nn.Linear(squeeze, channels, bias=False)
        if neutral:
            zero(self.fc)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what all places say to ``n c ...``."""
        places = x.flatten(2).transpose(1, 2)
        theta, phi, g = (layer(places).unsqueeze(1) for layer in (self.theta, self.phi, self.g))
        # The embedded Gaussian is not divided by the root of the width.
        mixed = F.scaled_dot_product_attention(theta, phi, g, scale=1.0).squeeze(1)
        added: torch.Tensor = self.fc(mixed).transpose(1, 2)
        return x + added.reshape_as(x)


@block(places=True)
def non_local(site: TensorSpec, *, reduction: Positive = 2, neutral: bool = True) -> nn.Module:
    """Describe the non-local block: add to each place a mean of all, weighted by likeness.

    The embedded Gaussian form of the paper, its layers linear and without a batch norm. Works
    on maps and tokens, channels first or last, in time that grows with the square of the
    places; adds ``4 c^2 / reduction`` weights.

    Args:
        site: the place.
        reduction: channels divided by the width of the embeddings.
        neutral: start by adding exactly nothing, the last layer zero, as the paper proposes for
            pretrained models. ``False`` gives an ordinary initialisation.

    Example:
        >>> non_local(reduction=4)
        non_local(reduction=4)

    Source:
        Wang et al., Non-local Neural Networks, arXiv 1711.07971.
    """
    return NonLocal(site.channels, squeezed(site.channels, reduction), neutral=neutral)

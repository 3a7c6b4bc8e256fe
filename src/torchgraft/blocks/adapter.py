"""Bottleneck adapters, behind a target and beside it."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.beside import BESIDE, Adapting, fitting, refuse_in_place
from torchgraft.blocks.described import block
from torchgraft.blocks.options import Above, Positive
from torchgraft.blocks.start import start, zero
from torchgraft.spec import TensorSpec


class Bottleneck(Adapting):
    """Go through a few units and back, at each place on its own.

    Args:
        taken: channels that go in.
        width: units in between.
        given: channels that come out.
        axis: axis of the channels, 1 or -1.
        near: standard deviation of the weights at the start; ``None`` for the layers of torch,
            and a last one that is zero.
    """

    def __init__(self, taken: int, width: int, given: int, *, axis: int, near: float | None = None) -> None:
        super().__init__()
        self.down = _pointwise(taken, width, axis)
        self.up = _pointwise(width, given, axis)
        self.axis = axis
        if near is None:
            zero(self.up)
            return
        for layer in (self.down, self.up):
            zero(layer)
            start(layer, functools.partial(_near_zero, std=near))

    def change(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return what is added to ``y``, from ``n c ...`` or ``n ... c``."""
        on_maps = self.axis != -1
        taken = x.unsqueeze(-1).flatten(2).unsqueeze(-1) if on_maps else x  # also of an empty batch
        made: torch.Tensor = self.up(F.relu(self.down(taken)))
        return made.reshape_as(y) if on_maps else made


def _near_zero(layer: nn.Module, std: float) -> None:
    nn.init.trunc_normal_(layer.get_parameter("weight"), std=std, a=-2 * std, b=2 * std)


class Adapter(Bottleneck):
    """Add to a value what a bottleneck makes of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Change ``n c ...`` or ``n ... c`` at each place on its own."""
        return x + self.change(x, x) if self.enabled else x


class ParallelAdapter(Bottleneck):
    """Add to what a target gives what a bottleneck makes of what it took, times a factor."""

    def __init__(self, taken: int, width: int, given: int, *, axis: int, scale: float) -> None:
        super().__init__(taken, width, given, axis=axis)
        self.scale = scale
        self.taken = taken

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Change ``y`` by ``x``, at each place on its own."""
        if not self.enabled:
            return y
        x = fitting(x, y, axis=self.axis, channels=self.taken)
        return torch.add(y, self.change(x, y), alpha=self.scale)


@block(any_axis=True)
def adapter(site: TensorSpec, width: Positive = 64, *, neutral: bool = True) -> nn.Module:
    """Describe an adapter behind its target: ``y + up(relu(down(y)))``.

    Works on ``n c h w``, ``n h w c``, ``n l c`` and any other number of places, on each place
    alone. Neutral at the start, as ``up`` starts at zero; adds ``2 c width`` weights.

    Args:
        site: the place.
        width: units of the bottleneck.
        neutral: start with ``up`` at zero. ``False`` gives the start of the paper: weights
            from a normal distribution of deviation 0.01, cut at two deviations.

    Example:
        >>> adapter(32)
        adapter(32)

    Source:
        Houlsby et al., Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751.
    """
    near = None if neutral else 1e-2
    return Adapter(site.channels, width, site.channels, axis=site.axis, near=near)


@block(BESIDE, beside=True, any_axis=True)
def parallel_adapter(site: TensorSpec, width: Positive = 64, *, scale: Above = 1.0) -> nn.Module:
    """Describe an adapter beside its target: ``y + scale * up(relu(down(x)))``, where ``x`` goes in.

    Works beside linear layers, convolutions that keep the places, and any target that gives
    the shape it takes. Neutral at the start, as ``up`` starts at zero, which is the paper's
    start too.

    Args:
        site: the place.
        width: units of the bottleneck.
        scale: factor of what is added; the scaled adapter of the paper has 4.

    Example:
        >>> parallel_adapter(32, scale=4)
        parallel_adapter(32, scale=4)

    Source:
        He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv
        2110.04366.
    """
    refuse_in_place(site, "parallel_adapter")
    return ParallelAdapter(_taken(site), width, site.channels, axis=site.axis, scale=scale)


def _pointwise(taken: int, given: int, axis: int) -> nn.Linear | nn.Conv2d:
    return nn.Linear(taken, given) if axis == -1 else nn.Conv2d(taken, given, 1)


def _taken(site: TensorSpec) -> int:
    """Return the channels that a target takes: those that it gives, unless its layer says otherwise."""
    layer = site.layer
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels if isinstance(layer, nn.modules.conv._ConvNd) else site.channels

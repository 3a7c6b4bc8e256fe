"""Modules that read values: meta tensors hold none, so such modules are tried on zeros."""

from __future__ import annotations

import pytest
import torch
from nets import Residual
from torch import nn

from torchgraft import inject, pipe, replace, shapes, swap_head, tiers, wrap
from torchgraft.errors import ShapeError


class Monitor(nn.Module):
    """Counts and writes down what passes."""

    def __init__(self):
        super().__init__()
        self.log = []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.log.append(float(x.detach().mean()))
        self.seen += 1
        return x * 2 if x.detach().abs().max().item() > 1e4 else x


class Weighted(nn.Module):
    """Has weights, and looks at what passes."""

    def __init__(self, channels, out=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, out or channels, 1)

    def forward(self, x):
        return self.conv(x) if x.detach().sum().item() >= 0 else x


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.Linear(512, 5)
    )


X = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize("make", [Monitor, torch.ao.quantization.FakeQuantize, lambda: Weighted(8)])
def test_they_are_injected_wrapped_and_put_in_the_place_of_others(make):
    state = torch.random.get_rng_state()
    model, module = net(), make()
    torch.random.set_rng_state(state)
    for step in (inject("0", module), wrap("0", module), replace("1", module)):
        new = pipe(model, step, example=X)
        assert new(X).shape == (2, 5)
    with pytest.raises(ShapeError, match="turns n 8 8 8 into n 4 8 8"):
        pipe(model, inject("0", Weighted(8, 4)), example=X)


def test_a_trial_leaves_no_trace():
    monitor = Monitor()
    new = pipe(net(), inject("0", monitor), example=X)
    held = next(m for m in new.modules() if isinstance(m, Monitor))
    assert (monitor.log, held.log, float(monitor.seen), float(held.seen)) == ([], [], 0, 0)


def test_later_steps_see_through_them():
    new = pipe(net(), inject("0", Monitor()), swap_head(3), inject("0", "se"), example=X)
    assert new(X).shape == (2, 3)
    assert shapes(new, (2, 3, 8, 8))["1"] == (2, 8, 8, 8)
    residual = nn.Sequential(nn.Conv2d(3, 8, 2, 2), Monitor(), Residual(8), nn.Conv2d(8, 8, 2, 2))
    assert tiers(residual).strides == (2, 4)

"""Several steps in one pipe do what they do one after another."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from nets import Small
from torch import fx, nn

from torchgraft import inject, pipe, replace, swap_head, wrap
from torchgraft.blocks import basic_residual, conv_norm_act

X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    "second",
    [
        replace("b", nn.BatchNorm2d),
        replace("b", lambda old: nn.BatchNorm2d(32)),
        replace("b", "batch_norm"),
        replace("b", conv_norm_act()),
        replace("b", basic_residual()),
        wrap("b", "se"),
        inject("b", "se"),
    ],
)
def test_a_step_sees_the_shapes_that_the_one_before_made(second):
    model = nn.Sequential(OrderedDict(a=nn.Identity(), b=nn.Identity()))
    step = replace("a", conv_norm_act(channels=32), keep_shape=False)
    one = pipe(model, step, second, example=X)
    other = pipe(pipe(model, step, example=X), second, example=X)
    assert {k: v.shape for k, v in one.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    assert one(X).shape == other(X).shape


def test_a_step_sees_what_the_output_has_become():
    model, step = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1))), replace("0.0", nn.Conv2d(3, 6, 1))
    assert pipe(model, step, wrap("0", "batch_norm"), example=X)[0].batch_norm.num_features == 6


def test_steps_on_a_plain_graph_module():
    graph = fx.symbolic_trace(Small())
    steps = [wrap("stage.0.conv1", "se"), inject("stem", "eca"), swap_head(3)]
    for order in (steps, steps[::-1]):
        assert pipe(graph, *order)(torch.ones(2, 3, 8, 8)).shape == (2, 3)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Conv2d(3, 8, 1)), nn.Sequential(nn.Conv2d(8, 8, 1))

    def forward(self, x):
        y = self.b(self.a(x))
        return y * 2 if y.mean().item() > 0 else y


@pytest.mark.parametrize("step", [wrap(nn.Conv2d, "se"), wrap("*.0", "lora"), inject(nn.Conv2d, "se")])
def test_several_targets_below_a_forward_that_stays_python(step):
    model, x = Decides(), torch.rand(2, 3, 8, 8)
    new = pipe(model, step)
    assert torch.equal(new(x), model(x))
    assert len(new.state_dict()) == len(model.state_dict()) + 2 * (len(new.a) - 1) * (
        len(new.a[1].state_dict())
    )

"""Explain: what a transform would do, and what was done."""

from __future__ import annotations

import torch
from fingerprint import changes, fingerprint
from nets import BySize, Small
from torch import nn
from torchvision.models import resnet50

from torchgraft import explain, freeze, inject, pipe, remove, replace, swap_head, wrap
from torchgraft.blocks import se


def test_what_a_transform_would_do(small):
    before = fingerprint(small)
    step = wrap("stage", se) >> swap_head(3) >> freeze("stem") >> replace("stage.0.relu", nn.SiLU)
    told = step.explain(small)
    assert not changes(before, fingerprint(small))
    assert told.modules_added == ("stage.se", "stage.se.fc1", "stage.se.fc2")
    assert told.parameters_added == tuple(f"stage.se.fc{i}.{n}" for i in (1, 2) for n in ("weight", "bias"))
    assert told.new_parameters == 2 * 8 * 8 + 16
    assert told.parameters_reshaped == (("fc.weight", (5, 8), (3, 8)), ("fc.bias", (5,), (3,)))
    assert told.frozen == ("stem.weight", "stem.bias")
    assert told.modules_exchanged == (("stage.0.relu", "ReLU", "SiLU"),)
    assert told.nodes_added == ("stage.se",)
    assert told.opened == ("stage",)
    assert told.levels == (("", "Python"), ("stage", "graph"))
    assert "runs       the root Python, stage graph" in str(told)
    assert ("fc", "n 5", "n 3") in told.shapes_changed
    assert "frozen     2 tensors" in str(told)


def test_what_was_done_is_told_from_the_first_model_on(small):
    one = pipe(small, inject("stage", se, name="more"))
    two = pipe(one, remove("stage.1"), swap_head(7))
    told = explain(two)
    assert told.modules_added == ("more", "more.fc1", "more.fc2")
    assert told.modules_removed[0] == "stage.1"
    assert "stage.1" in told.nodes_removed
    assert "more" in told.nodes_added
    assert told.parameters_removed[0] == "stage.1.conv1.weight"
    later = swap_head(9).explain(two)
    assert later.modules_added == ()
    assert later.opened == ()
    assert later.parameters_reshaped[0] == ("fc.weight", (7, 8), (9, 8))
    assert explain(pipe(two, swap_head(5))).parameters_reshaped == ()


def test_guards_and_counts():
    told = explain(pipe(BySize(), inject("conv", nn.Identity()), example=torch.zeros(1, 3, 32, 32)))
    assert told.guards
    assert told.guards[0] in str(told)
    with torch.device("meta"):
        model = resnet50()
    assert explain(model).parameters == 25_557_032
    assert explain(pipe(model, swap_head(100))).parameters == 23_712_932
    assert explain(pipe(Small())).nodes_added == ()


class Thrice(nn.Module):
    """One activation, called at several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.act, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, x):
        return self.act(self.two(self.act(self.one(x))))


def test_shapes_are_compared_call_by_call():
    model = nn.Sequential(Thrice(), nn.Conv2d(4, 4, 1))
    assert wrap("0", "se").explain(model).shapes_changed == ()
    five = replace("0.two", nn.Conv2d(8, 5, 3, 2, 1), keep_shape=False)
    changed = five.explain(nn.Sequential(Thrice())).shapes_changed
    assert [row[0] for row in changed] == ["0.two", "0.act", "0"]
    assert {row[1:] for row in changed} == {("n 4 56 56", "n 5 56 56")}


class Sized(nn.Module):
    """A forward that decides on a size, as blocks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.shape[-1] > 4 else x


def test_guards_of_alike_modules_are_one_fact():
    model = nn.Sequential(nn.Sequential(*(Sized() for _ in range(5))))
    guards = explain(pipe(model, wrap("0.*.conv", "se"))).guards
    assert len(guards) == 1
    assert "'0.*'" in guards[0] or "'*.*'" in guards[0]
    assert guards[0].endswith(", 5 alike")

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
    assert told.opened == ("", "stage")
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
    told = explain(pipe(BySize(), example=torch.zeros(1, 3, 32, 32)))
    assert told.guards
    assert told.guards[0] in str(told)
    with torch.device("meta"):
        model = resnet50()
    assert explain(model).parameters == 25_557_032
    assert explain(pipe(model, swap_head(100))).parameters == 23_712_932
    assert explain(pipe(Small())).nodes_added == ()

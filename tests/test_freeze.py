"""Freeze: what holds, what moves, and who decides."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from checks import step
from fingerprint import bits
from torch import nn
from torchvision.models import resnet50

from torchgraft import at, freeze, pipe, swap_head, unfreeze, wrap
from torchgraft.blocks import se
from torchgraft.errors import TargetError
from torchgraft.recipe.reader import parse


def snapshot(model, prefix):
    return {k: bits(v) for k, v in model.state_dict().items() if k.startswith(prefix)}


def test_ten_training_steps_move_nothing_that_is_frozen(small, images):
    result = pipe(small.train(), freeze("stage"))
    before, head = snapshot(result, "stage"), snapshot(result, "fc")
    for _ in range(10):
        step(result, images)
    assert snapshot(result, "stage") == before
    assert snapshot(result, "fc") != head


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), pipe])
def test_copies_hold_too(small, images, copied):
    result = copied(pipe(small.train(), freeze("stage")))
    before = snapshot(result, "stage")
    step(result, images)
    assert snapshot(result, "stage") == before


def test_statistics_move_when_asked(small, images):
    result = pipe(small.train(), freeze("stage", norm_stats=False))
    before = snapshot(result, "stage.0.bn.running_mean")
    step(result, images)
    assert snapshot(result, "stage.0.bn.running_mean") != before
    assert snapshot(result, "stage.0.bn.weight") == snapshot(small, "stage.0.bn.weight")


def test_train_does_not_thaw_and_unfreeze_does(small):
    frozen = pipe(small.train(), freeze("stage"))
    frozen.eval().train()
    assert frozen.training
    assert not frozen.stage[0].bn.training
    thawed = pipe(frozen, unfreeze("stage"))
    assert thawed.stage[0].bn.training
    assert all(p.requires_grad for p in thawed.parameters())
    assert not frozen.stage[0].bn.training
    assert vars(thawed.stage[0].bn).keys() == vars(small.stage[0].bn).keys()


def test_unfreezing_restores_the_mode_that_was_asked_for(small):
    small.train().stage[1].bn.eval()
    thawed = pipe(small, freeze("stage"), unfreeze("stage"))
    assert thawed.stage[0].bn.training
    assert not thawed.stage[1].bn.training


def test_order_decides_about_new_blocks(small):
    after = pipe(small, freeze("stage"), wrap("stage", se))
    before = pipe(small, wrap("stage", se), freeze("stage"))
    assert after.stage.se.fc1.weight.requires_grad
    assert not before.stage.se.fc1.weight.requires_grad


def test_the_original_stays_trainable(small):
    pipe(small, freeze("**"))
    assert all(p.requires_grad for p in small.parameters())


def test_tied_parameters_are_held_under_all_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    result = pipe(model, freeze("0"))
    assert not result[1].weight.requires_grad
    assert result[1].bias.requires_grad


def test_two_stars_are_the_root_too():
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(1))
    assert pipe(model, freeze("*")).scale.requires_grad
    assert not pipe(model, freeze("**")).scale.requires_grad
    assert pipe(model, freeze("**"), unfreeze("**")).scale.requires_grad


def test_an_operation_cannot_be_frozen(small):
    with pytest.raises(TargetError, match="has no parameters"):
        pipe(small, freeze("stage.0.add"))


def test_counts_of_resnet50():
    with torch.device("meta"):
        model = resnet50()
    frozen = pipe(model, swap_head(10), freeze("*"))
    for target, count, tensors in [
        ("fc", 20_490, 2),
        (at("layer4") | "fc", 14_985_226, 32),
        (at("layer3") | "layer4" | "fc", 22_083_594, None),
    ]:
        trainable = [p for p in pipe(frozen, unfreeze(target)).parameters() if p.requires_grad]
        assert sum(p.numel() for p in trainable) == count
        assert tensors in (None, len(trainable))


def test_unfreeze_without_a_target_is_everything(small):
    result = pipe(small, freeze("**"), unfreeze())
    assert all(p.requires_grad for p in result.parameters())
    assert unfreeze() == unfreeze("**")
    assert repr(unfreeze("**")) == "unfreeze()"
    assert parse(repr(unfreeze())) == unfreeze()


def test_all_but_the_head_by_the_names_of_other_libraries(small):
    for name in ("backbone", "encoder", "features"):
        with pytest.raises(TargetError) as caught:
            pipe(small, freeze(name))
        assert caught.value.write == "freeze(~head)"
    with pytest.raises(TargetError) as caught:
        pipe(nn.Sequential(nn.ModuleDict({"backbone": small})), freeze("backbone"))
    assert caught.value.write == 'freeze("0.backbone")'

"""Replace and remove: what fits, what is refused, what is undone."""

from __future__ import annotations

import pytest
import torch
from checks import run, same
from nets import ByData, ByMode
from torch import nn
from torchvision.models import resnet18, resnet50, swin_t

from torchgraft import inject, pipe, remove, replace, wrap
from torchgraft.blocks import se
from torchgraft.errors import OptionError, ShapeError, TargetError


def test_by_class_everywhere(small, images):
    result = pipe(small, replace(nn.ReLU, nn.SiLU))
    assert not [m for m in result.modules() if isinstance(m, nn.ReLU)]
    assert result.stage[0].relu is not result.stage[1].relu
    assert list(result.state_dict()) == list(small.state_dict())


def test_a_function_of_the_old_module_and_carried_weights(small, images):
    norm = replace(nn.BatchNorm2d, lambda old: nn.GroupNorm(2, old.num_features), keep_weights=True)
    with torch.no_grad():
        small.stage[0].bn.weight.fill_(3)
    result = pipe(small, norm)
    assert result.stage[0].bn.weight.eq(3).all()
    wider = pipe(small, replace("stage.0.conv1", lambda old: nn.Sequential(old, nn.Identity())))
    assert wider(images).equal(small(images))
    with pytest.raises(OptionError, match="did not return a module"):
        pipe(small, replace("fc", lambda old: None))


def test_lost_stride_and_other_widths_are_refused():
    model = resnet18()
    with pytest.raises(ShapeError) as caught:
        pipe(model, replace("layer2.0.conv1", nn.Conv2d(64, 128, 3, padding=1)))
    assert "n 128 28 28" in caught.value.summary
    assert "n 128 56 56" in caught.value.summary
    assert "layer2.0.bn1" in caught.value.found
    with pytest.raises(ShapeError) as caught:
        pipe(model, replace("layer1.0.conv1", nn.Conv2d(64, 32, 3, padding=1)))
    assert "n 32 56 56" in caught.value.summary
    with pytest.raises(ShapeError, match="does not take"):
        pipe(model, replace("layer1.0.conv1", nn.Conv2d(32, 64, 3, padding=1)))


def test_a_new_shape_on_purpose_and_at_the_output(images):
    stem = replace("conv1", nn.Conv2d(3, 64, 3, padding=1, bias=False), keep_shape=False)
    cifar = pipe(resnet18(), stem, replace("maxpool", nn.Identity, keep_shape=False))
    assert cifar.eval()(images).shape == (2, 1000)
    head = pipe(resnet18(), replace("fc", lambda old: nn.Linear(old.in_features, 10)))
    assert head.eval()(images).shape == (2, 10)


def test_the_whole_is_checked_when_a_shape_is_changed_on_purpose():
    with pytest.raises(ShapeError) as caught:
        pipe(resnet18(), replace("layer1", nn.Conv2d(64, 32, 1), keep_shape=False))
    assert "does not run on (n 3 224 224)" in caught.value.summary
    assert "in layer2.0.conv1, a Conv2d" in caught.value.found
    both = pipe(
        resnet18(),
        replace("layer1", nn.Conv2d(64, 32, 1), keep_shape=False),
        replace("layer2", nn.Conv2d(32, 128, 1, stride=2), keep_shape=False),
    )
    assert both.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_one_operation_by_node_name(small, images):
    result = pipe(small, replace("relu", nn.SiLU))  # the functional one behind the stem
    assert "relu" in result._modules
    assert torch.nn.functional.relu not in [n.target for n in result.graph.nodes]
    second = pipe(small, replace("stage.0.relu_1", nn.SiLU))
    assert [type(m).__name__ for m in second.stage[0].children()][-2:] == ["ReLU", "SiLU"]


def test_a_module_in_a_forward_that_cannot_be_followed(images):
    model = ByData()
    result = pipe(model, replace("conv", nn.Conv2d(3, 4, 3, padding=1), keep_shape=False))
    assert type(result) is ByData
    assert result(images).shape == (2, 5)


def test_remove_undoes_wrap_and_inject(small, images):
    for there, back in [
        (wrap("stage", se), remove("stage.se")),
        (wrap("stem", se), remove("stem_se")),
        (inject("stage.0.add", se), remove("stage.0.add_se")),
    ]:
        result = pipe(pipe(small, there), back)
        assert list(result.state_dict()) == list(small.state_dict())
        assert result(images).equal(small(images))


def test_remove_takes_the_moves_of_channels_with_it():
    model = swin_t()
    result = pipe(pipe(model, wrap("features.7", se)), remove("features.7.se"))
    assert not [n for n in result.features[7].graph.nodes if n.target is torch.movedim]


def test_remove_in_both_modes_and_by_node(small, images):
    model = ByMode()
    result = pipe(model, wrap("body", se), remove("body_se"))
    for mode in (True, False):
        assert same(run(result, images, mode=mode), run(model, images, mode=mode))
    result = pipe(small, remove("stage.0.relu"))
    assert "relu" not in result.stage[0]._modules
    result = pipe(small, remove("stage.0.relu_1"))
    assert [n.target for n in result.stage[0].graph.nodes if n.op == "call_module"].count("relu") == 1


def test_remove_refuses_what_changes_the_shape():
    with pytest.raises(ShapeError) as caught:
        pipe(resnet50(), remove("layer2"))
    assert "n 256 56 56" in caught.value.summary
    assert "layer3" in caught.value.found
    with pytest.raises(TargetError):
        pipe(resnet50(), remove("layer9"))

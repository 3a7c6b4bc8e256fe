"""What was changed by hand is never saved as something else: it is refused on load, or it is there."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as detector

from torchgraft import freeze, get_model, load, pipe, recipe_of, rename, save, swap_head, transfer
from torchgraft.errors import RecipeError, StoreError


class ReLU(nn.ReLU):
    def forward(self, x):
        return x.clamp(0, 0.1)


def forward_of_an_instance(model):
    model.layer1[0].forward = types.MethodType(lambda self, x: self.bn1(x) * 7, model.layer1[0])


def partial_forward(model):
    model.fc.forward = functools.partial(F.linear, weight=model.fc.weight * 2)


def layer_of_a_class_of_that_name(model):
    model.relu = ReLU(inplace=True)


def class_of_a_layer(model):
    model.relu.__class__ = ReLU


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize(
    "change", [forward_of_an_instance, partial_forward, layer_of_a_class_of_that_name, class_of_a_layer]
)
def test_code_that_was_exchanged(tmp_path, change, piped):
    model = get_model("resnet18")
    model = pipe(model, swap_head(3)) if piped else model
    change(model)
    with pytest.raises(StoreError) as caught:
        load(save(model, tmp_path / "m.safetensors"))
    assert "which the recipe does not tell of" in caught.value.found


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) * 2 - self.b(x)


def test_a_graph_that_was_edited_by_hand(tmp_path):
    model = pipe(Two(), rename({"a": "c"}))
    load(save(model, tmp_path / "m.safetensors"), base=Two)
    for node in model.graph.nodes:
        if 2 in node.args:
            node.args = (node.args[0], 5)
    model.recompile()
    with pytest.raises(StoreError, match="the base is not the one"):
        load(save(model, tmp_path / "m.safetensors"), base=Two)
    other = pipe(Two(), rename({"a": "c"}))
    [node] = [node for node in other.graph.nodes if node.name == "sub"]
    node.args = node.args[::-1]
    other.recompile()
    with pytest.raises(StoreError, match="the base is not the one"):
        load(save(other, tmp_path / "m.safetensors"), base=Two)


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.register_buffer("mask", torch.sin(torch.arange(300.0)).expand(30, 300).clone(), persistent=False)
        self._times = 1
        self.options = {"k": 1}

    def forward(self, x):
        return self.linear(x) * self.mask * self._times * self.options["k"] * getattr(self, "scale", 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "_times", 5),
        lambda model: model.options.update(k=5),
        lambda model: setattr(model, "scale", torch.tensor(3.0)),
    ],
    ids=["a private attribute", "an entry of a mapping", "a tensor more"],
)
def test_attributes_that_were_changed(tmp_path, change):
    model = Held()
    change(model)
    with pytest.raises(StoreError, match="the base is not the one"):
        load(save(model, tmp_path / "m.safetensors"), base=Held)


@pytest.mark.parametrize(
    "change",
    [lambda model: model.mask[5].fill_(0), lambda model: model.half().float()],
    ids=["an element", "rounding"],
)
def test_buffers_that_no_state_dict_holds(tmp_path, change):
    model = Held()
    change(model)
    again = load(save(model, tmp_path / "m.safetensors"), base=Held)
    assert again.mask.equal(model.mask)
    assert again(torch.ones(1)).equal(model(torch.ones(1)))


@pytest.mark.parametrize(
    "options", [{"bbox_reg_weights": (1.0, 1.0, 1.0, 1.0)}, {"rpn_pre_nms_top_n_test": 20}]
)
def test_options_that_live_in_plain_objects(options):
    build = functools.partial(detector, weights=None, weights_backbone=None)
    assert recipe_of(build()).base == f"torchvision/{detector.__name__}"
    assert not recipe_of(build(**options)).base


def test_steps_that_filled_tensors_out_of_memory_are_in_the_tensors(tmp_path):
    model = transfer(get_model("resnet18"), pipe(get_model("resnet18"), freeze("layer1")))
    again = load(save(pipe(model, swap_head(3)), tmp_path / "m.safetensors"))
    assert recipe_of(again).steps == (freeze("layer1"), swap_head(3))
    assert again.conv1.weight.equal(model.conv1.weight)
    with pytest.raises(RecipeError, match="step 2 cannot be written"):
        recipe_of(model)

"""Preprocessing: the transform that belongs to the weights, whatever was done to the model."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import transformers
from hugging import folder
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models

from torchgraft import adapt_input, drop_head, features, freeze, pipe, swap_head
from torchgraft.errors import ModelError, SourceError
from torchgraft.graph.history import History, Origin, set_history
from torchgraft.sources import registry
from torchgraft.sources.get import get_model, skeleton_of
from torchgraft.sources.preprocessing import preprocessing
from torchgraft.sources.registry import register_model


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", {})


def message(model) -> str:
    with pytest.raises(SourceError) as caught:
        preprocessing(model)
    return str(caught.value)


EDITS = [
    (),
    (swap_head(3),),
    (drop_head(),),
    (adapt_input(4), adapt_input(3)),
    (features(),),
    (freeze("*"), swap_head(2)),
]


@pytest.mark.parametrize("edits", EDITS, ids=repr)
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_model_of_timm_keeps_its_own(image, name, edits):
    model = timm.create_model(name)
    wanted = create_transform(**resolve_model_data_config(model), is_training=False)(image)
    assert preprocessing(pipe(model, *edits))(image).equal(wanted)


def test_other_channels_than_those_of_the_transform():
    """A transform with three means would fail on an image, far from its cause."""
    said = (
        "the transform of the weights gives other channels than the model takes\n"
        "  asked  preprocessing(model)\n"
        "  found  a model of 4 channels, and a transform with 3 means\n"
        "  write  a transform of your own with 4 means, or adapt_input(3)(model)"
    )
    model = models.resnet18()
    set_history(model, History(Origin("torchvision/resnet18", "IMAGENET1K_V1")))
    for one in (model, timm.create_model("test_vit")):
        assert message(pipe(one, adapt_input(4))) == said
    assert message(get_model("timm/test_vit", in_chans=4)) == said


def test_a_model_whose_channels_cannot_be_told_keeps_its_own(image):
    vit = timm.create_model("test_vit")
    vit.forward = None
    set_history(vit, History(Origin("timm/test_vit"), ("a step",)))
    assert preprocessing(vit)(image).shape[0] == 3


def test_two_models_of_timm_have_two(image):
    one, other = (
        preprocessing(get_model(f"timm/{name}"))(image) for name in ("test_vit", "test_efficientnet")
    )
    assert one.shape == other.shape
    assert not one.equal(other)


@pytest.mark.parametrize("edits", [(), (swap_head(3),), (drop_head(),)], ids=repr)
def test_a_model_of_torchvision_has_that_of_its_weights(image, edits):
    origin = Origin("torchvision/resnet18", "IMAGENET1K_V1")
    model = models.resnet18()
    set_history(model, History(origin))
    wanted = models.ResNet18_Weights.IMAGENET1K_V1.transforms()(image)
    assert preprocessing(pipe(model, *edits))(image).equal(wanted)


def test_weights_of_one_model_differ_in_it(image):
    sizes = {
        label: preprocessing(skeleton_of(Origin("torchvision/vit_b_16", label)))(image).shape[-1]
        for label in ("IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1")
    }
    assert sizes == {"IMAGENET1K_V1": 224, "IMAGENET1K_SWAG_E2E_V1": 384}


def test_a_file_of_torchvision_is_known_by_its_name(image):
    named = models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    assert preprocessing(skeleton_of(Origin("torchvision/resnet18", f"/held/{named}")))(image).shape == (
        3,
        224,
        224,
    )


def test_a_builder_of_the_user_may_have_one():
    def halves(picture):
        return picture / 2

    register_model("halved", preprocessing=halves)(lambda: nn.Sequential(nn.Linear(3, 2)))
    assert preprocessing(pipe(get_model("halved"), swap_head(4))) is halves


def test_a_folder_of_hugging_face_may_have_one(tmp_path, image):
    held = folder(tmp_path)
    model = get_model(f"hf/{held}")
    assert message(model) == (
        f"no preprocessing belongs to this model of hf/{held}\n"
        "  asked  preprocessing(<a ResNetForImageClassification>)\n"
        f"  found  no preprocessor_config.json in '{held}'\n"
        f"  write  that file in '{held}', as an image processor's save_pretrained writes it, "
        "or a transform of your own"
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.25] * 3)
    processor.save_pretrained(held)
    wanted = processor(images=image, return_tensors="pt")["pixel_values"][0]
    made = preprocessing(pipe(model, swap_head(4)))(image)
    assert made.shape == (3, 32, 32)
    torch.testing.assert_close(made, torch.as_tensor(wanted), atol=0.05, rtol=0)
    model.save_pretrained(held)
    assert "a model of 4 channels" in message(pipe(model, adapt_input(4)))
    by_hand = transformers.ResNetForImageClassification.from_pretrained(held)
    assert preprocessing(by_hand)(image).equal(made)


def test_what_has_none_says_what_to_write():
    assert message(models.resnet18()) == (
        "nothing is known of the weights of this model, so neither is their preprocessing\n"
        "  asked  preprocessing(<a ResNet>)\n"
        "  found  a ResNet that get_model did not make\n"
        '  write  get_model("resnet50", weights="IMAGENET1K_V2"), which knows them'
    )
    assert message(get_model("squeezenet1_1")) == (
        "no preprocessing belongs to this model of torchvision/squeezenet1_1\n"
        "  asked  preprocessing(<a SqueezeNet>)\n"
        "  found  random weights\n"
        '  write  get_model("torchvision/squeezenet1_1", weights=True), or a transform of your own'
    )
    own = skeleton_of(Origin("torchvision/squeezenet1_1", "/held/own.pth"))
    assert 'found  weights="/held/own.pth"' in message(own)
    register_model("bare")(lambda: nn.Linear(3, 2))
    assert message(get_model("bare")) == (
        "no preprocessing belongs to this model of registered/bare\n"
        "  asked  preprocessing(<a Linear>)\n"
        "  found  a builder that was registered without one\n"
        "  write  @register_model(..., preprocessing=<a function from an image to a tensor>)"
    )
    with pytest.raises(ModelError):
        preprocessing("resnet18")

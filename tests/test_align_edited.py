"""Aligning a model with what became of it, and with models that are not it."""

from __future__ import annotations

import functools

import pytest
import torch
from randomised import difference, images, output, randomise
from renamed import renamed
from torch import nn
from torchvision import models

from torchgraft import (
    adapt_input,
    compose,
    dilate,
    drop_head,
    drop_path,
    features,
    fpn,
    freeze,
    inject,
    op,
    pipe,
    remove,
    replace,
    swap_head,
    wrap,
)
from torchgraft.alignment.align import align
from torchgraft.blocks import eca, lora, se

MODES = ("behaviour", "structure")
both = pytest.mark.parametrize("evidence", MODES)
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 64, 64)


def drawn(model, seed=1, shape=SHAPE):
    return randomise(model, seed, shape)


@functools.cache
def resnet(depth=18):
    return drawn(models.get_model(f"resnet{depth}", num_classes=10))


def not_itself(found):
    """Name entries that are not from the tensor of the same name."""
    return [(entry.target, entry.keys) for entry in found.entries if entry.keys != (entry.target,)]


def lost(found, *, but=()):
    """Name tensors that both have, in one shape, and that no entry fills."""
    filled = {entry.target for entry in found.entries}
    return [
        key
        for key, shape in found.target.items()
        if found.source.get(key) == shape and key not in filled and not key.startswith(but)
    ]


def tables(found):
    """Say where each tensor of the target stands."""
    return {
        "missing": set(found.missing),
        "mismatched": {one.target for one in found.mismatched},
        "ambiguous": {one.target for one in found.ambiguous},
        "unused": set(found.unused),
    }


EDITS = {
    "gates behind stages": (
        lambda: compose(wrap("layer4", se), wrap("layer2", se)),
        ("layer2.se", "layer4.se"),
    ),
    "gates in all blocks": (lambda: wrap("layer3.*.bn2", se), ("layer3.0.bn2_se", "layer3.1.bn2_se")),
    "gates that are not neutral": (
        lambda: wrap("layer3.*", se(neutral=False)),
        ("layer3.0.se", "layer3.1.se"),
    ),
    "attention over channels": (lambda: inject("layer1", eca), ("layer1_eca",)),
    "another activation": (lambda: replace(nn.ReLU, nn.SiLU), ()),
    "no activation": (lambda: remove("layer2.0.relu"), ()),
    "larger maps": (lambda: dilate(8), ()),
    "frozen": (lambda: freeze("**"), ()),
    "dropped paths": (lambda: drop_path(0.1), ()),
    "low rank": (lambda: wrap("fc", lora(2)), ("fc_lora", "fc.lora")),
}


@both
@pytest.mark.parametrize("edit", EDITS)
def test_what_an_edit_left_alone_comes_from_itself(edit, evidence):
    make, added = EDITS[edit]
    found = align(resnet(), pipe(resnet(), make(), seed=0), example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert not lost(found)
    assert all(key.startswith(added) for key in found.missing)
    assert bool(found.missing) is bool(added)
    assert not found.mismatched
    assert not found.ambiguous
    assert not found.unused


@both
def test_another_head_differs_in_shape(evidence):
    found = align(resnet(), pipe(resnet(), swap_head(7)), example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert tables(found) == {
        "missing": set(), "mismatched": {"fc.weight", "fc.bias"}, "ambiguous": set(), "unused": set(),
    }  # fmt: skip
    alike = align(resnet(), pipe(resnet(), drop_head()), example=images(SHAPE), evidence=evidence)
    assert tables(alike)["unused"] == {"fc.weight", "fc.bias"}
    assert not not_itself(alike)
    assert not lost(alike)


@both
@pytest.mark.parametrize("edit", [features(strides=(8, 16, 32)), fpn(32)], ids=repr)
def test_what_is_carried_out_comes_from_itself(edit, evidence):
    found = align(resnet(), pipe(resnet(), edit, seed=0), example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert not lost(found)
    assert all(key.startswith("fpn.") for key in found.missing)
    assert {one.source for one in found.mismatched} <= {"fc.weight", "fc.bias"}


@both
@pytest.mark.parametrize("channels", [1, 5])
def test_a_stem_for_other_images_differs_in_shape(channels, evidence):
    found = align(resnet(), pipe(resnet(), adapt_input(channels)), evidence=evidence)
    assert not not_itself(found)
    assert tables(found)["mismatched"] == {"conv1.weight"}
    assert not lost(found)
    assert {entry.evidence for entry in found.entries} == {"structure"}


@both
def test_layers_of_another_kind_are_new(evidence):
    """A group norm is no batch norm, whatever the names and the shapes of its tensors."""
    swapped = pipe(resnet(), replace(nn.BatchNorm2d, lambda old: nn.GroupNorm(8, old.num_features)), seed=0)
    found = align(resnet(), swapped, example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert {key for key in found.missing if "bn" not in key and "downsample.1" not in key} == set()
    assert len(found.entries) == 22


CHANNELS = {"layer1.0.conv1": 64, "layer2.1.conv2": 128, "layer1": 64}


@both
@pytest.mark.parametrize("neutral", [True, False])
@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("place", CHANNELS)
def test_an_inserted_convolution_is_new(place, where, neutral, evidence):
    """It sees what its neighbour sees, in the same shape; where it is neutral, so do all that follow."""
    torch.manual_seed(0)
    new = nn.Conv2d(CHANNELS[place], CHANNELS[place], 3, padding=1, bias=False)
    if neutral:
        nn.init.dirac_(new.weight)
    edited = pipe(resnet(), inject(place, new, where=where, name="added"))
    found = align(resnet(), edited, example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert [key.rsplit(".", 2)[-2:] for key in found.missing] == [["added", "weight"]]
    assert not lost(found)


@both
def test_layers_put_into_a_model_without_weights_are_new(evidence):
    """Its norms change nothing yet, and are no less what they are."""
    torch.manual_seed(0)
    added = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
    fresh = models.resnet18(num_classes=10).eval()
    found = align(
        resnet(), pipe(fresh, inject("layer1", added, name="added")), example=images(SHAPE), evidence=evidence
    )
    assert not not_itself(found)
    assert not lost(found)
    assert {key.split(".")[-3] for key in found.missing} == {"added"}


@both
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("googlenet", marks=pytest.mark.slow),
        pytest.param("inception_v3", marks=pytest.mark.slow),
    ],
)
def test_all_modules_renamed_and_registered_in_another_order(name, evidence):
    shape = (2, 3, 96, 96) if name == "inception_v3" else SHAPE
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = drawn(models.get_model(name, num_classes=10, **options), 1, shape)
    other, olds = renamed(model)
    drawn(other, 2, shape)
    found = align(model, other, example=images(shape), evidence=evidence)
    assert {entry.target: entry.keys for entry in found.entries} == {new: (old,) for new, old in olds.items()}
    other.load_state_dict(found.apply(model.state_dict()))
    assert difference(output(model, images(shape)), output(other, images(shape))) < 1e-4


class Twins(nn.Module):
    """Two branches that are alike in everything, added."""

    def __init__(self, *names, turned=False):
        super().__init__()
        self.names = names
        self.stem = nn.Conv2d(3, 8, 3)
        for name in reversed(names) if turned else names:
            setattr(
                self,
                name,
                nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)),
            )
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        one, other = (getattr(self, name)(x) for name in self.names)
        return self.fc((one + other).relu().mean((2, 3)))


@both
def test_twins_in_another_order_are_told_by_their_names(evidence):
    found = align(
        drawn(Twins("a", "b")),
        drawn(Twins("a", "b", turned=True), 2),
        example=images(SHAPE),
        evidence=evidence,
    )
    assert not not_itself(found)
    assert not lost(found)
    assert found.of("a.0.weight").rule == "names"
    assert found.of("stem.weight").rule == "place"


@both
def test_twins_without_telling_names_are_ambiguous_in_all_their_layers(evidence):
    """What follows a twin sees what was taken for it: that proves nothing."""
    found = align(
        drawn(Twins("a", "b")), drawn(Twins("left", "right"), 2), example=images(SHAPE), evidence=evidence
    )
    assert {entry.target for entry in found.entries} == {"stem.weight", "stem.bias", "fc.weight", "fc.bias"}
    assert {one.target: one.candidates for one in found.ambiguous} == {
        f"{side}.{inside}": (f"a.{inside}", f"b.{inside}")
        for side in ("left", "right")
        for inside in (key[2:] for key in found.source if key.startswith("a."))
    }
    assert not found.missing
    assert not found.unused


def of_stages(less, more):
    """Return what the deeper model has more: blocks at the ends of its stages."""
    return {key for key in more.state_dict() if key not in less.state_dict()}


@both
@pytest.mark.parametrize(("small", "large"), [(18, 34), pytest.param(50, 101, marks=pytest.mark.slow)])
def test_blocks_that_a_deeper_model_has_more_are_new(small, large, evidence):
    less, more = resnet(small), resnet(large)
    found = align(less, more, example=images(SHAPE), evidence=evidence)
    added = of_stages(less, more)
    assert not not_itself(found)
    assert tables(found) == {"missing": added, "mismatched": set(), "ambiguous": set(), "unused": set()}
    back = align(more, less, example=images(SHAPE), evidence=evidence)
    assert not not_itself(back)
    assert tables(back) == {"missing": set(), "mismatched": set(), "ambiguous": set(), "unused": added}


@both
def test_added_blocks_start_from_the_last_of_their_like_where_that_is_asked_for(evidence):
    found = align(resnet(18), resnet(34), example=images(SHAPE), evidence=evidence, policy="same_shape")
    assert not found.missing
    added = of_stages(resnet(18), resnet(34))
    for entry in found.entries:
        stage, _, inside = entry.target.partition(".")
        if entry.target in added:
            assert entry.rule == "shape"
            assert entry.keys == (f"{stage}.1.{inside.partition('.')[2]}",)
        else:
            assert entry.keys == (entry.target,)
            assert entry.rule != "shape"


@pytest.mark.slow
@both
def test_other_widths_are_mismatched_and_not_cropped(evidence):
    wide = drawn(models.wide_resnet50_2(num_classes=10), 2)
    found = align(resnet(50), wide, example=images(SHAPE), evidence=evidence)
    assert not not_itself(found)
    assert not lost(found)
    assert not found.missing
    assert {one.target for one in found.mismatched} == {
        key for key, shape in found.target.items() if found.source[key] != shape
    }
    assert all((one.target, one.asked) == (one.source, found.target[one.source]) for one in found.mismatched)


def test_an_operation_that_became_a_module_changes_nothing():
    flat = pipe(resnet(), replace(op("flatten"), nn.Flatten))
    assert not not_itself(align(resnet(), flat, example=images(SHAPE)))


def small_vit():
    return models.VisionTransformer(64, 16, 2, 2, 48, 96)


def timm(name, **options):
    import timm as library

    return library.create_model(name, **options)


def regnet(kind):
    with torch.device("cpu"):  # it computes its widths with tensors
        return models.get_model(f"regnet_{kind}_400mf")


UNRELATED = {
    "resnet, vit": (models.resnet50, small_vit),
    "resnet, densenet": (models.resnet50, models.densenet121),
    "resnet, vgg": (models.resnet50, models.vgg11_bn),
    "resnet, efficientnet": (models.resnet50, models.efficientnet_b0),
    "resnet, googlenet": (models.resnet50, lambda: models.googlenet(init_weights=False)),
    "resnet, resnet of another block": (models.resnet18, models.resnet50),
    "resnet, mobilenet": (models.resnet34, models.mobilenet_v3_small),
    "swin, convnext": (models.swin_t, models.convnext_tiny),
    "swin, vit": (models.swin_t, small_vit),
    "mobilenet 2, 3": (models.mobilenet_v2, models.mobilenet_v3_large),
    "mobilenet, efficientnet": (models.mobilenet_v2, models.efficientnet_b0),
    "mobilenet, mnasnet": (models.mobilenet_v2, models.mnasnet1_0),
    "shufflenet, mobilenet": (models.shufflenet_v2_x1_0, models.mobilenet_v2),
    "regnet, resnet": (lambda: regnet("y"), models.resnet18),
    "squeezenet, googlenet": (models.squeezenet1_1, lambda: models.googlenet(init_weights=False)),
    "vgg, alexnet": (models.vgg11, models.alexnet),
    "densenet, regnet": (models.densenet121, lambda: regnet("x")),
    "convnext, resnet": (models.convnext_tiny, models.resnet50),
    "vit, mixer": (
        lambda: timm("vit_tiny_patch16_224", img_size=64),
        lambda: timm("mixer_s16_224", img_size=64),
    ),
    "vit, convmixer": (small_vit, lambda: timm("convmixer_768_32")),
    "levit, resnet": (lambda: timm("levit_128s", img_size=64), models.resnet18),
}


@pytest.mark.parametrize("pair", UNRELATED)
def test_models_that_are_not_each_other_have_no_match(pair):
    with torch.device("meta"):
        source, target = (make().to("meta") for make in UNRELATED[pair])
    for one, other in ((source, target), (target, source)):
        found = align(one, other, example=torch.zeros(SHAPE, device="meta"), evidence="structure")
        assert found.entries == ()
        assert found.mismatched == ()
        assert found.coverage == 0
        assert set(found.missing) == set(other.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("pair", UNRELATED)
def test_nor_have_they_where_both_run(pair):
    """The stems of many are alike and see one image."""
    source, target = (drawn(make(), seed) for seed, make in enumerate(UNRELATED[pair]))
    found = align(source, target, example=images(SHAPE))
    assert found.entries == ()
    assert found.mismatched == ()

"""Backbones: one set of words for the models of all sources."""

from __future__ import annotations

import pickle

import pytest
import torch
from hugging import folder
from safetensors.torch import save_file
from torch import nn

from torchgraft import adapt_input, drop_head, drop_path, feature_info, features, pipe, set_dropout, swap_head
from torchgraft.errors import GraftError, OptionError, SourceError
from torchgraft.graph.history import history_of
from torchgraft.recipe import parse
from torchgraft.sources import registry
from torchgraft.sources.backbone import BackboneSpec, backbone, feature_backbone
from torchgraft.sources.get import get_model
from torchgraft.sources.registry import register_model

NAMES = ["torchvision/shufflenet_v2_x0_5", "timm/test_resnet", "timm/test_vit", "registered/small", "hf"]


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", {})

    @register_model("small")
    def small(width: int = 8) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
        )


@pytest.fixture(params=NAMES)
def name(request, tmp_path):
    return f"hf/{folder(tmp_path)}" if request.param == "hf" else request.param


def out(model: nn.Module, channels: int = 3) -> torch.Tensor:
    return only(model.eval()(torch.randn(2, channels, 160, 160)))


def only(made: object) -> torch.Tensor:
    """The one tensor of an output: those of Hugging Face are mappings."""
    return made if isinstance(made, torch.Tensor) else made["logits"]


def message(call) -> str:
    with pytest.raises(OptionError) as caught:
        call()
    return str(caught.value)


def test_pooled_features_of_any_source(name):
    model = backbone(name, in_channels=4)
    assert out(model, 4).flatten(1).ndim == 2
    steps = history_of(model).steps
    assert steps == ("drop_head()", "adapt_input(4)")


def test_classes_of_any_source(name):
    assert out(backbone(BackboneSpec(name, num_classes=6))).shape == (2, 6)


def test_the_history_builds_it_again(name):
    model = backbone(name, in_channels=2, num_classes=4)
    history = history_of(model)
    again = pipe(get_model(history.origin.base, **dict(history.origin.options)), *map(parse, history.steps))
    again.load_state_dict(model.state_dict())
    given = torch.randn(1, 2, 160, 160)
    with torch.no_grad():
        assert only(again.eval()(given)).equal(only(model.eval()(given)))


def test_each_field_is_a_transform():
    model = backbone("timm/test_vit", drop_rate=0.25, drop_path_rate=0.1, options={"img_size": 64})
    history = history_of(model)
    assert tuple(map(parse, history.steps)) == (drop_head(), drop_path(0.1))
    assert history.origin.options == (("drop_rate", 0.25), ("img_size", 64))
    bare = backbone("mobilenet_v2", drop_rate=0.25)
    assert tuple(map(parse, history_of(bare).steps)) == (drop_head(), set_dropout(0.25))
    own = backbone("small", num_classes=7, in_channels=1)
    assert tuple(map(parse, history_of(own).steps)) == (swap_head(7), adapt_input(1))


def test_nothing_to_do_is_the_model_itself():
    model = backbone("timm/test_resnet", num_classes=9)
    assert type(model).__module__.startswith("timm.")
    assert history_of(model).origin.options == (("num_classes", 9),)


def test_pretrained_weights_keep_their_head_where_the_classes_are_theirs(tmp_path):
    state = get_model("timm/test_resnet", num_classes=6).state_dict()
    save_file(state, tmp_path / "own.safetensors")
    path = str(tmp_path / "own.safetensors")
    with pytest.raises(SourceError, match="another model"):
        backbone("timm/test_resnet", weights=path, num_classes=0)
    assert backbone("timm/test_resnet", weights=path, options={"num_classes": 6})
    assert backbone("timm/test_resnet", weights=path, num_classes=6).fc.weight.equal(state["fc.weight"])


def test_a_spec_is_a_value():
    one = BackboneSpec("resnet18", num_classes=3, options=(("width_per_group", 32),))
    assert one == BackboneSpec("resnet18", options=(("width_per_group", 32),), num_classes=3)
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    assert repr(one) == 'BackboneSpec("resnet18", num_classes=3, options=(("width_per_group", 32),))'
    assert eval(repr(one)) == one
    assert backbone(BackboneSpec("small"), num_classes=2)[3].out_features == 2


def test_wrong_fields():
    assert message(lambda: backbone("small", num_clases=3)) == (
        "BackboneSpec: got an unexpected keyword argument 'num_clases'\n"
        '  asked  backbone("small", num_clases=3)\n'
        "  found  BackboneSpec(name, *, weights=None, num_classes=0, drop_rate=0.0, drop_path_rate=0.0, "
        "in_channels=3, options=())\n"
        "  near   num_classes, in_channels\n"
        '  write  backbone("small", num_classes=3)'
    )
    with pytest.raises(OptionError) as caught:
        backbone("small", width=3)
    assert caught.value.write == 'backbone("small", options={"width": 3})'
    assert message(lambda: backbone("small", num_classes=-1)) == (
        "num_classes is a whole number from 0\n"
        '  asked  backbone("small", num_classes=-1)\n'
        "  found  num_classes=-1\n"
        '  write  backbone("small", num_classes=0)'
    )
    assert "in_channels is a whole number from 1" in message(lambda: BackboneSpec("small", in_channels=0))
    assert message(lambda: BackboneSpec("small", options={"width": 3})) == (
        "the options of a BackboneSpec are pairs of name and value\n"
        '  asked  BackboneSpec("small", options={"width": 3})\n'
        '  found  options={"width": 3}\n'
        '  write  options=(("img_size", 128),), or backbone(..., options={"img_size": 128})'
    )
    assert message(lambda: backbone(3)) == (
        "a backbone is described by a BackboneSpec or by a name\n"
        "  asked  backbone(3)\n"
        "  found  an int\n"
        '  write  backbone("resnet50", num_classes=0)'
    )


@pytest.mark.parametrize(("given", "says"), [(True, "weights=True"), (False, "weights=None")])
def test_weights_by_the_word_of_other_libraries(given, says):
    for call in (backbone, BackboneSpec):
        with pytest.raises(OptionError) as caught:
            call("timm/test_resnet", pretrained=given)
        assert caught.value.write == f'{call.__name__}("timm/test_resnet", {says})'
    with pytest.raises(OptionError) as caught:
        get_model("resnet18", pretrained=given)
    assert caught.value.write == f'get_model("resnet18", {says})'


def test_what_the_builder_calls_a_field_counts_as_it():
    assert backbone("timm/test_resnet", options={"in_chans": 4}).conv1[0].weight.shape[1] == 4
    assert backbone("timm/test_resnet", options={"num_classes": 7})(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert feature_backbone("timm/test_resnet", in_chans=1).conv1[0].weight.shape[1] == 1
    assert backbone("timm/test_resnet", in_channels=4, options={"in_chans": 4}).conv1[0].weight.shape[1] == 4
    with pytest.raises(OptionError, match="two different values are given for num_classes"):
        backbone("timm/test_resnet", num_classes=5, options={"num_classes": 7})


def test_rates_reach_builders_that_take_them():
    assert backbone("timm/test_resnet", drop_rate=0.1).drop_rate == 0.1
    vit = backbone("timm/test_vit", drop_rate=0.1, num_classes=3)
    assert [m.p for m in vit.modules() if isinstance(m, nn.Dropout) and m.p] == [0.1]


def test_rates_out_of_range():
    for field in ("drop_rate", "drop_path_rate"):
        with pytest.raises(GraftError):
            backbone("timm/test_vit", **{field: 2.0})


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet", "timm/test_convnext"])
def test_maps_by_stride(name):
    model = feature_backbone(name, (8, 32), in_channels=2)
    maps = model.eval()(torch.randn(1, 2, 64, 64))
    assert list(maps) == ["8", "32"]
    assert [m.shape[-1] for m in maps.values()] == [8, 2]
    told = feature_info(model)
    assert [(info.name, info.channels, info.stride) for info in told] == [
        (key, held.shape[1], int(key)) for key, held in maps.items()
    ]
    assert tuple(map(parse, history_of(model).steps)) == (adapt_input(2), features(strides=(8, 32)))


def test_options_reach_the_builder_of_maps():
    model = feature_backbone("timm/test_resnet", (16,), drop_rate=0.5)
    assert history_of(model).origin.options == (("drop_rate", 0.5),)
    with pytest.raises(OptionError, match="drop_rat"):
        feature_backbone("timm/test_resnet", drop_rat=0.5)


def test_a_model_without_an_image_says_so_in_the_step():
    register_model("words")(lambda: nn.Embedding(4, 3))
    with pytest.raises(GraftError):
        backbone("words", in_channels=4, num_classes=2)

"""Models by name: what is found, what is built, what is refused, and what is kept of it."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import torchvision
from hugging import folder, small_config
from torch import nn

from torchgraft import pipe, swap_head
from torchgraft.errors import GraftError, OptionError, SourceError
from torchgraft.graph.history import Origin, history_of
from torchgraft.recipe.recipe import Recipe
from torchgraft.sources import find, timm
from torchgraft.sources.find import resolve
from torchgraft.sources.get import get_model, list_models, skeleton_of
from torchgraft.sources.hugging_face import HUGGING_FACE
from torchgraft.sources.options import Unwritten
from torchgraft.sources.timm import TIMM
from torchgraft.sources.torchvision import TORCHVISION
from torchgraft.sources.tracing import followed


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def without_extras(monkeypatch):
    monkeypatch.setattr(timm.importlib.util, "find_spec", lambda name: None)


def text(call) -> str:
    with pytest.raises(GraftError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def shapes(model) -> dict:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


# what is built


def test_a_model_of_torchvision_is_the_one_its_builder_makes():
    torch.manual_seed(3)
    model = get_model("resnet18", num_classes=7)
    torch.manual_seed(3)
    same = torchvision.models.resnet18(num_classes=7)
    assert type(model) is type(same)
    assert all(
        a.equal(b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True)
    )
    assert history_of(model).origin == Origin("torchvision/resnet18", None, (("num_classes", 7),))
    assert history_of(model).steps == ()
    assert history_of(pipe(model, swap_head(3))).origin == history_of(model).origin


def test_a_backbone_inside_a_model_starts_at_random_too():
    model = get_model("torchvision/lraspp_mobilenet_v3_large")
    assert type(model).__name__ == "LRASPP"
    assert type(get_model("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3)).__name__ == "FasterRCNN"


def test_a_builder_that_would_warn_of_its_own_default_does_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert skeleton_of(Origin("torchvision/googlenet")).conv1.conv.weight.is_meta
        assert skeleton_of(Origin("torchvision/inception_v3")).Conv2d_1a_3x3.conv.weight.is_meta


def test_a_model_of_timm_with_and_without_a_tag():
    plain = get_model("timm/resnet10t", num_classes=4)
    assert plain.fc.out_features == 4
    assert history_of(plain).origin.base == "timm/resnet10t"
    tagged = get_model("resnet10t.c3_in1k")
    assert history_of(tagged).origin.base == "timm/resnet10t.c3_in1k"
    assert tagged.pretrained_cfg["tag"] == "c3_in1k"


def test_a_name_of_both_is_torchvisions():
    assert resolve("resnet50").base == "torchvision/resnet50"
    assert resolve("timm/resnet50").base == "timm/resnet50"
    assert resolve("resnet50d").base == "timm/resnet50d"
    assert resolve("resnet50") == resolve("torchvision/resnet50")


def test_lists_are_tuples_from_the_first_build_on():
    dilated = get_model("resnet50", replace_stride_with_dilation=[False, False, True])
    assert history_of(dilated).origin.options == (("replace_stride_with_dilation", (False, False, True)),)
    assert dilated.layer4[1].conv2.dilation == (2, 2)
    again = skeleton_of(history_of(dilated).origin)
    assert again.layer4[1].conv2.dilation == (2, 2)


def grouped(width):
    return nn.GroupNorm(2, width)


def test_code_as_an_option_works_and_cannot_be_set_up_again():
    model = get_model("resnet18", norm_layer=grouped)
    assert isinstance(model.bn1, nn.GroupNorm)
    origin = history_of(model).origin
    ((name, value),) = origin.options
    assert name == "norm_layer"
    assert isinstance(value, Unwritten)
    assert hash(origin) == hash(pickle.loads(pickle.dumps(origin)))
    copied = pickle.loads(pickle.dumps(model))
    assert history_of(copy.deepcopy(copied)).origin == origin
    with pytest.raises(SourceError) as caught:
        skeleton_of(origin)
    assert caught.value.summary == (
        "option 'norm_layer' of torchvision/resnet18 cannot be set up again: it is no plain value"
    )
    assert "register_model" in caught.value.write
    with pytest.raises(GraftError, match="norm_layer"):
        Recipe(origin.base, options=dict(origin.options))


def test_a_skeleton_has_no_values_and_the_origin():
    origin = Origin("torchvision/vgg16", "IMAGENET1K_V1", (("num_classes", 5),), "ab" * 32)
    before = torch.random.get_rng_state()
    model = skeleton_of(origin)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.classifier[6].out_features == 5
    assert history_of(model).origin == origin
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "name", ["resnet18", "timm/test_vit", "swin_t", "quantized_resnet18", "raft_small", "r3d_18"]
)
def test_a_skeleton_is_what_is_built(name):
    assert shapes(skeleton_of(Origin(resolve(name).base))) == shapes(get_model(name))


# Hugging Face


def test_a_folder_is_a_model_and_the_origin_does_not_need_it(tmp_path):
    home = folder(tmp_path / "net")
    model = get_model(f"hf/{home}")
    assert type(model).__name__ == "ResNetForImageClassification"
    assert model.config.num_labels == 3
    origin = history_of(model).origin
    assert origin.base == f"hf/{home}"
    assert [key for key, _ in origin.options] == ["config"]
    (home / "config.json").unlink()
    assert shapes(skeleton_of(origin)) == shapes(model)
    assert Recipe(origin.base, options=dict(origin.options)).options == origin.options


def test_a_relative_folder_and_options_over_its_config(tmp_path, monkeypatch):
    folder(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    for name in ("hf/net", "hf/./net"):
        model = get_model(name, num_labels=9, depths=[2, 1])
        assert model.config.num_labels == 9
        assert len(model.resnet.encoder.stages[0].layers) == 2
        assert shapes(skeleton_of(history_of(model).origin)) == shapes(model)


@pytest.mark.parametrize("given", [lambda c: c, lambda c: c.to_dict(), lambda c: c.to_json_string()])
def test_a_config_in_three_forms_gives_one_origin(given):
    config = small_config(num_labels=4)
    config.architectures = ["ResNetForImageClassification"]
    model = get_model("hf/mine", config=given(config))
    assert model.config.num_labels == 4
    ((_, kept),) = history_of(model).origin.options
    assert json.loads(kept)["hidden_sizes"] == [8, 16]
    assert kept == dict(history_of(get_model("hf/mine", config=config)).origin.options)["config"]


def test_the_class_is_the_one_the_config_names(tmp_path):
    names = {"ResNetBackbone": "ResNetBackbone", "ResNetModel": "ResNetModel", "": "ResNetModel"}
    for number, (asked, found) in enumerate(names.items()):
        home = folder(tmp_path / str(number), architecture=asked)
        assert type(get_model(f"hf/{home}")).__name__ == found


def test_an_id_is_taken_from_the_cache(tmp_path, monkeypatch):
    import huggingface_hub

    home = folder(tmp_path / "net")
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file: str(home / file) if name == "some/net" else None,
    )
    assert type(get_model("hf/some/net")).__name__ == "ResNetForImageClassification"
    assert text(lambda: get_model("hf/some/other")) == (
        'SourceError: no config of "some/other" is on this machine\n'
        '  asked  get_model("hf/some/other")\n'
        "  found  no 'some/other/config.json', and none in the cache\n"
        '  write  get_model("hf/<a folder with config.json>")'
    )


def test_a_skeleton_reads_a_folder_only_if_it_may(tmp_path):
    home = folder(tmp_path / "net")
    assert text(lambda: skeleton_of(Origin(f"hf/{home}"))) == (
        f"SourceError: the origin of hf/{home} does not hold its config\n"
        f'  asked  get_model("hf/{home}")\n'
        "  found  no options\n"
        f'  write  get_model("hf/{home}"), which keeps it'
    )
    assert shapes(skeleton_of(Origin(f"hf/{home}"), files=True)) == shapes(get_model(f"hf/{home}"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is no JSON object"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("[1]", "a list"),
        (3, "an int"),
        ({"model_type": "resnt"}, "model_type='resnt'"),
        ({}, "model_type=None"),
        ({"model_type": ["resnet"]}, "model_type=['resnet']"),
        ({"model_type": "resnet", "architectures": ["os"]}, "architectures=['os']"),
        ({"model_type": "resnet", "architectures": ["PreTrainedModel"]}, "PreTrainedModel"),
        ({"model_type": "resnet", "architectures": ["ResNetNet"]}, "architectures=['ResNetNet']"),
        ({"model_type": "vit", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "vit", "attn_implementation": "some/kernel"}, "something to be fetched"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:some/net"}, "something to be fetched"),
        ({"model_type": "timm_wrapper", "architecture": " HF-hub:some/net"}, "something to be fetched"),
        ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "/etc/passwd"}}, "to be fetched"),
        ({"model_type": "detr", "backbone_config": [{"backbone": "local-dir:/etc"}]}, "to be fetched"),
        ({"model_type": "clip", "attn_implementation": {"vision_config": "some/kernel"}}, "to be fetched"),
    ],
)
def test_a_config_that_is_none(config, said):
    with pytest.raises(SourceError) as caught:
        get_model("hf/mine", config=config)
    assert said in str(caught.value)
    if not isinstance(config, int):
        kept = config if isinstance(config, str) else json.dumps(config)
        with pytest.raises(SourceError):
            skeleton_of(Origin("hf/mine", options=(("config", kept),)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {
                "model_type": "distilbert",
                "sinusoidal_pos_embds": True,
                "max_position_embeddings": 400_000,
            },
            "max_position_embeddings=400,000, 65,536 at most",
        ),
        ({"model_type": "vit", "hidden_size": 70_000}, "hidden_size=70,000, 65,536 at most"),
        ({"model_type": "resnet", "depths": (1, 10**9)}, "depths=1,000,000,000"),
        ({"model_type": "bert", "vocab_size": 2_000_000}, "vocab_size=2,000,000, 1,000,000 at most"),
        (
            {"model_type": "clip", "vision_config": {"model_type": "clip_vision_model", "image_size": 10**6}},
            "vision_config.image_size=1,000,000",
        ),
    ],
)
def test_a_config_of_unknown_origin_has_usual_sizes(config, said):
    start = time.monotonic()
    kind = {"model_type": config.pop("model_type")}
    for first, others in (({**kind, **config}, {}), (kind, config)):
        with pytest.raises(SourceError, match="more than there is reason for") as caught:
            skeleton_of(Origin("hf/mine", options=(("config", json.dumps(first)), *others.items())))
        assert said in str(caught.value)
    assert time.monotonic() - start < 5, "a number was made into a list"


def test_a_large_vocabulary_is_usual():
    config = {"model_type": "bert", "vocab_size": 250_002, "num_hidden_layers": 1}
    assert skeleton_of(Origin("hf/mine", options=(("config", json.dumps(config)),)))


def test_a_config_that_is_too_large(tmp_path):
    home = folder(tmp_path / "net")
    with (home / "config.json").open("ab") as file:
        file.write(b" " * 10_000_001)
    with pytest.raises(SourceError, match="bytes"):
        get_model(f"hf/{home}")


def test_code_of_others_is_never_run(tmp_path):
    home = folder(tmp_path / "net")
    config = json.loads((home / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Net"}
    (home / "theirs.py").write_text("raise SystemExit('it ran')")
    (home / "config.json").write_text(json.dumps(config))
    assert type(get_model(f"hf/{home}")).__name__ == "ResNetForImageClassification"
    config["model_type"] = "theirs"
    (home / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="theirs"):
        get_model(f"hf/{home}")


# names that are not there


def test_a_typo_says_what_is_near():
    assert text(lambda: get_model("torchvison/resnet18")) == (
        'SourceError: no model of any source is named "torchvison/resnet18"\n'
        '  asked  get_model("torchvison/resnet18")\n'
        f"  found  {len(TORCHVISION.names())} of torchvision, {len(TIMM.names())} of timm\n"
        "  near   torchvision/resnet18, torchvision/resnet152, torchvision/resnet101\n"
        '  write  get_model("torchvision/resnet18")'
    )
    with pytest.raises(ValueError, match="resnet118") as caught:
        get_model("resnet118")
    assert caught.value.near[0] == "resnet18"
    assert caught.value.write == 'get_model("resnet18")'


def test_a_typo_behind_a_source_looks_there_alone():
    with pytest.raises(SourceError) as caught:
        get_model("timm/convnext_tiyn")
    assert caught.value.summary == 'no model of timm is named "timm/convnext_tiyn"'
    assert caught.value.near[0] == "timm/convnext_tiny"
    with pytest.raises(SourceError) as caught:
        get_model("torchvision/convnextv2_tiny")
    assert caught.value.near[0] == "torchvision/convnext_tiny"


def test_a_wrong_tag_says_which_there_are():
    with pytest.raises(SourceError) as caught:
        get_model("timm/resnet50.a1_in2k")
    assert caught.value.near[0] == "timm/resnet50.a1_in1k"
    with pytest.raises(SourceError) as caught:
        get_model("resnet50d.ra2_in2k")
    assert caught.value.near[0] == "resnet50d.ra2_in1k"


def test_an_id_without_its_source():
    with pytest.raises(SourceError) as caught:
        get_model("microsoft/resnet-50")
    assert caught.value.write == 'get_model("hf/microsoft/resnet-50")'


@pytest.mark.parametrize(
    "name",
    [
        "",
        3,
        None,
        "hf/",
        "timm/",
        "torchvision/",
        "registered/",
        "timm/hf-hub:some/net",
        "timm/local-dir:/etc",
        "zzzzzzzz",
        "/",
        "//",
        "\x00",
    ],
)
def test_what_is_no_name(name):
    with pytest.raises(SourceError):
        get_model(name)
    with pytest.raises(SourceError):
        skeleton_of(Origin(name))


def test_an_extra_that_is_missing(without_extras):
    assert text(lambda: get_model("timm/resnet50")) == (
        "SourceError: the models of timm need a library that is not installed\n"
        '  asked  get_model("timm/resnet50")\n'
        "  found  no timm\n"
        "  write  pip install torchgraft[timm]"
    )
    assert text(lambda: get_model("hf/some/net")) == (
        "SourceError: the models of hf need a library that is not installed\n"
        '  asked  get_model("hf/some/net")\n'
        "  found  no transformers\n"
        "  write  pip install torchgraft[hf]"
    )
    assert text(lambda: get_model("xcit_nano")) == (
        'SourceError: no model of any source is named "xcit_nano"\n'
        '  asked  get_model("xcit_nano")\n'
        f"  found  {len(TORCHVISION.names())} of torchvision; timm is not installed; hf is not installed\n"
        "  write  pip install torchgraft[timm]"
    )
    with pytest.raises(SourceError, match="not installed"):
        list_models(source="timm")
    assert all(name.startswith("torchvision/") for name in list_models("*resnet*"))
    assert get_model("squeezenet1_1", num_classes=2).num_classes == 2


# options


def test_an_option_that_a_transform_is_for():
    assert text(lambda: get_model("vgg16", drop_path_rate=0.1)) == (
        "OptionError: the builder of torchvision/vgg16 takes no drop_path_rate\n"
        '  asked  get_model("vgg16", drop_path_rate=0.1)\n'
        "  found  it takes num_classes, init_weights, dropout\n"
        '  write  pipe(get_model("vgg16"), drop_path(0.1))'
    )


@pytest.mark.parametrize(
    ("option", "write"),
    [
        ({"in_chans": 4}, "adapt_input(4))"),
        ({"drop_rate": 0.2}, "set_dropout(0.2))"),
        ({"output_stride": 16}, "dilate(16))"),
        ({"features_only": True}, "features(strides=(8, 16, 32)))"),
        ({"num_labels": 5}, "swap_head(5))"),
        ({"pretrained": True}, "weights=True)"),
        ({"weights_backbone": "DEFAULT"}, "weights=True)"),
    ],
)
def test_the_line_to_write_for_an_option(option, write):
    with pytest.raises(OptionError) as caught:
        get_model("resnet18", **option)
    assert caught.value.write.endswith(write)
    assert 'get_model("resnet18"' in caught.value.write


def test_a_misspelt_option():
    assert text(lambda: get_model("vgg11", num_class=3, dropout=0.1)) == (
        "OptionError: the builder of torchvision/vgg11 takes no num_class\n"
        '  asked  get_model("vgg11", num_class=3, dropout=0.1)\n'
        "  found  it takes num_classes, init_weights, dropout\n"
        "  near   num_classes\n"
        '  write  get_model("vgg11", dropout=0.1, num_classes=3)'
    )
    with pytest.raises(OptionError) as caught:
        get_model("timm/vit_tiny_patch16_224", img_sie=96)
    assert caught.value.near[0] == "img_size"
    assert caught.value.found.endswith(" more")
    with pytest.raises(OptionError) as caught:
        get_model("hf/mine", config={"model_type": "vit"}, num_hidden_layer=2)
    assert caught.value.near[0] == "num_hidden_layers"


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "swin_t",
        "fcn_resnet50",
        "retinanet_resnet50_fpn",
        "regnet_y_400mf",
        "timm/levit_128",
    ],
)
def test_an_option_that_a_builder_would_swallow(name):
    with pytest.raises(OptionError, match="takes no anything"):
        get_model(name, anything=1)


@pytest.mark.parametrize(
    "name",
    [
        "weights_backbone",
        "progress",
        "weights_param",
        "self",
        "pretrained_cfg",
        "checkpoint_path",
        "cache_dir",
        "scriptable",
        "model_cfg",
        "_skip_resize",
    ],
)
@pytest.mark.parametrize(
    "base",
    [
        "torchvision/fcn_resnet50",
        "timm/resnet18",
        "torchvision/quantized_resnet18",
        "torchvision/ssd300_vgg16",
    ],
)
def test_what_is_never_an_option(base, name):
    with pytest.raises(OptionError):
        skeleton_of(Origin(base, options=((name, "/etc/passwd"),)))


def test_a_value_that_the_builder_refuses():
    assert text(lambda: get_model("resnet18", groups=3)) == (
        "SourceError: the builder of torchvision/resnet18 refuses these options\n"
        '  asked  get_model("resnet18", groups=3)\n'
        "  found  ValueError: BasicBlock only supports groups=1 and base_width=64"
    )
    with pytest.raises(SourceError, match="indivisible by patch size") as caught:
        get_model("vit_b_16", image_size=100)
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(SourceError, match="refuses"):
        skeleton_of(Origin("torchvision/resnet18", options=(("num_classes", "many"),)))


def test_an_option_that_the_builder_sets_itself():
    assert text(lambda: get_model("swin_t", stochastic_depth_prob=0.3, dropout=0.1)) == (
        "OptionError: the builder of torchvision/swin_t sets stochastic_depth_prob itself\n"
        '  asked  get_model("swin_t", stochastic_depth_prob=0.3, dropout=0.1)\n'
        "  found  TypeError: torchvision.models.swin_transformer._swin_transformer() got multiple values "
        "for keyword argument 'stochastic_depth_prob'\n"
        '  write  pipe(get_model("swin_t", dropout=0.1), drop_path(0.3))'
    )
    with pytest.raises(OptionError) as caught:
        get_model("densenet121", growth_rate=8)
    assert caught.value.write == 'get_model("densenet121")'


def options_of(name: str) -> set[str]:
    found = resolve(name)
    return set(found.source.signature(found.name).parameters)


def test_options_are_followed_to_where_they_are_taken():
    assert {"num_classes", "zero_init_residual", "groups", "norm_layer"} <= options_of("resnet50")
    assert {"width_mult", "reduced_tail", "dilated", "dropout"} <= options_of("mobilenet_v3_small")
    assert {"image_size", "dropout", "conv_stem_configs"} <= options_of("vit_b_16")
    assert {"norm_layer", "num_classes"} <= options_of("regnet_y_400mf")
    assert {"min_size", "box_score_thresh", "trainable_backbone_layers"} <= options_of(
        "fasterrcnn_resnet50_fpn"
    )
    assert {"min_size", "rpn_score_thresh"} <= options_of("fasterrcnn_mobilenet_v3_large_320_fpn")
    assert {"quantize", "num_classes"} <= options_of("quantized_resnet18")
    assert {"img_size", "drop_path_rate", "global_pool"} <= options_of("timm/vit_tiny_patch16_224")
    assert "block" not in options_of("resnet50")
    assert "layers" not in options_of("wide_resnet50_2")


class Net(nn.Module):
    def __init__(self, width: int, *, depth: int = 2) -> None:
        super().__init__()


class Wider(Net):
    def __init__(self, *args, bias: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)


def test_following_a_builder_of_any_kind():
    def middle(cls, scale=1.0, flag=False, **kwargs):
        kwargs.pop("taken", None)
        return cls(3, **kwargs)

    def builder(*, weights=None, **kwargs):
        return middle(Wider, 2.0, **kwargs)

    def swallowing(**kwargs):
        return nn.Linear(2, 2)

    known = set(followed(builder, {"weights": None}).parameters)
    assert known == {"taken", "bias", "depth"}

    def stopped(a=1, **kwargs):
        return len(3)

    def hidden(b=1, **kwargs):
        return {"net": lambda c=1: Net(c)}["net"](**kwargs)

    def partly(**kwargs):
        made = functools.partial(Wider, 3)
        return made(**kwargs)

    assert set(followed(stopped, {}).parameters) == {"a"}
    assert set(followed(hidden, {}).parameters) == {"b"}
    assert set(followed(functools.partial(Net, 3), {}).parameters) == {"depth"}
    assert set(followed(partly, {}).parameters) == {"bias", "depth"}
    assert set(followed(lambda a=1: Net(a), {}).parameters) == {"a"}
    assert set(followed(swallowing, {}).parameters) == set()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in followed(builder, {}).parameters.values())


def test_following_leaves_a_profiler_and_the_generator_alone():
    seen = []
    before = torch.random.get_rng_state()

    def profiler(frame, event, arg):
        seen.append(event)

    sys.setprofile(profiler)
    try:
        TORCHVISION.signature.__func__.__globals__["_signature"].cache_clear()
        options_of("mobilenet_v3_small")
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert torch.random.get_rng_state().equal(before)


def test_two_threads_may_ask_at_once():
    TORCHVISION.signature.__func__.__globals__["_signature"].cache_clear()
    found = {}

    def ask(name):
        found[name] = options_of(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("convnext_tiny", "swin_t", "vit_b_16")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "layer_scale" in found["convnext_tiny"]
    assert "layer_scale" not in found["swin_t"]
    assert "image_size" in found["vit_b_16"]


# lists


def test_globs_as_in_a_shell():
    assert list_models("resnet1*", source="torchvision") == (
        "torchvision/resnet101",
        "torchvision/resnet152",
        "torchvision/resnet18",
    )
    both = list_models("resnet50")
    assert both == ("timm/resnet50", "torchvision/resnet50")
    assert list_models("*/resnet50") == both
    assert list_models("timm/resnet50") == both[:1]
    assert set(list_models("[rv]*")) >= {
        "torchvision/resnet18",
        "torchvision/vgg11",
        "timm/vit_tiny_patch16_224",
    }
    assert not [name for name in list_models("[rv]*") if name.partition("/")[2][0] not in "rv"]
    assert list_models("resnet?8", source="torchvision") == ("torchvision/resnet18",)
    assert list_models("no such model") == list_models("nowhere/*") == ()
    everything = list_models()
    assert everything == tuple(sorted(set(everything)))
    assert len(everything) >= 121 + 1000
    assert list_models(source="hf") == ()


def test_models_with_weights():
    with_weights = list_models("mnasnet*", pretrained=True)
    assert set(with_weights) <= set(list_models("mnasnet*"))
    assert "torchvision/mnasnet0_5" in with_weights
    assert len(list_models(pretrained=True, source="timm")) < len(list_models(source="timm"))
    assert list_models(pretrained=True, source="registered") == ()


def test_tags_are_listed_where_they_are_asked_for():
    assert "timm/resnet50.a1_in1k" in list_models("resnet50.*")
    assert not [name for name in list_models("*resnet50*") if "." in name]


def test_every_name_that_is_listed_is_found():
    for name in list_models("*a*", source="torchvision") + list_models("res*", source="timm")[:40]:
        assert resolve(name).base == name


def test_what_is_no_pattern_and_no_source():
    assert text(lambda: list_models(3)) == (
        'OptionError: a pattern is text\n  asked  list_models(3)\n  found  an int\n  write  "*resnet*"'
    )
    assert text(lambda: list_models(source="tim")) == (
        'SourceError: no source is named "tim"\n'
        '  asked  source="tim"\n'
        "  found  registered, torchvision, timm, hf\n"
        "  near   timm\n"
        '  write  source="timm"'
    )
    with pytest.raises(SourceError):
        list_models(source=3)


def test_the_sources_are_values():
    assert [source.name for source in find.SOURCES] == ["registered", "torchvision", "timm", "hf"]
    assert not HUGGING_FACE.has("")
    assert hash(TIMM) == hash(pickle.loads(pickle.dumps(TIMM)))


def test_other_libraries_are_imported_when_they_are_asked_for():
    code = (
        "import sys; from torchgraft.sources.get import get_model, list_models; get_model('squeezenet1_1');"
        "list_models('resnet*', source='torchvision'); print(*{'timm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""Weights of sources: which are meant, where they come from, and what becomes of every tensor."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import transformers
from hugging import folder, small_config
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from torchgraft import load_report
from torchgraft.alignment.load.digest import digest
from torchgraft.errors import CheckpointError, SourceError
from torchgraft.graph.history import Origin, history_of
from torchgraft.sources import hugging_face_weights, registry, timm_weights, torchvision_weights
from torchgraft.sources.get import get_model, skeleton_of
from torchgraft.sources.registry import register_model

NET = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
FILE = NET.url.rpartition("/")[2]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """Empty caches, and no network."""

    def refuse(*_args, **_options):
        raise urllib.error.URLError("no route to anywhere")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(registry, "_TABLE", {})
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    return tmp_path / "torch/hub/checkpoints"


def in_cache(home: Path, repository: str, tensors: dict[str, torch.Tensor]) -> Path:
    """Put a file where the hub of Hugging Face keeps one that was fetched."""
    kept = home / f"hub/models--{repository.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("abc")
    (kept / "snapshots/abc").mkdir(parents=True)
    save_file(tensors, kept / "snapshots/abc/model.safetensors")
    return kept / "snapshots/abc/model.safetensors"


def same(model: nn.Module, state: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> bool:
    held = model.state_dict()
    return held.keys() == state.keys() and all(held[k].equal(v) for k, v in state.items() if k not in but)


def message(call) -> str:
    with pytest.raises(SourceError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def squeezed(hub):
    state = models.squeezenet1_1().state_dict()
    torch.save(state, hub / FILE)
    return state


@pytest.mark.parametrize(
    "weights",
    [
        "IMAGENET1K_V1",
        "DEFAULT",
        "SqueezeNet1_1_Weights.IMAGENET1K_V1",
        "SqueezeNet1_1_Weights.DEFAULT",
        NET,
        True,
    ],
)
def test_weights_of_torchvision_by_all_their_names(squeezed, weights):
    model = get_model("squeezenet1_1", weights=weights)
    assert same(model, squeezed)
    origin = history_of(model).origin
    assert origin == Origin("torchvision/squeezenet1_1", "IMAGENET1K_V1", (), digest(model))
    assert load_report(model).summary == "loaded 100.0 % of parameters (52 of 52 tensors)"


def test_none_and_false_are_random(squeezed):
    for weights in (None, False):
        model = get_model("squeezenet1_1", weights=weights)
        assert not same(model, squeezed)
        assert history_of(model).origin == Origin("torchvision/squeezenet1_1")


def test_another_class_count_keeps_the_trunk_and_says_that_the_head_is_new(squeezed):
    model = get_model("squeezenet1_1", weights=True, num_classes=7)
    head = ("classifier.1.weight", "classifier.1.bias")
    assert same(model, squeezed, but=head)
    assert model.classifier[1].weight.shape == (7, 512, 1, 1)
    assert str(load_report(model)) == (
        "loaded 96.2 % of parameters (50 of 52 tensors); 2 differ in shape\n"
        "  differ      classifier.1.weight 1000 512 1 1 -> 7 512 1 1, classifier.1.bias 1000 -> 7\n"
        "  initialised classifier.1.weight, classifier.1.bias"
    )


def test_the_usual_class_count_keeps_the_head(squeezed):
    assert same(get_model("squeezenet1_1", weights=True, num_classes=1000), squeezed)


def test_the_digest_does_not_depend_on_what_is_random(squeezed):
    one, other = (get_model("squeezenet1_1", weights=True, num_classes=7) for _ in range(2))
    assert not one.classifier[1].weight.equal(other.classifier[1].weight)
    assert history_of(one).origin == history_of(other).origin


def test_a_model_does_not_write_into_the_file(squeezed, hub, tmp_path):
    own = tmp_path / "own.safetensors"
    save_file(squeezed, own)
    for path in (hub / FILE, own):
        before = path.read_bytes()
        model = get_model("squeezenet1_1", weights=str(path))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert path.read_bytes() == before


def test_a_file_of_torchvision_under_its_name_is_read_as_torchvision_does(hub):
    """Densenet's files have names of an older time, which only its builder knows."""
    state = models.densenet121().state_dict()
    old = {
        k.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in k else k: v
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
    name = models.DenseNet121_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(old, hub.parent / name)
    model = get_model("densenet121", weights=str(hub.parent / name))
    assert same(model, state)
    assert history_of(model).origin.weights == str(hub.parent / name)


def test_without_the_file_and_the_network(hub):
    assert message(lambda: get_model("squeezenet1_1", weights=True)) == (
        "the weights are not on this machine, and they could not be fetched\n"
        '  asked  get_model("torchvision/squeezenet1_1", weights="IMAGENET1K_V1")\n'
        f"  found  no 'squeezenet1_1-b8a52dc0.pth' in '{hub}', and URLError on fetching it\n"
        '  write  weights="<path of squeezenet1_1-b8a52dc0.pth>", or the file in that folder'
    )


def test_what_is_fetched_is_kept(hub, monkeypatch):
    state = models.squeezenet1_1().state_dict()
    asked = []

    def fetch(url, path, prefix):
        asked.append((url, prefix))
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        assert same(get_model("squeezenet1_1", weights=True), state)
    assert asked == [(NET.url, "b8a52dc0")]


def test_unknown_names_and_files(squeezed, hub):
    assert message(lambda: get_model("resnet50", weights="IMAGENET1K_V3")) == (
        'torchvision/resnet50 has no weights "IMAGENET1K_V3"\n'
        '  asked  get_model("torchvision/resnet50", weights="IMAGENET1K_V3")\n'
        "  found  IMAGENET1K_V2, IMAGENET1K_V1\n"
        "  near   IMAGENET1K_V2, IMAGENET1K_V1\n"
        '  write  get_model("torchvision/resnet50", weights="IMAGENET1K_V2")'
    )
    wrong = str(hub / "squeezenet1_1.pth")
    assert message(lambda: get_model("squeezenet1_1", weights=wrong, num_classes=5)) == (
        f'there is no file "{wrong}"\n'
        f'  asked  get_model("torchvision/squeezenet1_1", weights="{wrong}", num_classes=5)\n'
        "  found  IMAGENET1K_V1\n"
        f"  near   {hub / FILE}\n"
        f'  write  get_model("torchvision/squeezenet1_1", weights="{hub / FILE}", num_classes=5)'
    )
    assert message(lambda: get_model("squeezenet1_1", weights=3.5)) == (
        "weights are a name, a file, True for the default ones, or None for random ones\n"
        '  asked  get_model("torchvision/squeezenet1_1", weights=3.5)\n'
        "  found  a float\n"
        '  write  get_model("torchvision/squeezenet1_1", weights="IMAGENET1K_V1")'
    )
    for other in (NET, "SqueezeNet1_1_Weights.IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT"):
        assert "has no weights" in message(lambda other=other: get_model("resnet18", weights=other))


def test_a_model_without_weights_of_its_own():
    register_model("plain")(lambda: nn.Linear(3, 2))
    assert message(lambda: get_model("plain", weights=True)) == (
        "registered/plain has no weights of its own\n"
        '  asked  get_model("registered/plain", weights=True)\n'
        "  found  weights=None, which are random\n"
        '  write  get_model("registered/plain", weights="<path of a file>")'
    )
    assert "no weights of its own" in message(lambda: get_model("plain", weights="best"))


def test_a_broken_file_and_a_file_of_another_model(squeezed, hub):
    torch.save(models.squeezenet1_0().state_dict(), hub / FILE)
    said = message(lambda: get_model("squeezenet1_1", weights=True))
    assert said.startswith("the weights IMAGENET1K_V1 do not go into torchvision/squeezenet1_1\n")
    assert "RuntimeError: Error(s) in loading state_dict for SqueezeNet: Missing key(s)" in said
    (hub / FILE).write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(CheckpointError, match=r'weights="IMAGENET1K_V1"') as caught:
        get_model("squeezenet1_1", weights=True)
    assert "is no checkpoint, or not a whole one" in str(caught.value)


class _Run:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["TORCH_HOME"]) / "was_run"),)


@pytest.mark.parametrize("name", [FILE, "own.pth"])
def test_code_in_a_file_is_not_run(hub, name):
    torch.save({"weight": _Run()}, hub / name)
    with pytest.raises(CheckpointError, match="holds code"):
        get_model("squeezenet1_1", weights=str(hub / name))
    assert not (hub.parents[1] / "was_run").exists()


def test_options_that_weights_do_not_allow(hub):
    torch.save(models.vit_b_32(image_size=64).state_dict(), hub / "vit_b_32-d86f8d99.pth")
    assert models.ViT_B_32_Weights.DEFAULT.url.endswith("vit_b_32-d86f8d99.pth")
    said = message(lambda: get_model("vit_b_32", weights=True, image_size=64))
    assert "found  ValueError: The parameter 'image_size' expected value 224 but got 64 instead." in said
    assert said.endswith(
        'get_model("torchvision/vit_b_32", weights="IMAGENET1K_V1"), and transforms after it'
    )


@pytest.mark.parametrize(
    ("base", "weights", "is_so"),
    [
        ("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1", lambda m: m.image_size == 384),
        ("torchvision/vit_l_16", "ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1", lambda m: m.image_size == 512),
        ("torchvision/googlenet", True, lambda m: m.transform_input),
        ("torchvision/googlenet", "DEFAULT", lambda m: m.transform_input),
        (
            "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
            "COCO_V1",
            lambda m: isinstance(m.backbone.body["0"][1], FrozenBatchNorm2d),
        ),
        ("torchvision/fasterrcnn_resnet50_fpn", "COCO_V1", lambda m: m.backbone.body.bn1.eps == 0),
        ("torchvision/fasterrcnn_resnet50_fpn_v2", "COCO_V1", lambda m: m.backbone.body.bn1.eps > 0),
        ("torchvision/googlenet", "IMAGENET1K_V1", lambda m: m.transform_input and m.aux1 is None),
        ("torchvision/googlenet", "/gone/googlenet-1378be20.pth", lambda m: m.transform_input),
        ("torchvision/googlenet", "/gone/own.pth", lambda m: not m.transform_input),
        ("timm/vit_base_patch16_224", "augreg_in21k", lambda m: m.head.out_features == 21843),
    ],
)
def test_weights_decide_on_the_structure_without_being_there(base, weights, is_so):
    model = skeleton_of(Origin(base, weights))
    assert is_so(model)
    assert all(tensor.is_meta for tensor in model.parameters())


def test_what_stands_for_weights_is_equal_to_them():
    stand = torchvision_weights._Standing(NET, {}, dict)
    assert stand == NET
    assert hash(stand) == hash(NET)
    assert isinstance(stand, models.SqueezeNet1_1_Weights)
    assert stand != models.SqueezeNet1_0_Weights.DEFAULT


@pytest.mark.filterwarnings("ignore")  # of torch, on quantisation itself
def test_a_quantised_model_is_whole_or_nothing(hub):
    name, options = "quantized_shufflenet_v2_x0_5", {"quantize": True}
    label = models.get_model_weights(name).DEFAULT
    torch.save(models.get_model(name, **options).state_dict(), hub / label.url.rpartition("/")[2])
    assert load_report(get_model(name, weights=True, **options)).loaded
    said = message(lambda: get_model(name, weights=True, num_classes=3, **options))
    assert said.startswith("a quantised model is loaded whole or not at all")


def _register():
    @register_model("two_layers")
    def two_layers(num_classes: int = 5, width: int = 4, in_channels: int = 3):
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 1), nn.BatchNorm2d(width), nn.Linear(width, num_classes)
        )

    return two_layers


@pytest.mark.parametrize("form", ["safetensors", "pth", "index"])
def test_files_for_a_builder_of_the_user(tmp_path, form):
    state = _register()().state_dict()
    path = tmp_path / f"own.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        path = tmp_path / "own.safetensors.index.json"
        save_file(state, tmp_path / "one.safetensors")
        inner = ", ".join(f'"{key}": "one.safetensors"' for key in state)
        path.write_text(f'{{"weight_map": {{{inner}}}}}')
    assert same(get_model("two_layers", weights=path), state)
    model = get_model("two_layers", weights=str(path), num_classes=2)
    assert same(model, {**state, **model.state_dict()})
    assert load_report(model).initialised == ("2.weight", "2.bias")
    assert model[0].weight.equal(state["0.weight"])


def test_a_file_has_to_fit_but_for_the_head(tmp_path):
    state = _register()().state_dict()
    path = tmp_path / "own.safetensors"
    del state["0.bias"]
    save_file({**state, "more": torch.zeros(2)}, path)
    assert message(lambda: get_model("two_layers", weights=path, num_classes=2)) == (
        "the weights are for another model\n"
        f'  asked  get_model("registered/two_layers", weights="{path}", num_classes=2)\n'
        "  found  loaded 66.7 % of parameters (6 of 9 tensors); 2 differ in shape; 1 new; 1 unexpected\n"
        "         differ 2.weight 5 4 -> 2 4, 2.bias 5 -> 2\n"
        "         new 0.bias\n"
        "         unexpected more\n"
        f'  write  partial_load(get_model("two_layers", num_classes=2), "{path}"), which takes what fits'
    )


@pytest.mark.parametrize("classes", [5, 2])
def test_one_tensor_too_few_or_too_many_is_enough(tmp_path, classes):
    state = _register()().state_dict()
    few, many = (
        {k: v for k, v in state.items() if k != "1.running_var"},
        {**state, "3.weight": torch.zeros(1)},
    )
    for held, said in ((few, "new 1.running_var"), (many, "unexpected 3.weight")):
        save_file(held, tmp_path / "own.safetensors")
        assert said in message(
            lambda: get_model("two_layers", weights=tmp_path / "own.safetensors", num_classes=classes)
        )


def test_a_file_with_more_than_the_model_or_several_of_them(tmp_path):
    path, state = tmp_path / "m.ckpt", models.squeezenet1_1().state_dict()
    torch.save(
        {"state_dict": {**{f"model.{k}": t for k, t in state.items()}, "loss.weight": torch.ones(2)}}, path
    )
    with pytest.raises(SourceError, match="the file holds more than this model") as caught:
        get_model("squeezenet1_1", weights=path)
    assert caught.value.write.startswith("partial_load(")
    torch.save({f"{side}.{key}": t for side in ("q", "k") for key, t in state.items()}, path)
    with pytest.raises(CheckpointError) as several:
        get_model("squeezenet1_1", weights=path)
    assert several.value.write == f'load_weights("{path}", prefix="q.")(get_model("squeezenet1_1"))'


def test_another_width_is_no_other_class_count(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file(_register()(width=6).state_dict(), path)
    assert "0.weight 6 3 1 1 -> 4 3 1 1" in message(
        lambda: get_model("two_layers", weights=path, num_classes=2)
    )


def refusal(name: str, path: Path, **options) -> list[str]:
    return message(lambda: get_model(name, weights=path, **options)).splitlines()


def test_a_file_with_another_number_of_classes_says_the_call(tmp_path):
    path = tmp_path / "r7.pth"
    torch.save(models.squeezenet1_1(num_classes=7).state_dict(), path)
    assert message(lambda: get_model("squeezenet1_1", weights=path)) == (
        "the weights are for another model\n"
        f'  asked  get_model("torchvision/squeezenet1_1", weights="{path}")\n'
        "  found  loaded 96.2 % of parameters (50 of 52 tensors); 2 differ in shape\n"
        "         differ classifier.1.weight 7 512 1 1 -> 1000 512 1 1, classifier.1.bias 7 -> 1000\n"
        f'  write  get_model("squeezenet1_1", weights="{path}", num_classes=7)'
    )
    assert get_model("squeezenet1_1", weights=path, num_classes=7).classifier[1].out_channels == 7


def test_a_file_of_a_model_of_the_same_family_says_which(tmp_path):
    path = tmp_path / "own.pth"
    torch.save(models.shufflenet_v2_x1_0().state_dict(), path)
    said = refusal("shufflenet_v2_x0_5", path)[-1]
    assert said == f'  write  get_model("shufflenet_v2_x1_0", weights="{path}")'
    said = refusal("torchvision/shufflenet_v2_x0_5", path)[-1]
    assert said == f'  write  get_model("torchvision/shufflenet_v2_x1_0", weights="{path}")'


def test_a_file_of_another_kind_goes_by_structure_and_one_of_other_options_by_names(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file({"stem.kernel": torch.zeros(4, 3, 1, 1)}, path)
    _register()
    assert refusal("two_layers", path)[-1] == (
        f'  write  load_weights("{path}", by="structure")(get_model("two_layers")), which goes by what tensors do'
    )
    save_file(_register_again(width=6), path)
    assert refusal("two_layers", path)[-1] == (
        f'  write  get_model("two_layers", weights="{path}", <the options of the file>)'
    )


def test_a_call_that_the_builder_refuses_is_not_written(tmp_path):
    @register_model("even")
    def even(num_classes: int = 4):
        if num_classes % 2:
            raise ValueError(num_classes)
        return nn.Linear(3, num_classes)

    path = tmp_path / "own.safetensors"
    for count, options in ((7, "<the options of the file>"), (8, "num_classes=8")):
        save_file(nn.Linear(3, count).state_dict(), path)
        assert refusal("even", path)[-1] == f'  write  get_model("even", weights="{path}", {options})'


def _register_again(**options) -> dict[str, torch.Tensor]:
    registry._TABLE.clear()
    return _register()(**options).state_dict()


def test_tables_that_a_builder_computes_may_be_missing(tmp_path):
    @register_model("tabled")
    def tabled(num_classes: int = 5):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, num_classes))
        model[0].register_buffer("index", torch.arange(6))
        model[0].register_buffer("mask", torch.ones(2, dtype=torch.bool))
        model[0].register_buffer("scale", torch.ones(2))
        return model

    path, state = tmp_path / "own.safetensors", tabled().state_dict()
    save_file({k: v for k, v in state.items() if k not in ("0.index", "0.mask")}, path)
    for options, head in (({}, ()), ({"num_classes": 2}, ("1.weight", "1.bias"))):
        model = get_model("tabled", weights=path, **options)
        assert same(model, state, but=head)
        assert load_report(model).missing == ("0.index", "0.mask")
        assert load_report(model).initialised == head
    save_file({**{k: v for k, v in state.items() if k != "0.index"}, "0.mask": torch.ones(3)}, path)
    assert "differ 0.mask 3 -> 2" in message(lambda: get_model("tabled", weights=path))
    save_file({k: v for k, v in state.items() if k != "0.scale"}, path)
    assert "new 0.scale" in message(lambda: get_model("tabled", weights=path))


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IMAGES = {"image_size": 16, "patch_size": 4}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}


@pytest.mark.parametrize(
    ("kind", "head", "options"),
    [
        ("ViT", "ImageClassification", {**SMALL, **IMAGES}),
        ("Swin", "ImageClassification", {**SWIN, **IMAGES}),
        ("Bert", "SequenceClassification", {**SMALL, "vocab_size": 9}),
    ],
)
def test_names_in_files_of_hugging_face_are_for_transformers_to_know(
    tmp_path, monkeypatch, kind, head, options
):
    monkeypatch.chdir(tmp_path)
    config = getattr(transformers, f"{kind}Config")(**options, num_labels=3)
    first = getattr(transformers, f"{kind}For{head}")(config)
    first.save_pretrained("net")
    for weights in (True, "net/model.safetensors"):
        model = get_model("hf/./net", weights=weights)
        assert same(model, first.state_dict())
        assert model.training
    seven = get_model("hf/./net", weights=True, num_labels=7)
    head = ("classifier.weight", "classifier.bias")
    assert same(seven, first.state_dict(), but=head)
    assert load_report(seven).initialised == head


def test_a_file_of_hugging_face_has_to_fit(tmp_path):
    held = folder(tmp_path / "net")
    state = get_model(f"hf/{held}").state_dict()
    del state["classifier.1.bias"]
    save_file(
        {**state, "classifier.1.weight": torch.zeros(4, 16), "z": torch.zeros(1)}, held / "model.safetensors"
    )
    assert message(lambda: get_model(f"hf/{held}", weights=True)) == (
        "'model.safetensors' is for another model than the config\n"
        f'  asked  get_model("hf/{held}", weights="model.safetensors")\n'
        "  found  differ classifier.1.weight 4 16 -> 3 16\n"
        "         new classifier.1.bias\n"
        "         unexpected z\n"
        "  write  weights that are for this config, or the config that was saved with them"
    )


def test_other_input_channels_are_for_a_transform_to_say(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file(_register()().state_dict(), path)
    assert get_model("two_layers", weights=path, in_channels=3)
    assert message(lambda: get_model("two_layers", weights=path, in_channels=4)) == (
        "weights are for the number of input channels that they were trained with\n"
        f'  asked  get_model("registered/two_layers", weights="{path}", in_channels=4)\n'
        "  found  in_channels=4\n"
        "  write  adapt_input(<channels>)(get_model(...)), which adapts them"
    )


def test_old_files_without_counts_of_batches(tmp_path):
    state = _register()().state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "own.safetensors")
    report = load_report(get_model("two_layers", weights=tmp_path / "own.safetensors"))
    assert report.counters == ("1.num_batches_tracked",)


@pytest.mark.parametrize("weights", [True, "r160_in1k"])
def test_weights_of_timm_out_of_the_cache(tmp_path, weights):
    state = timm.create_model("test_resnet").state_dict()
    in_cache(tmp_path, "timm/test_resnet.r160_in1k", state)
    model = get_model("timm/test_resnet", weights=weights)
    assert same(model, state)
    assert history_of(model).origin.weights == "r160_in1k"
    assert "file" not in model.pretrained_cfg
    assert model.default_cfg is model.pretrained_cfg
    with_tag = get_model("timm/test_resnet.r160_in1k", weights=True, num_classes=7)
    head = ("fc.weight", "fc.bias")
    assert same(with_tag, state, but=head)
    assert load_report(with_tag).initialised == head


def test_no_classes_at_all_leave_the_head_out(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    in_cache(tmp_path, "timm/test_resnet.r160_in1k", state)
    model = get_model("timm/test_resnet", weights=True, num_classes=0)
    assert same(model, {key: value for key, value in state.items() if not key.startswith("fc.")})
    assert load_report(model).unexpected == ("fc.weight", "fc.bias")


def test_tags_of_timm_that_are_not_there(tmp_path):
    assert message(lambda: get_model("timm/resnet18", weights="a1_in2k")) == (
        'timm/resnet18 has no weights "a1_in2k"\n'
        '  asked  get_model("timm/resnet18", weights="a1_in2k")\n'
        "  found  a1_in1k, a2_in1k, a3_in1k, tv_in1k, fb_ssl_yfcc100m_ft_in1k, fb_swsl_ig1b_ft_in1k, ...\n"
        "  near   a1_in1k, a3_in1k, a2_in1k\n"
        '  write  get_model("timm/resnet18", weights="a1_in1k")'
    )
    kept = tmp_path / "hub/models--timm--resnet18.a1_in1k"
    assert message(lambda: get_model("timm/resnet18", weights="a1_in1k")) == (
        "the weights are not on this machine, and they could not be fetched\n"
        '  asked  get_model("timm/resnet18", weights="a1_in1k")\n'
        f"  found  no 'model.safetensors' in '{kept}', and URLError on fetching it\n"
        '  write  weights="<path of model.safetensors>", or the file in that folder'
    )
    assert "has no weights" in message(lambda: get_model("timm/resnet18.a1_in1k", weights="a2_in1k"))


def test_timm_does_not_adapt_the_stem_in_silence(tmp_path):
    in_cache(tmp_path, "timm/test_resnet.r160_in1k", timm.create_model("test_resnet").state_dict())
    assert get_model("timm/test_resnet", weights=True, in_chans=3)
    said = message(lambda: get_model("timm/test_resnet", weights=True, in_chans=4))
    assert said.endswith("write  adapt_input(<channels>)(get_model(...)), which adapts them")


def test_a_tensor_that_timm_would_leave_random(tmp_path):
    """Some models of timm are loaded without strictness, after their names were changed."""
    save_file({"old": torch.zeros(2, 3)}, tmp_path / "held.safetensors")

    def build() -> nn.Module:
        model = nn.Linear(3, 2)
        model.weight.data.zero_()
        return model

    with pytest.raises(SourceError) as caught:
        timm_weights._check_whole(build(), build, tmp_path / "held.safetensors")
    assert caught.value.found == "nothing for bias"


def test_a_hub_is_asked_for_each_name_of_a_file(tmp_path, monkeypatch):
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    asked = []

    def fetch(repository, name, revision):
        asked.append((repository, name, revision))
        if name.endswith(".safetensors"):
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert same(get_model("timm/test_resnet", weights=True), state)
    assert [name for _, name, _ in asked] == ["model.safetensors", "pytorch_model.bin"]


def test_weights_beside_a_config_of_hugging_face(tmp_path):
    held = folder(tmp_path / "net")
    first = get_model(f"hf/{held}")
    assert "has no weights of its own" in message(lambda: get_model(f"hf/{held}", weights=True))
    first.save_pretrained(held)
    model = get_model(f"hf/{held}", weights=True)
    assert same(model, first.state_dict())
    assert history_of(model).origin.weights == "model.safetensors"
    seven = get_model(f"hf/{held}", weights=True, num_labels=7)
    assert load_report(seven).initialised == ("classifier.1.weight", "classifier.1.bias")
    assert seven.resnet.embedder.embedder.convolution.weight.equal(
        first.resnet.embedder.embedder.convolution.weight
    )


def test_files_of_hugging_face_by_name_and_by_path(tmp_path):
    held = folder(tmp_path / "net")
    first = get_model(f"hf/{held}")
    first.save_pretrained(held)
    for weights in ("model.safetensors", held / "model.safetensors"):
        assert same(get_model(f"hf/{held}", weights=weights), first.state_dict())
    assert "has no weights" in message(lambda: get_model(f"hf/{held}", weights="pytorch_model"))
    gone = hugging_face_weights.HuggingFaceWeights().remote(str(held), "pytorch_model.bin")
    assert message(lambda: gone.path("get_model(...)")).splitlines()[2] == (
        f"  found  no 'pytorch_model.bin' in '{held}', and FileNotFoundError on fetching it"
    )


def test_a_name_that_no_hub_can_hold_is_not_looked_for():
    assert hugging_face_weights.HuggingFaceWeights().labels("a/b/c") == []


def test_a_file_of_timm_that_stands_at_an_address(hub):
    """Few of timm's files are not on the hub."""
    name = next(n for n in timm.list_models(pretrained=True) if not timm.get_pretrained_cfg(n).hf_hub_id)
    arch, _, tag = name.partition(".")
    remote = timm_weights.TimmWeights().remote(arch, tag)
    assert remote.folder == hub
    assert remote.name == timm.get_pretrained_cfg(name).url.rpartition("/")[2]


def test_weights_of_hugging_face_out_of_the_cache(tmp_path):
    state = get_model(
        "hf/me/net", config=small_config(num_labels=3, architectures=["ResNetModel"])
    ).state_dict()
    kept = in_cache(tmp_path, "me/net", state)
    folder(kept.parent, small_config(num_labels=3), "ResNetModel")
    assert same(get_model("hf/me/net", weights=True), state)


def test_a_digest_tells_what_a_model_holds():
    state = nn.Linear(3, 2).state_dict()

    def summed(**changed):
        module = nn.Module()
        for name, tensor in {**state, **changed}.items():
            module.register_buffer(name, tensor)
        return digest(module)

    plain = summed()
    assert len(plain) == 64
    back = nn.Module()
    for name in reversed(state):
        back.register_buffer(name, state[name])
    assert digest(back) == plain
    assert summed(weight=state["weight"].t().contiguous().t()) == plain
    other = state["weight"].clone()
    other[1, 2] += 1
    variants = [other, state["weight"].double(), state["weight"].reshape(3, 2), state["weight"].int()]
    assert len({plain, *(summed(weight=one) for one in variants), summed(more=torch.ones(1))}) == 6


def test_a_digest_reads_in_chunks(monkeypatch):
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20)).to(torch.bfloat16)
    whole = digest(model)
    monkeypatch.setattr("torchgraft.alignment.load.digest._CHUNK", 64)
    assert digest(model) == whole

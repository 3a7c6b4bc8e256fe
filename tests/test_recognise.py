"""Recognising: the origin of a model that was built by hand, the right one or none."""

from __future__ import annotations

import inspect
import types

import pytest
import timm
import torch
import transformers
from hugging import small_config
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models

from torchgraft import adapt_input, features, freeze, pipe, stage, swap_head, trace, wrap
from torchgraft.alignment.load.digest import digest
from torchgraft.graph.history import History, Origin, set_history
from torchgraft.recipe import recipe_of
from torchgraft.sources.get import get_model, skeleton_of
from torchgraft.sources.recognise import recognised
from torchgraft.sources.skeleton import skeleton
from torchgraft.sources.torchvision import TORCHVISION
from torchgraft.transform import replayed

EDITS = (wrap(stage(-1), "se"), swap_head(10))


def known(model: nn.Module, *edits) -> Origin | None:
    return recognised(model, (lambda base: replayed(base, edits)) if edits else (lambda base: base))


def _smallest() -> list[str]:
    """The smallest model of each file of torchvision's classifiers; all of them are in the sweep."""
    sizes = {
        n: min(w.meta["num_params"] for w in models.get_model_weights(n))
        for n in models.list_models(module=models)
    }
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    return sorted({models.get_model_builder(name).__module__: name for name in largest_first}.values())


def made(name: str, **options: object) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # or it warns
    return skeleton(lambda: models.get_model(name, **options))


@pytest.mark.parametrize("name", _smallest())
def test_a_classifier_of_torchvision(name):
    assert known(made(name)) == Origin(f"torchvision/{name}")
    assert known(made(name, num_classes=7)) == Origin(f"torchvision/{name}", options=(("num_classes", 7),))


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet18", {"num_classes": 7}), ("mobilenet_v3_small", {}), ("swin_t", {})],
)
def test_a_classifier_of_torchvision_after_edits(name, options):
    model = pipe(models.get_model(name, **options), *EDITS)
    assert known(model, *EDITS) == Origin(f"torchvision/{name}", options=tuple(options.items()))


@pytest.mark.parametrize(
    "name",
    ["fcn_resnet50", "ssdlite320_mobilenet_v3_large", "r3d_18", "raft_small", "lraspp_mobilenet_v3_large"],
)
def test_other_models_of_torchvision(name):
    bare = {"weights_backbone": None} if name not in ("r3d_18", "raft_small") else {}
    assert known(made(name, weights=None, **bare)) == Origin(f"torchvision/{name}")


def test_what_weights_change_is_an_option_and_no_claim_of_weights():
    model = skeleton_of(Origin("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1"))
    set_history(model, History())
    assert known(model) == Origin("torchvision/vit_b_16", options=(("image_size", 384),))


OPTIONS = {
    "aux_loss": True,
    "aux_logits": False,
    "transform_input": True,
    "memory_efficient": True,
    "image_size": 448,
    "dropout": 0.3,
    "num_classes": 4,
}


def _smallest_with(option: str) -> list[str]:
    """The first builder of each file that takes an option."""
    taking = [n for n in models.list_models() if option in TORCHVISION.signature(n).parameters]
    homes = {models.get_model_builder(n).__module__: n for n in reversed(taking)}
    return sorted(n for n in homes.values() if not n.startswith(("quantized", "lraspp")))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_builders_are_found_and_no_weights_are_named(option):
    missed = []
    for name in _smallest_with(option):
        bare = {k: None for k in ("weights", "weights_backbone") if k in _own(name)}
        model = made(name, **bare, **{option: OPTIONS[option]})
        found = known(model)
        if found is None or found.options != ((option, OPTIONS[option]),):
            missed.append(name)
        assert found is None or (found.weights, found.sha256) == (None, "")
    heads = ["ssd300_vgg16", "ssdlite320_mobilenet_v3_large"]
    untold = {"dropout": ["efficientnet_b0", heads[1]], "num_classes": heads}
    assert missed == untold.get(option, [])  # nothing of theirs is that number


def _own(name):
    return inspect.signature(models.get_model_builder(name)).parameters


def test_weights_are_named_where_their_file_has_the_values(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    model = models.squeezenet1_1()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / file)
    origin = recipe_of(pipe(model, swap_head(3), freeze("**"))).origin
    assert (origin.base, origin.weights) == ("torchvision/squeezenet1_1", "IMAGENET1K_V1")
    assert origin.sha256 == digest(model)
    with torch.no_grad():
        model.features[0].bias[0] += 1
    assert recipe_of(pipe(model, freeze("**"))).origin == Origin("torchvision/squeezenet1_1")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_nfnet", "levit_128"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 7}, {"num_classes": 0}], ids=repr)
def test_a_model_of_timm(name, options):
    model = skeleton(lambda: timm.create_model(name, **options))
    origin = known(model)
    assert origin.base.partition(".")[0] == f"timm/{name}"
    assert origin.options == tuple(options.items())


@pytest.mark.parametrize("edits", [EDITS, (features(),), (adapt_input(4), freeze("**"))], ids=repr)
def test_a_model_of_timm_after_edits(edits):
    assert known(pipe(timm.create_model("test_resnet"), *edits), *edits) == Origin(
        "timm/test_resnet.r160_in1k"
    )


@pytest.mark.parametrize("architecture", ["ResNetForImageClassification", "ResNetModel", "ResNetBackbone"])
def test_a_model_of_hugging_face(architecture):
    model = getattr(transformers, architecture)(small_config(num_labels=3))
    origin = known(model)
    assert origin.base == "hf/resnet"
    assert [type(m) for m in skeleton_of(origin).modules()] == [type(m) for m in model.modules()]


def test_a_model_of_hugging_face_after_edits():
    model = transformers.ResNetForImageClassification(small_config(num_labels=3))
    assert known(pipe(model, swap_head(4)), swap_head(4)).base == "hf/resnet"


def test_steps_that_cannot_be_done_again():
    model = pipe(models.squeezenet1_1(), swap_head(3))
    assert known(model, wrap("layer9", "se")) is None


def test_a_graph_without_steps():
    model = trace(models.resnet18())
    assert recognised(model, lambda base: replayed(base, ())) == Origin("torchvision/resnet18")
    assert known(model) == Origin("torchvision/resnet18")  # it runs the same Python
    model.recompile()  # from now on it runs its graph
    assert known(model) is None


def test_steps_have_to_be_those_that_made_it():
    model = pipe(get_model("resnet18", num_classes=5), *EDITS)
    origin = Origin("torchvision/resnet18", options=(("num_classes", 5),))
    assert known(model, *EDITS) == origin
    assert known(model, EDITS[1]) is None


class ResNet(models.ResNet):
    """A class of the user, with the name that torchvision's has."""

    def forward(self, x):
        return 2 * super().forward(x)


def _strided(model):
    model.conv1.stride = (1, 1)


def _exchanged(model):
    model.layer1[1].relu = nn.ReLU6()


def _removed(model):
    model.layer4 = model.layer4[:1]


def _own_forward(model):
    model.forward = types.MethodType(lambda self, x: 2 * self._forward_impl(x), model)


def _own_class(model):
    model.__class__ = ResNet


def _parametrized(model):
    parametrizations.weight_norm(model.layer1[0].conv1)


def _hooked(model):
    model.layer1.register_forward_hook(lambda *_: None)


def _momentum(model):
    model.bn1.momentum = 0.01


CHANGES = [_strided, _exchanged, _removed, _own_forward, _own_class, _parametrized, _hooked, _momentum]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("edits", [(), (swap_head(10),)], ids=repr)
def test_a_model_changed_by_hand_is_none_of_them(change, edits):
    model = skeleton(models.resnet18)
    change(model)
    if edits:
        model = models.resnet18()
        change(model)
        model = pipe(model, *edits)
    assert known(model, *edits) is None


def test_a_model_changed_after_its_edits_is_none_of_them():
    model = pipe(models.resnet18(), *EDITS)
    model.layer1[0].conv1 = nn.Conv2d(64, 64, 3, padding=2, bias=False)
    assert known(model, *EDITS) is None


def test_models_that_no_source_has():
    assert known(nn.Sequential(nn.Linear(3, 2))) is None
    assert known(pipe(nn.Sequential(nn.Linear(3, 2)), swap_head(4)), swap_head(4)) is None
    wide = models.ResNet(models.resnet.BasicBlock, [2, 2, 2, 1])
    assert known(wide) is None


def test_a_configuration_that_is_none():
    model = skeleton(lambda: timm.create_model("test_resnet"))
    model.pretrained_cfg = {"architecture": "test_resnet_of_tomorrow"}
    assert known(model) is None

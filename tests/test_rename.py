"""Rename: where modules go, what follows them, what stays, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision.models as tv
from checks import run, same
from fingerprint import changes, fingerprint
from nets import ByData, ByMode, Caching, Listed, Residual, Small
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from torchgraft import explain, inject, pipe, replace, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.edits.rename import rename
from torchgraft.errors import NameClashError, OptionError, TargetError, TraceError
from torchgraft.graph.level import state_of


def mapped(key: str, mapping: dict[str, str]) -> str:
    """Rename a key of a state dict, by the longest path that it starts with."""
    best = max((old for old in mapping if f"{key}.".startswith(f"{old}.")), key=len, default=None)
    return key if best is None else mapping[best] + key[len(best) :]


def check(model: nn.Module, mapping: dict[str, str], x: torch.Tensor | None = None) -> nn.Module:
    """Rename and rename back; names, bits, modes and outputs follow."""
    before = fingerprint(model)
    result = pipe(model, rename(mapping))
    assert not changes(before, fingerprint(model))
    assert list(result.state_dict()) == [mapped(key, mapping) for key in model.state_dict()]
    assert all(
        a.equal(b) for a, b in zip(result.state_dict().values(), model.state_dict().values(), strict=True)
    )
    modes = {mapped(name, mapping): m.training for name, m in model.named_modules()}
    assert modes.items() <= {name: m.training for name, m in result.named_modules()}.items()
    back = pipe(result, rename({new: old for old, new in mapping.items()}))
    assert [name for name, _ in back.named_modules()] == [name for name, _ in model.named_modules()]
    assert list(back.state_dict()) == list(model.state_dict())
    for mode in (False, True) if x is not None else ():
        expected = run(copy.deepcopy(model), x, mode=mode)
        assert same(run(copy.deepcopy(result), x, mode=mode), expected)
        assert same(run(back, x, mode=mode), expected)
        assert same(run(pickle.loads(pickle.dumps(result)), x, mode=mode), expected)
    return result


MAPPINGS = [
    {"layer4": "stage4", "fc": "head"},
    {"layer1": "layer2", "layer2": "layer1"},
    {"conv1": "bn1", "bn1": "relu", "relu": "conv1"},
    {"layer4": "body.layer4"},
    {"layer4": "layer4.inner"},
    {
        "conv1": "stem.conv",
        "bn1": "stem.norm",
        "layer1": "body.0",
        "layer2": "body.1",
        "layer3": "body.deep.2",
    },
    {"layer4": "stage4", "layer4.0": "stage4.first", "layer4.0.conv1": "stage4.first.a"},
    {"layer2.0.downsample": "layer2.0.project", "layer2.0.downsample.0": "layer2.0.project.conv"},
    {"avgpool": "head.pool", "fc": "head.fc"},
    {"layer1.0": "layer1.one"},
    {"fc": "fc"},
]


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_resnet(mapping):
    torch.manual_seed(0)
    model = tv.ResNet(Bottleneck, [2, 1, 1, 1], width_per_group=4, num_classes=5)
    check(model, mapping, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("mobilenet_v2", {"features.0": "features.stem", "features.0.0": "features.stem.conv", "classifier.1": "classifier.fc"}),
        ("densenet121", {"features.denseblock1.denselayer1": "features.denseblock1.first", "classifier": "head"}),
        ("googlenet", {"aux1": "aux.one", "aux2": "aux.two", "fc": "head"}),
        ("vit_b_16", {"encoder.layers.encoder_layer_0": "encoder.layers.0", "heads.head": "heads.fc", "encoder.ln": "encoder.norm"}),
        ("swin_t", {"features.1.0.attn": "features.1.0.attention", "head": "fc"}),
        ("regnet_y_400mf", {"trunk_output": "body", "stem": "root", "fc": "head.fc"}),
        ("timm/vit_tiny_patch16_224", {"blocks": "encoder.layers", "patch_embed": "stem"}),
        ("timm/convnext_tiny", {"stages.3": "stages.last", "stages.3.blocks": "stages.last.units", "head.fc": "head.out"}),
    ],
)  # fmt: skip
def test_models(name, mapping):
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        if name.startswith("timm/"):
            import timm

            options = {"depth": 2} if "vit" in name else {}
            model = timm.create_model(name.removeprefix("timm/"), **options)
        else:
            model = tv.get_model(name, **options)
    result = pipe(model, rename(mapping))
    assert list(result.state_dict()) == [mapped(key, mapping) for key in model.state_dict()]
    back = pipe(result, rename({new: old for old, new in mapping.items()}))
    assert list(back.state_dict()) == list(model.state_dict())
    x = torch.empty(2, 3, 224, 224, device=next(model.parameters()).device)
    assert result.eval()(x).shape == (2, 1000)


def test_places_and_new_containers(small):
    result = pipe(small.eval(), rename({"stem": "body.stem", "stage": "body.stage", "fc": "head"}))
    assert [name for name, _ in result.named_children()] == ["body", "unused", "head"]
    assert [name for name, _ in result.body.named_children()] == ["stem", "stage"]
    assert type(result.body) is nn.Module
    assert not result.body.training
    assert type(result.body.stage[0]) is Residual  # nothing was opened that need not be
    assert [n.target for n in result.graph.nodes if n.op == "call_module"] == [
        "body.stem",
        "body.stage",
        "head",
    ]
    again = pipe(result, rename({"body": "trunk", "body.stage.0": "trunk.stage.first"}))
    assert [n.target for n in again.graph.nodes if n.op == "call_module"] == [
        "trunk.stem",
        "trunk.stage",
        "head",
    ]
    assert "trunk.stage.first.bn.weight" in again.state_dict()
    out = pipe(again, rename({"trunk.stem": "trunk.root"}))
    assert [name for name, _ in out.named_children()] == ["trunk", "unused", "head"]


def test_an_existing_container_does_not_call_what_is_put_into_it(images):
    model = Small().eval()
    result = pipe(model, rename({"fc": "stage.fc"}))
    assert same(run(result, images, mode=False), run(model, images, mode=False))
    assert list(result.stage._modules) == ["0", "1", "fc"]
    back = pipe(result, rename({"stage.fc": "fc"}))
    assert set(back.state_dict()) == set(model.state_dict())


def test_lists_and_their_owners():
    x = torch.randn(2, 3, 6, 6)
    check(Listed(), {"units.0": "units.first", "units.1.bn": "units.1.norm"}, x)
    check(Listed(), {"units": "blocks"}, x)
    result = check(Listed(), {"units.0": "first", "units.1": "second"}, x)
    assert list(result._modules) == ["units", "first", "second", "fc"]
    assert type(result.units) is nn.ModuleList  # not one that rename made


class Tied(nn.Module):
    """A tied weight, a module with two names, a parameter that is read through a child."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.act = self.again = nn.PReLU()
        self.held = nn.ParameterDict({"scale": nn.Parameter(torch.ones(4))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.one(x)) + self.again(F.linear(x, self.two.weight, self.two.bias))
        return x * self.held["scale"]


def test_ties_shared_modules_and_parameters_that_a_forward_reads():
    x = torch.randn(2, 4)
    result = check(Tied(), {"two": "inner.two", "again": "other", "held": "more.held"}, x)
    assert result.inner.two.weight is result.one.weight
    assert result.act is result.other
    assert check(Tied(), {"act": "first"}, x).first is not None
    assert check(Tied(), {"act": "again", "again": "act"}, x).act is not None


def test_a_part_of_a_shared_container_moves_at_each_of_its_places():
    unit = Residual(3)
    model = nn.Sequential(unit, nn.ReLU(), unit)
    with pytest.raises(TargetError) as caught:
        pipe(model, rename({"0.bn": "0.norm"}))
    assert caught.value.found == "0, 2"
    assert caught.value.write == 'rename({"0.bn": "0.norm", "2.bn": "2.norm"})'
    result = pipe(model, eval(caught.value.write))
    assert result[0].norm is result[2].norm
    x = torch.randn(2, 3, 5, 5)
    assert same(run(result, x, mode=False), run(model, x, mode=False))
    with pytest.raises(TargetError, match="leaves or enters"):
        pipe(model, rename({"1": "0.act"}))
    assert list(pipe(model, rename({"2": "3"})).state_dict())[-1].startswith("3.")


SEEN = []


def note(module, args, output):
    SEEN.append(type(module).__name__)


def test_modes_hooks_and_the_difference_between_modes():
    model = ByMode()
    model.body.register_forward_hook(note)
    model.aux.eval()
    result = check(model, {"body": "trunk", "aux": "heads.aux", "fc": "heads.fc"}, torch.randn(2, 3, 8, 8))
    SEEN.clear()
    result.eval()(torch.randn(1, 3, 8, 8))
    assert SEEN == ["Conv2d"]


class ReadsMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x), 0.5, self.drop.training)


def test_a_mode_that_a_forward_reads_is_read_at_the_new_path():
    result = check(ReadsMode(), {"drop": "inner.noise"}, torch.randn(8, 4))
    assert state_of(result).patterns[0].inlined == {"inner.noise"}


def test_other_edits_before_and_after(small, images):
    steps = (
        wrap("stem", se(neutral=False)), rename({"stem": "root", "stage": "body.stage"}), wrap("body.stage", se),
        inject("root", nn.ReLU), replace("body.stage.0.relu", nn.SiLU), swap_head(3), rename({"fc": "head"}),
    )  # fmt: skip
    result = pipe(small, *steps, seed=0)
    assert list(result._modules) == ["root", "root_re_lu", "stem_se", "body", "unused", "head"]
    one_by_one = small
    for step in steps:
        one_by_one = pipe(one_by_one, step, seed=0)
    assert list(one_by_one.state_dict()) == list(result.state_dict())
    assert result(images).shape == (2, 3)
    opened = explain(pipe(small, wrap("stage", se), rename({"stage": "body"}))).opened
    assert "body" in opened
    assert "stage" not in opened


# What cannot be followed ----------------------------------------------------------------------


def test_a_forward_that_cannot_be_followed_and_uses_the_module_stops_it():
    model = nn.Sequential(ByData(), nn.ReLU())
    before = fingerprint(model)
    for mapping in ({"0.fc": "0.head"}, {"1": "2", "0.conv": "0.a.conv"}):
        with pytest.raises(TraceError) as caught:
            pipe(model, rename(mapping))
        assert caught.value.module == "0"
    assert not changes(before, fingerprint(model))
    assert list(pipe(model, rename({"0": "first"})).state_dict())[0] == "first.conv.weight"


class Outer(Caching):
    """A root that cannot be followed, around one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.deep = Small(), Small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        return self.body(x) + self.deep.fc(self.deep.stage(self.deep.stem(x)).mean((2, 3)))


def test_inside_a_root_that_cannot_be_followed(images):
    model = Outer()
    result = check(model, {"body.unused": "body.more", "body.stage.0.bn": "body.stage.0.norm"}, images)
    assert isinstance(result, Outer)
    with pytest.raises(TraceError):
        pipe(model, rename({"deep.fc": "deep.head"}))  # the root calls it as well
    with pytest.raises(TraceError):
        pipe(model, rename({"body": "trunk"}))


# Refusals and the value itself ------------------------------------------------------------------


def refused(kind: type[Exception], model: nn.Module, mapping: dict[str, str]) -> Exception:
    before = fingerprint(model)
    with pytest.raises(kind) as caught:
        pipe(model, rename(mapping))
    assert not changes(before, fingerprint(model))
    return caught.value


def test_names_that_are_taken(small):
    error = refused(NameClashError, small, {"stage": "fc"})
    assert error.summary == '"fc" is already used in the root'
    assert error.write == 'rename({"stage": "fc_1"})'
    for new in ("fc.weight", "fc.weight.inner", "forward", "training", "num_classes", "graph", "stem"):
        refused(NameClashError, small, {"stage": new})
    refused(NameClashError, small, {"stage": "fc", "stem": "stage"})


def test_paths_that_are_not_there(small):
    error = refused(TargetError, small, {"stem": "root", "stge": "body"})
    assert error.near[0] == "stage"
    assert error.write == 'rename({"stem": "root", "stage": "body"})'
    refused(TargetError, small, {"fc.weight": "fc.w"})


def test_paths_outside_a_level_that_uses_the_module(small):
    error = refused(TargetError, small, {"stage.0.conv1": "conv1"})
    assert error.summary == '"stage.0.conv1" cannot leave "stage.0", whose forward uses it'
    assert error.write == 'rename({"stage.0.conv1": "stage.0.conv1"})'
    refused(TargetError, small, {"stage.0": "first"})
    refused(TargetError, small, {"stage": "body", "stage.0.conv1": "stage.0.conv1"})
    pipe(small, rename({"stage": "body", "stage.0.conv1": "body.0.a"}))
    pipe(small, rename({"unused": "stage.1.extra"}))


@pytest.mark.parametrize(
    "mapping",
    [
        {}, "fc", None, [("a", "b")], {"a": "b-c"}, {"a": "class"}, {"a": ""}, {"a": "b..c"}, {"a": ".b"},
        {"": "a"}, {"a": 3}, {3: "a"}, {"a": "c", "b": "c"}, {"a": "b c"}, {"a": "1a"},
    ],
)  # fmt: skip
def test_mappings_that_cannot_be_meant(mapping):
    with pytest.raises(OptionError) as caught:
        rename(mapping)
    assert caught.value.asked.startswith("rename(")


def test_it_is_a_value():
    step = rename({"layer4": "stage4", "fc": "head"})
    assert repr(step) == 'rename({"layer4": "stage4", "fc": "head"})'
    assert eval(repr(step)) == step == pickle.loads(pickle.dumps(step)) == copy.deepcopy(step)
    other = rename({"fc": "head", "layer4": "stage4"})
    assert step == other
    assert hash(step) == hash(other)
    assert step != rename({"layer4": "stage4"})
    assert repr(rename({'a"b': "c"})) == 'rename({"a\\"b": "c"})'

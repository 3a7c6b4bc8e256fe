"""Features: values from anywhere, what is left of the model, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from checks import run, same
from fingerprint import changes, fingerprint
from nets import Listed, Small
from torch import nn
from torch.nn import functional as F
from torchvision.models import (
    densenet121,
    get_model,
    googlenet,
    resnet18,
    swin_t,
    vit_b_16,
)
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation._utils import _SimpleSegmentationModel
from torchvision.models.segmentation.fcn import FCNHead
from zoo import enliven

from torchgraft import at, features, freeze, inject, node, op, pipe, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.errors import LayoutError, OptionError, SpecialisedError, TargetError, TraceError
from torchgraft.graph.deep.axes import Layout
from torchgraft.graph.draft import Draft
from torchgraft.graph.taps.layouts import fold, gather
from torchgraft.graph.taps.measured import turn_for
from torchgraft.recipe import parse


def hooked(model: nn.Module, paths: list[str], x: torch.Tensor, *, mode: bool) -> dict[str, torch.Tensor]:
    """Run the model and take copies of what modules give, at the time at which they give it."""
    model, seen = copy.deepcopy(model), {}
    for path in paths:
        keep = lambda m, args, output, path=path: seen.__setitem__(path, output.clone())
        model.get_submodule(path).register_forward_hook(keep)
    run(model, x, mode=mode)
    return {path: seen[path] for path in paths}


def copies(model: nn.Module) -> list[str]:
    """Name what the levels of a model copy."""
    return [
        f"{path}.{n.args[0].name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, torch.fx.GraphModule)
        for n in module.graphs[0].nodes
        if n.target == "clone"
    ]


def check(model: nn.Module, paths: list[str], x: torch.Tensor) -> nn.Module:
    """Compare maps with hooks on the original in both modes, alone and beside the output."""
    alone = features(*paths, layout="native")(model)
    beside = features(*paths, layout="native", keep_output=True)(model)
    for mode in (False, True):
        wanted = hooked(model, paths, x, mode=mode)
        got = run(copy.deepcopy(alone), x, mode=mode)
        assert list(got) == paths
        assert same(dict(got), wanted)
        output, maps = run(copy.deepcopy(beside), x, mode=mode)
        assert same(output, run(copy.deepcopy(model), x, mode=mode))
        assert same(dict(maps), wanted)
    missing, unexpected = alone.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert set(unexpected) == set(model.state_dict()) - set(alone.state_dict())
    return alone


FAMILIES = {
    "alexnet": ["features.0", "features.5", "avgpool"],
    "convnext_tiny": ["features.1", "features.2.0", "features.5.8.block.0"],
    "densenet121": ["features.norm0", "features.denseblock2.denselayer3", "features.transition2.norm"],
    "efficientnet_b0": ["features.1", "features.3.1.block.0", "features.3.1.stochastic_depth"],
    "googlenet": ["inception3b", "inception4a.branch2.0.bn", "inception4e"],
    "mobilenet_v3_small": ["features.3", "features.8.block.2.fc1", "features.12"],
    "regnet_y_400mf": ["trunk_output.block2", "trunk_output.block3.block3-1.f.se"],
    "resnet50": ["layer2", "layer1.0.bn3", "layer4.1.conv1"],
    "shufflenet_v2_x0_5": ["stage2", "stage3.1.branch2.4"],
    "squeezenet1_1": ["features.3", "features.6.squeeze", "classifier.1"],
    "swin_t": ["features.3", "features.1.1.attn", "norm"],
    "vgg11_bn": ["features.5", "features.14"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_hooks_in_both_modes(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = enliven(get_model(name, weights=None, **options))
    check(model, FAMILIES[name], torch.randn(2, 3, 64, 64))


def test_names_order_and_what_is_left():
    model = resnet18().eval()
    result = features("layer3.0.add", "layer1", "x")(model)
    maps = result(torch.randn(1, 3, 64, 64))
    assert type(maps) is OrderedDict
    assert [(name, tuple(map_.shape[1:])) for name, map_ in maps.items()] == [
        ("layer3.0.add", (256, 4, 4)),
        ("layer1", (64, 16, 16)),
        ("x", (3, 64, 64)),
    ]
    assert [name for name, _ in result.named_children()] == [
        "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3",
    ]  # fmt: skip
    assert list(result.layer3._modules) == ["0"]
    kept = [key for key in model.state_dict() if key in result.state_dict()]
    assert list(result.state_dict()) == kept
    assert type(result.layer1) is type(model.layer1)  # not opened


def test_a_level_with_several_values_is_taken_apart(images):
    model = Small().eval()
    result = features("stage.1.add", node("stage.0.relu"), "stage.0.relu_1", "stage", "stem")(model)
    maps = result(images)
    unit, stem = model.stage[0], model.stem(images)
    first = unit.relu(unit.conv1(F.relu(stem)))
    assert maps["stage.0.relu"].equal(first)
    assert maps["stage.0.relu_1"].equal(unit(F.relu(stem)))
    assert maps["stage"].equal(F.relu(maps["stage.1.add"]))
    assert maps["stem"].equal(stem)
    assert not copies(features("stage.1.add", "stage", "stem")(model))
    assert "fc" not in result._modules
    assert "unused" not in result._modules


def test_the_same_value_under_two_names(images, small):
    result = features("stage", "stage.1", names=("a", "b"))(small)
    maps = result(images)
    assert maps["a"] is maps["b"]
    again = features("stage.1.add", node("stage.1.add"), names=("c", "d"))(small)
    maps = again(images)
    assert maps["c"] is maps["d"]


class Writes(nn.Module):
    """Values that are written into after they were made, in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.one = nn.Conv2d(4, 4, 1)
        self.two = nn.Conv2d(4, 4, 1)
        self.three = nn.Conv2d(4, 4, 1)
        self.four = nn.Conv2d(4, 4, 1)
        self.inner = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.five = nn.Conv2d(4, 4, 1)
        self.kept = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x))
        x = self.one(x)
        x += 1
        x = self.two(x)
        torch.relu_(x.flatten(1))
        x = self.three(x)
        x[:, 0] = 0
        x = self.inner(self.four(x))
        x = self.five(F.relu(x, True))
        return self.kept(x)


def test_a_value_that_is_written_into_later_is_copied():
    model, x = Writes(), torch.randn(2, 3, 8, 8)
    names = ["conv", "one", "two", "three", "four", "inner", "inner.1", "five", "kept"]
    result = check(model, names, x)
    assert copies(result) == ["conv", "one", "two", "three", "four", "inner"]
    assert not copies(features("kept", "five")(model))
    assert not copies(
        features("conv", "act", names=("a", "b"))(nn.Sequential(OrderedDict(conv=model.conv, act=nn.ReLU())))
    )


def test_what_is_written_into_is_not_copied_where_nothing_does_so_any_more():
    model = Writes()
    assert copies(features("three")(model)) == []  # what wrote into it is gone
    assert copies(features("three", keep_output=True)(model)) == ["three"]


class Behind(nn.Module):
    """A caller that writes into what a level returns, and into what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity())
        self.flat = Views()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part(x)
        x.mul_(2)
        y = self.last(x)
        z = self.flat(y)
        y += 1
        return z.sum() + y


class Views(nn.Module):
    """A view of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[:, :, 1:].mean(2)


def test_memory_is_followed_through_callers_and_views():
    model, x = Behind(), torch.randn(2, 3, 4, 4)
    result = features("part.0", "flat.getitem", "flat.mean", keep_output=True)(model)
    assert copies(result) == ["part._0", "flat.getitem"]
    y = model.last(model.part(x) * 2)
    maps = result(x)[1]
    assert maps["part.0"].equal(model.part(x))
    assert maps["flat.getitem"].equal(y.flatten(2)[:, :, 1:])
    assert result(x)[0].equal(model(x))


class Aside(nn.Module):
    """Steps that are run for what they write alone, and others that write nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.act = nn.ReLU(inplace=True)
        self.aside = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x)
        other = self.aside(x)
        self.act(x[:, 1:])
        x = self.last(x)
        x.zero_()
        return x, other


def test_steps_that_write_for_others_stay():
    model, x = Aside(), torch.randn(2, 3, 4, 4)
    result = features("last")(model)
    assert list(result._modules) == ["conv", "act", "last"]
    seen = hooked(model, ["last"], x, mode=False)["last"]
    assert result(x)["last"].equal(seen)


def test_a_hook_may_write_so_the_value_before_it_is_copied(images, small):
    small.stage.register_forward_pre_hook(lambda m, args: args[0].zero_())
    result = features("relu", keep_output=True)(small)
    assert copies(result) == ["relu"]
    assert result(images)[1]["relu"].abs().sum() > 0


class ModesApart(nn.Module):
    """Another forward in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.body = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> object:
        x = self.stem(x)
        aux = self.aux(x) if self.training else None
        x = F.dropout(self.body(x), 0.5, training=self.training)
        return (x, aux) if self.training else x


def test_both_graphs_of_a_level_with_two_are_edited():
    model = ModesApart()
    result = check(model, ["stem", "body"], torch.randn(2, 3, 4, 4))
    assert "aux" not in result._modules
    inside = features("body.inner", keep_output=True)
    nested = nn.Sequential(OrderedDict(part=ModesApart()))
    nested.part.body = nn.Sequential(OrderedDict(inner=nn.Conv2d(4, 4, 1), last=nn.ReLU()))
    check(nested, ["part.body.inner", "part.stem"], torch.randn(2, 3, 4, 4))
    with pytest.raises(TargetError) as caught:
        features("aux")(model)
    assert str(caught.value) == (
        "'aux' never runs in evaluation, and the maps have to be the same in both modes\n"
        '  asked  features("aux")\n'
        "  found  the forward of the root is another one in evaluation\n"
        "  write  a target that runs in both modes"
    )
    with pytest.raises(TargetError, match="'aux' never runs in evaluation"):
        features("aux.0")(model)
    assert inside.keep_output


def test_auxiliary_heads_go():
    model = googlenet(weights=None, init_weights=False, aux_logits=True)
    result = features("inception4b", "inception5b")(model)
    assert not [name for name in result._modules if name.startswith(("aux", "fc", "avgpool"))]


def test_a_frozen_norm_stays_frozen_and_modes_are_kept():
    model = pipe(resnet18().train(), freeze("layer1"))
    result = features("layer1", "layer2")(model)
    modes = {path: module.training for path, module in result.named_modules()}
    assert not modes["layer1.0.bn1"]
    assert modes["layer2.0.bn1"]
    assert not result.train().layer1[0].bn1.training
    assert not any(p.requires_grad for p in result.layer1.parameters())


def test_the_model_given_is_only_read():
    model = resnet18().train()
    before = fingerprint(model)
    features("layer2", "layer1.0.add")(model)
    with pytest.raises(TargetError):
        features("layer2", "layer9")(model)
    assert not changes(before, fingerprint(model))


def test_containers_that_are_called_one_by_one(images):
    model = Listed().eval()
    result = features("units.0", "units")(model)
    assert result(images)["units"].equal(model.units[1](model.units[0](images)))
    alone = features("units.0")(model)
    assert list(alone.state_dict()) == [key for key in model.state_dict() if key.startswith("units.0.")]


class Twice(nn.Module):
    """A level that is called twice, and a module with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.other = self.part[0]
        self.several = Several()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.other(self.part(self.part(x)))
        a, b = self.several(x)
        return a + b + x.shape[1]


class Several(nn.Module):
    """Two values, one of them a tuple."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one, two, _ = x.chunk(3, 1)
        return one, two


def refused(*targets: object, model: nn.Module | None = None, **options: object) -> str:
    with pytest.raises((TargetError, OptionError, LayoutError)) as caught:
        features(*targets, **options)(model or Twice())
    return str(caught.value)


def test_what_is_made_several_times_is_refused():
    assert refused("part") == (
        "'part' is called 2 times, so there are 2 values\n"
        '  asked  features("part")\n'
        "  found  part, part_1\n"
        '  write  features(node("part"))'
    )
    assert refused("part.1") == (
        "'part' is called 2 times, so what is in it is made 2 times\n"
        '  asked  features("part.1")\n'
        "  found  part, part_1\n"
        '  write  node("part")'
    )
    assert refused("other") == (
        "'other' is called in 2 places, so there are several values\n"
        '  asked  features("other")\n'
        "  found  part.0, other\n"
        '  write  features(node("part.0"))'
    )
    x = torch.randn(1, 3, 4, 4)
    model = Twice()
    assert features("part_1")(model)(x)["part_1"].equal(model.part(model.part(x)))


def test_what_is_no_tensor_is_refused():
    assert refused("several") == (
        "'several' is no tensor\n"
        '  asked  features("several")\n'
        "  found  a tuple of 2 items\n"
        '  write  one of its items: "getitem"'
    )
    assert "a tuple of 3 items" in refused("several.chunk")
    assert "found  a Size of 4 items" in refused("getattr", model=Twice())
    assert features("several.getitem_1", "getitem")(Twice())(torch.randn(1, 3, 4, 4))["getitem"].shape[1] == 1


def test_unknown_names_are_no_patterns():
    said = refused("layer1.0.conv(1|2)", model=resnet18())
    assert said.startswith('"layer1.0.conv(1|2)" is no module and no node of this model')
    assert "near   layer1.0.conv2, layer1.0.conv1" in said


def test_hooks_that_would_see_the_maps_are_refused(small, images):
    small.stage.register_forward_hook(lambda m, args, output: output * 2)
    assert features("stage")(small)(images)["stage"].equal(
        hooked(small, ["stage"], images, mode=False)["stage"]
    )
    assert refused("stage.0.add", model=small) == (
        "stage has a hook that sees its output, and with the maps that is another one\n"
        '  asked  features("stage.0.add")\n'
        "  found  <lambda>\n"
        "  write  a target outside of it, or the hook on the result"
    )
    small.register_forward_hook(lambda m, args, output: None)
    assert "the root has a hook" in refused("stem", model=small)


def test_options_are_checked():
    with pytest.raises(OptionError, match="one way"):
        features("layer1", strides=(8,))
    with pytest.raises(OptionError, match="one way"):
        features(stages=(1,), blocks=(1,))
    for wrong in ({"strides": 8}, {"strides": (0,)}, {"stages": ()}, {"blocks": (1, 1)}, {"blocks": (True,)}):
        with pytest.raises(OptionError, match="each of them once"):
            features(**wrong)
    with pytest.raises(OptionError) as caught:
        features({"layer1": "a", "layer2": "b"})
    assert caught.value.write == '"layer1", "layer2", names=("a", "b")'
    with pytest.raises(OptionError, match="two maps would have the name"):
        features("layer1", "layer1")
    with pytest.raises(OptionError, match="two maps would have the name a"):
        features("layer1", "layer2", names=("a", "a"))
    with pytest.raises(OptionError, match="two maps would have the name stage"):
        features("stage", "stag*")(Small())
    with pytest.raises(OptionError, match="names are a tuple"):
        features("layer1", names="a")
    with pytest.raises(OptionError) as caught:
        features("layer1", layout="nchw")
    assert caught.value.near == ("NCHW",)
    assert caught.value.write == 'features("layer1", layout="NCHW")'
    with pytest.raises(OptionError, match="keep_output is True or False"):
        features("layer1", keep_output=1)
    with pytest.raises(OptionError) as caught:
        features("stem", "stage", names=("a",))(Small())
    assert caught.value.summary == "there are 2 maps and 1 names"


@pytest.mark.parametrize(
    "step",
    [
        features("layer1", "layer2.0.add", names=("a", "b"), layout="native", keep_output=True),
        features(at("layer1.*") | "layer2"),
        features(strides=(8, 16)),
        features(stages=(-3, -1), names=("a", "b")),
        features(blocks=(2, 5)),
        features(),
    ],
    ids=repr,
)
def test_it_is_a_value(step):
    assert parse(repr(step)) == step == pickle.loads(pickle.dumps(step))
    assert hash(parse(repr(step))) == hash(step)


def test_selectors_give_a_map_for_each_site():
    result = features(at("layer1.*") | op("flatten"))(resnet18())
    assert list(result(torch.zeros(2, 3, 64, 64))) == ["layer1.0", "layer1.1", "flatten"]


def test_a_result_is_a_model_like_any_other():
    model, x = resnet18().eval(), torch.randn(2, 3, 64, 64)
    result = features("layer2", "layer1.0.bn1")(model)
    wanted = dict(result(x))
    assert same(dict(pickle.loads(pickle.dumps(result))(x)), wanted)
    assert same(dict(copy.deepcopy(result)(x)), wanted)
    assert same(dict(torch.compile(result, fullgraph=True, backend="eager")(x)), wanted)
    program = torch.export.export(result, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert same(dict(program.module()(x)), wanted)
    assert program.module()(torch.randn(5, 3, 64, 64))["layer2"].shape[0] == 5


def test_it_goes_together_with_other_edits():
    model, x = resnet18().eval(), torch.randn(1, 3, 64, 64)
    after = pipe(model, features("layer2", "layer1.0.add"), freeze("layer1"), wrap("layer2", se))
    assert "layer2.se.fc1.weight" in after.state_dict()
    assert same(dict(after(x)), dict(features("layer2", "layer1.0.add")(model)(x)))
    before = pipe(model, wrap("layer1", se), inject("layer2", nn.ReLU), swap_head(3))
    result = features("layer1", "layer2_re_lu")(before)
    assert "fc" not in result._modules
    assert same(
        list(result(x).values()), list(hooked(before, ["layer1", "layer2_re_lu"], x, mode=False).values())
    )
    twice = pipe(model, features("layer3", "layer2"), features("layer2"))
    assert list(twice(x)) == ["layer2"]
    assert "layer3" not in twice._modules


def test_gradients_reach_what_is_left():
    result = features("layer2.0.add", "layer1.0.bn1")(resnet18())
    sum(map_.sum() for map_ in result(torch.randn(2, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None for p in result.parameters())


@pytest.mark.parametrize("size", [(33, 47), (64, 96), (71, 71)])
def test_every_size_that_the_model_takes(size):
    model, x = resnet18().eval(), torch.randn(1, 3, *size)
    paths = ["layer1", "layer3.0.bn1", "layer4"]
    assert same(dict(features(*paths)(model)(x)), hooked(model, paths, x, mode=False))


class BySizes(nn.Module):
    """Decides on sizes, for its first layer and for its last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x if x.shape[-1] > 8 else x * 2)
        return self.two(x) if x.shape[-2] > 8 else x


def test_checks_stay_for_what_they_decide_on():
    result = features("one")(BySizes(), example=torch.zeros(1, 3, 16, 16))
    assert result(torch.zeros(1, 3, 4, 16))["one"].shape == (1, 3, 4, 16)
    with pytest.raises(SpecialisedError, match="this input decides otherwise"):
        result(torch.zeros(1, 3, 16, 4))


class Grad(nn.Module):
    """A part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.one(x)
        with torch.no_grad():
            y = self.two(x)
        return self.two(x + y)


def test_blocks_without_gradients_stay_around_what_is_in_them():
    result = features("one", keep_output=False)(Grad())
    assert not result(torch.zeros(1, 3, 4, 4))["one"].requires_grad
    assert torch.is_grad_enabled()
    assert "two" not in result._modules


def test_maps_are_turned_unless_told_otherwise():
    model, x = swin_t().eval(), torch.randn(1, 3, 64, 64)
    seen = hooked(model, ["features.3"], x, mode=False)["features.3"]
    maps = features("features.3", "features.3.0.add", "avgpool", "head")(model)(x)
    assert maps["features.3"].equal(seen.permute(0, 3, 1, 2))
    assert maps["features.3.0.add"].shape == (1, 192, 8, 8)
    assert maps["avgpool"].shape == (1, 768, 1, 1)
    assert maps["head"].shape == (1, 1000)


def test_tokens_are_laid_out_on_their_grid():
    model, x = vit_b_16(image_size=64).eval(), torch.randn(2, 3, 64, 64)
    path = "encoder.layers.encoder_layer_3"
    seen = hooked(model, [path], x, mode=False)[path]
    assert run(features(path, layout="native")(model), x, mode=False)[path].equal(seen)
    assert run(features(path)(model), x, mode=False)[path].equal(
        seen[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    )
    inner = features(f"{path}.add", f"{path}.add_1", names=("a", "b"))(model)
    assert run(inner, x, mode=False)["b"].equal(seen[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))


def test_folding_goes_by_the_image_at_hand():
    tokens = torch.arange(13.0).reshape(1, 13, 1)
    assert fold(tokens, torch.zeros(1, 3, 48, 64), 1, (16, 16))[0, 0].tolist() == [
        [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12],
    ]  # fmt: skip
    assert fold(tokens, torch.zeros(1, 3, 47, 63), 1, (16, 16)).shape == (1, 1, 3, 4)
    with pytest.raises(SpecialisedError) as caught:
        fold(tokens, torch.zeros(1, 3, 64, 64), 1, (16, 16))
    assert str(caught.value) == (
        "12 tokens are no grid on an image of 64x64\n"
        "  found  4x4 places of 16x16\n"
        '  write  layout="native", which leaves tokens as they are'
    )


def test_layouts_that_were_measured():
    assert turn_for(Layout("NCHW", 4, (2, 2), (8, 8))) is None
    assert turn_for(Layout("NC", 4)) is None
    assert turn_for(Layout("NHWC", 4, (2, 2), (8, 8))).order == (0, 3, 1, 2)
    assert turn_for(Layout("NCL", 4, (2, 2), (8, 8), 1)).order == (0, 2, 1)
    assert turn_for(Layout("NLC", 4, (2, 2), (8, 8), 0, (("w", 2, 1), ("h", 2, 1)))).parts


def test_by_stride_by_stage_and_by_block():
    model, x = resnet18().eval(), torch.randn(1, 3, 64, 64)
    assert [(k, v.shape[1]) for k, v in features(strides=(8, 16, 32))(model)(x).items()] == [
        ("8", 128), ("16", 256), ("32", 512),
    ]  # fmt: skip
    maps = features(stages=(-1, 0))(model)(x)
    assert [(k, v.shape[1]) for k, v in maps.items()] == [("-1", 512), ("0", 64)]
    assert list(features()(model)(x)) == ["2", "4", "8", "16", "32"]
    assert features(strides=(4,), names=("out",))(model)(x)["out"].shape == (1, 64, 16, 16)
    tokens = vit_b_16(image_size=32).eval()
    assert list(features()(tokens)(x[..., :32, :32])) == ["2", "5", "8", "11"]
    assert list(features(blocks=(0, -1))(tokens)(x[..., :32, :32])) == ["0", "-1"]
    assert refused(model=model, strides=(8, 64)) == (
        "this model has no maps of stride 64\n"
        "  asked  features(strides=(8, 64))\n"
        "  found  strides 2, 4, 8, 16, 32\n"
        "  write  features(strides=(2, 4, 8, 16, 32))"
    )
    assert refused(model=tokens, strides=(8,)).endswith("write  features(blocks=(2, 5, 8, 11))")
    assert refused(model=model, stages=(4,)) == (
        "this model has 4 stages, and none of number 4\n"
        "  asked  features(stages=(4,))\n"
        "  found  stages 0 to 3\n"
        "  write  features(stages=(0, 1, 2, 3))"
    )


def test_a_forward_that_cannot_be_followed_elsewhere():
    from nets import ByData

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rest = nn.Conv2d(3, 3, 1), ByData()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.conv(x))

    model, x = Around(), torch.randn(1, 3, 8, 8)
    output, maps = features("conv", keep_output=True)(model)(x)
    assert maps["conv"].equal(model.conv(x))
    assert output.equal(model(x))
    assert copies(features("conv", keep_output=True)(model)) == ["conv"]  # nobody can tell
    with pytest.raises(TraceError):
        features("rest.conv")(model)


def test_torchvisions_segmentation_takes_it():
    backbone = features(strides=(16,), names=("out",))(resnet18())
    model = _SimpleSegmentationModel(backbone, FCNHead(256, 5)).eval()
    assert model(torch.randn(1, 3, 64, 64))["out"].shape == (1, 5, 64, 64)
    assert issubclass(IntermediateLayerGetter, nn.Module)


def test_an_item_of_what_a_module_gives():
    model, x = Twice(), torch.randn(1, 3, 4, 4)
    output, maps = features("getitem_1", "getitem", keep_output=True)(model)(x)
    assert output.equal(model(x))
    one, two = model.several(model.other(model.part(model.part(x))))
    assert list(maps) == ["getitem_1", "getitem"]
    assert maps["getitem_1"].equal(two)
    assert maps["getitem"].equal(one)


def test_calls_are_counted_from_the_first():
    model, x = Twice(), torch.randn(1, 3, 4, 4)
    result = features(at("part").nth(1), names=("a",))(model)
    assert result(x)["a"].equal(model.part(model.part(x)))


class Inlined(nn.Module):
    """Reads the mode of a child that it does not call, behind its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Conv2d(3, 3, 1), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.body(x), self.drop.p, self.drop.training)


def test_a_child_whose_mode_was_read_goes_with_what_read_it():
    result = features("body")(Inlined())
    assert list(result._modules) == ["body"]
    assert result.train()(torch.ones(1, 3, 2, 2))["body"].equal(result.eval()(torch.ones(1, 3, 2, 2))["body"])
    check(nn.Sequential(OrderedDict(part=Inlined())), ["part.body"], torch.randn(1, 3, 2, 2))


class Bare(nn.Module):
    """Holds a parameter itself, and takes an input that nobody would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(7, 11, 3).unfold(0, 2, 1).mT * self.scale.view(3) @ self.other


def test_a_model_that_does_not_run_on_meta_tensors():
    result = features("unfold", "view", layout="native")(Bare())
    assert result(torch.arange(231.0))["unfold"].shape == (6, 11, 3, 2)
    assert not list(result.parameters())
    held = Bare()
    held.register_forward_pre_hook(lambda m, args: None)
    assert len(list(features("view", layout="native")(held).parameters())) == 2


class Lists(nn.Module):
    """Takes a list, and decides on what is in it; as dense layers do."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace), nn.Conv2d(3, 3, 1)

    def forward(self, held: list[torch.Tensor], *, more: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(held[0])) + more


class OfLists(nn.Module):
    """Passes values in lists and by keyword."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.stem, self.more, self.part = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Lists(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part([self.stem(x)], more=self.more(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_values_in_lists_and_by_keyword(inplace):
    model = OfLists(inplace=inplace)
    result = check(model, ["stem", "more", "part"], torch.randn(1, 3, 4, 4))
    assert copies(result) == (["stem"] if inplace else [])


class Alike(nn.Module):
    """A unit whose setting decides whether it writes."""

    def __init__(self, *, writes: bool, act: object = None) -> None:
        super().__init__()
        self.conv, self.writes, self.act = nn.Conv2d(3, 3, 1), writes, act or F.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mul_(2) if self.writes else x * 2
        return self.conv(self.act(x))


class Acts(nn.Module):
    """A unit that applies a function that it holds."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) * 2


def test_modules_of_one_class_are_told_apart_by_their_settings():
    units = [Alike(writes=False), Alike(writes=True), Acts(F.relu), Acts(torch.relu_), Alike(writes=False)]
    model = nn.Sequential(*units)
    result = check(model, ["0", "1", "2", "3", "4"], torch.randn(1, 3, 4, 4))
    assert copies(result) == ["_0", "_2"]


def test_dense_layers_write_into_nothing_that_they_are_given():
    with torch.device("meta"):
        model = densenet121()
    assert not copies(features("features.denseblock1", "features.denseblock2")(model))
    assert copies(features("features.norm0")(model)) == []
    assert copies(features("features.norm0", "features.pool0")(model)) == ["features.norm0"]


def test_tokens_that_run_unit_by_unit_are_put_in_their_places():
    """A map whose tokens were taken window by window is that map again; another number is an error."""
    image = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    units = image.reshape(2, 3, 4, 2, 3, 4).permute(0, 3, 5, 2, 4, 1).reshape(2, 96, 3)
    tokens = torch.cat([torch.zeros(2, 1, 3), units], 1)
    parts = (("h", 2, 1), ("w", 4, 1), ("h", 4, 2), ("w", 3, 4))
    assert torch.equal(gather(tokens, 1, parts), image)
    with pytest.raises(SpecialisedError, match="95 tokens are not the 96"):
        gather(tokens[:, :-1], 1, parts)


def test_a_model_whose_tokens_run_unit_by_unit_gives_maps():
    import timm

    model = timm.create_model("hiera_tiny_224").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        given = pipe(model, features(strides=(4, 8, 16, 32)))(x)
        wanted = model.forward_intermediates(x, indices=4, intermediates_only=True)
    assert [tuple(t.shape) for t in given.values()] == [tuple(t.shape) for t in wanted]
    for one, other in zip(given.values(), wanted, strict=True):
        assert torch.equal(one, other)


def test_what_a_forward_asserts_is_kept():
    """A size that the model refuses is refused by the extractor as well."""
    model = vit_b_16(image_size=32).eval()
    for made in (pipe(model), pipe(model, features(blocks=(0,)))):
        with pytest.raises(AssertionError, match="Wrong image height"):
            made(torch.zeros(1, 3, 48, 48))


class ByValue(nn.Module):
    """A root that decides on its input, around a part that does not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) if x.sum() > 0 else self.part(-x)


def test_below_a_root_that_cannot_be_followed_the_part_that_can_is_named():
    model, x = ByValue(Behind()), torch.randn(2, 3, 4, 4)
    for target in ("part.part", "part.part.0", "part.flat.flatten", "part.flat.mean"):
        for _ in range(2):  # what was tried once is remembered
            with pytest.raises(TraceError, match="the root ByValue cannot be followed") as caught:
                features(target)(model)
            assert type(caught.value) is TraceError
        write = caught.value.write
        assert write == f'pipe(model.get_submodule("part"), features("{target[5:]}"))'
        assert list(eval(write)(x)) == [target[5:]]
    with pytest.raises(TraceError) as caught:
        features("part")(model)
    assert "features" not in caught.value.write
    draft = Draft(model)
    for _ in range(2):
        with pytest.raises(TraceError):
            draft.calls("part")


def test_what_gives_no_tensor_is_not_advised():
    with pytest.raises(TraceError) as caught:
        features("part.several")(ByValue(Twice()))
    assert "features" not in caught.value.write


@pytest.mark.parametrize("targets", [("layer2",), ("layer2.0",), ("layer2.0.add",)])
def test_with_checkpointing_on_the_switch_is_named(targets):
    import timm

    model = timm.create_model("resnet18").eval()
    model.set_grad_checkpointing(True)
    with pytest.raises(TraceError) as caught:
        features(*targets)(model)
    assert type(caught.value) is TraceError
    assert caught.value.write == "model.set_grad_checkpointing(False) before"
    model.set_grad_checkpointing(False)
    x = torch.randn(1, 3, 64, 64)
    assert list(features(*targets)(model)(x)) == list(targets)


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "efficientnet_b0", "hrnet_w18_small"])
def test_models_of_timm_that_give_features_already(name):
    import timm

    model, x = timm.create_model(name, features_only=True).eval(), torch.randn(1, 3, 64, 64)
    strides = model.feature_info.reduction()[1:3]
    wanted = model(x)[1:3]
    got = features(strides=strides)(model)(x)
    assert [tuple(t.shape) for t in got.values()] == [tuple(t.shape) for t in wanted]
    assert all(a.equal(b) for a, b in zip(got.values(), wanted, strict=True))


def test_a_getter_of_intermediate_layers_and_a_backbone_of_detectors():
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    inner = IntermediateLayerGetter(resnet18(), {"layer2": "a", "layer4": "b"}).eval()
    x = torch.randn(1, 3, 64, 64)
    check(inner, ["layer3", "layer1.0.bn1"], x)
    assert features("layer2")(inner)(x)["layer2"].equal(inner(x)["a"])
    pyramid = BackboneWithFPN(resnet18(), {"layer2": "0", "layer4": "1"}, [128, 512], 16).eval()
    assert features("body.layer2")(pyramid)(x)["body.layer2"].equal(pyramid.body(x)["0"])
    assert [t.shape[-1] for t in features(strides=(8, 16))(pyramid)(x).values()] == [8, 4]


class Aliases(nn.Module):
    """Two views of one value, of which one is written into when both are there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        one, other = x.view(-1), x.flatten(1)
        one.mul_(2)
        return self.last(other.view_as(x))


def test_a_value_is_copied_where_another_view_of_its_memory_is_written_into():
    model, x = Aliases(), torch.randn(2, 3, 4, 4)
    output, maps = features("conv", "flatten", "last", layout="native", keep_output=True)(model)(x)
    assert maps["conv"].equal(model.conv(x))
    assert maps["flatten"].equal(model.conv(x).flatten(1))
    assert output.equal(model(x))


class Optional(nn.Module):
    """Takes something more that can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        x = self.conv(x)
        return self.last(x if scale is None else x * scale)


def test_a_call_of_another_kind_is_refused():
    model, x = Optional(), torch.randn(1, 3, 4, 4)
    result = features("conv", "last")(model)
    assert result(x)["last"].equal(model(x))
    with pytest.raises(SpecialisedError, match=r'features\("conv", "last"\) cannot be put in again'):
        result(x, torch.ones(1))
    other = pipe(model, features("last"), example=(x, torch.ones(1)))
    assert other(x, torch.full((1,), 2.0))["last"].equal(model(x, torch.full((1,), 2.0)))

"""Shapes without running: models, pipelines, tables, and what is said where an input does not fit."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import NamedTuple

import attrs
import pytest
import torch
from fingerprint import changes, fingerprint
from nets import ByData, ByMode, BySize, Caching, Listed, Residual, Small
from PIL import Image
from torch import nn
from torchvision import models
from torchvision import transforms as v1
from torchvision.ops import FeaturePyramidNetwork
from torchvision.transforms import v2

from torchgraft import adapt_input, align, output_shape, pipe, shapes, swap_head, tiers, wrap
from torchgraft.blocks import se
from torchgraft.errors import (
    AnalysisError,
    ModelError,
    OptionError,
    ShapeError,
    SpecialisedError,
    TargetError,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def real(value: object) -> object:
    """The shapes of what was really computed."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: real(item) for key, item in value.items()}
    return tuple(map(real, value)) if isinstance(value, (tuple, list)) else value


def raised(kind, function, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# What a model gives -------------------------------------------------------------------------


def test_a_preset_then_a_model():
    prepare = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.Normalize(MEAN, STD)])
    with torch.device("meta"):
        model = models.resnet50()
    assert output_shape(prepare, (1, 3, 480, 640)) == (1, 3, 224, 224)
    assert output_shape([prepare, model], (1, 3, 480, 640)) == (1, 1000)
    assert output_shape(v2.Compose([prepare, model]), (1, 3, 480, 640)) == (1, 1000)
    assert output_shape((prepare, model.forward), (1, 3, 480, 640)) == (1, 1000)


def test_a_model_with_another_head():
    assert output_shape(models.resnet18(num_classes=10), (2, 3, 224, 224)) == (2, 10)
    edited = pipe(Small(), wrap("stage", se), swap_head(7), adapt_input(1))
    assert output_shape(edited, (2, 1, 16, 16)) == (2, 7)


@pytest.mark.parametrize(
    "name", ["googlenet", "swin_t", "vit_b_16", "maxvit_t", "convnext_tiny", "shufflenet_v2_x0_5"]
)
@pytest.mark.parametrize("training", [False, True])
def test_as_when_run(name, training):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, **options).train(training)
    with torch.no_grad():
        expected = real(model(torch.zeros(2, 3, 224, 224)))
    assert output_shape(model, (2, 3, 224, 224), training=training) == expected


def test_the_mode_asked_for_counts_and_not_that_of_the_model():
    assert output_shape(ByMode().train(), (2, 3, 8, 8)) == (2, 5)
    assert output_shape(ByMode().eval(), (2, 3, 8, 8), training=True) == ((2, 5), (2, 5))
    assert shapes(ByMode().eval(), (2, 3, 8, 8), training=True)["aux"] == (2, 5)


class Pair(NamedTuple):
    one: torch.Tensor
    other: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Record:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]
    name: str = "record"


@dataclasses.dataclass
class Both(dict):
    logits: object

    def __post_init__(self):
        self["logits"] = self.logits


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: {"a": x, "b": {"c": x[0]}}, {"a": (2, 3), "b": {"c": (3,)}}),
        (lambda x: Pair(x, [x[0], x[0, 0]]), Pair((2, 3), [(3,), ()])),
        (lambda x: Record(x, (x.T,)), Record((2, 3), ((3, 2),))),
        (lambda x: (x, None, 7, "text"), ((2, 3), None, 7, "text")),
        (lambda x: None, None),
    ],
)
def test_nested_outputs_keep_their_structure(function, expected):
    found = output_shape(function, (2, 3))
    assert found == expected
    assert type(found) is type(expected)


def test_an_output_that_is_a_dict_and_a_dataclass():
    found = output_shape(lambda x: Both(logits=x), (2, 3))
    assert found.logits == found["logits"] == (2, 3)


def test_several_inputs_and_inputs_by_name():
    attention = nn.MultiheadAttention(8, 2)
    assert output_shape(attention, (3, 1, 8), (5, 1, 8), (5, 1, 8)) == ((3, 1, 8), (1, 3, 5))
    named = {"query": (3, 1, 8), "key": (5, 1, 8), "value": (5, 1, 8)}
    assert output_shape(attention, **named) == ((3, 1, 8), (1, 3, 5))
    assert output_shape(attention, (3, 1, 8), (5, 1, 8), (5, 1, 8), need_weights=False) == ((3, 1, 8), None)
    pyramid = FeaturePyramidNetwork([4, 8], 16)
    found = output_shape(pyramid, {"a": [1, 4, 8, 8], "b": torch.Size([1, 8, 4, 4])})
    assert found == {"a": (1, 16, 8, 8), "b": (1, 16, 4, 4)}
    assert output_shape(torch.cat, [(2, 3), (4, 3)]) == (6, 3)


def test_dtypes_of_inputs():
    seen = []
    output_shape(lambda x: seen.append(x.dtype), (2, 3))
    output_shape([lambda x: (x, seen.append(x.dtype))[0], nn.Linear(3, 3).double()], (2, 3))
    output_shape(lambda x: seen.append(x.dtype), (2, 3), dtype=torch.uint8)
    output_shape(lambda x: seen.append((x.dtype, x.is_meta)), torch.zeros(2, 3, dtype=torch.long))
    assert seen == [torch.float32, torch.float64, torch.uint8, (torch.long, True)]
    assert output_shape(nn.Embedding(10, 4), (2, 7), dtype=torch.long) == (2, 7, 4)


# Pipelines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "shape", "dtype"),
    [
        (models.ResNet18_Weights.DEFAULT.transforms(), (3, 300, 500), torch.uint8),
        (models.segmentation.FCN_ResNet50_Weights.DEFAULT.transforms(), (2, 3, 300, 500), torch.uint8),
        (models.video.R3D_18_Weights.DEFAULT.transforms(), (1, 4, 3, 130, 180), torch.uint8),
        (v1.Compose([v1.Resize(40), v1.CenterCrop(32), v1.Normalize(MEAN, STD)]), (3, 60, 80), None),
        (v1.Compose([v1.ConvertImageDtype(torch.float32), v1.FiveCrop(8)]), (3, 20, 30), torch.uint8),
        (
            v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Pad(3)]),
            (3, 9, 7),
            torch.uint8,
        ),
        (v2.RandomResizedCrop(16), (1, 3, 20, 30), None),
        (v1.RandomResizedCrop(16), (1, 3, 20, 30), None),
        (v2.RandomErasing(p=1.0), (1, 3, 20, 30), None),
        (v2.ColorJitter(0.5, 0.5, 0.5, 0.5), (1, 3, 20, 30), None),
        (v2.RandomPerspective(p=1.0), (1, 3, 20, 30), None),
    ],
)
def test_presets_and_transforms_as_when_run(stage, shape, dtype):
    expected = real(stage(torch.zeros(shape, dtype=dtype)))
    assert output_shape(stage, shape, dtype=dtype) == expected


def test_a_random_size_is_drawn_as_torch_draws_it():
    turn = v1.Compose([v1.RandomCrop((9, 11)), v2.RandomRotation(40, expand=True)])
    torch.manual_seed(3)
    expected = real(turn(torch.zeros(1, 3, 20, 30)))
    torch.manual_seed(3)
    python, state = random.getstate(), torch.get_rng_state()
    assert output_shape([turn, lambda x: (x, random.random())[0]], (1, 3, 20, 30)) == expected
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "stages",
    [
        [v1.Resize(40), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(MEAN, STD)],
        [v1.PILToTensor(), v1.ConvertImageDtype(torch.float32)],
        [v2.ToImage(), v2.Resize(40), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)],
    ],
)
def test_a_pil_image_is_taken_as_it_is(stages):
    image, compose = Image.new("RGB", (60, 48)), v2.Compose(stages)
    expected = real(compose(image))
    assert output_shape(compose, image) == expected
    assert output_shape(stages, image) == expected
    assert output_shape([compose, lambda x: x[None], Small()], image) == (1, 5)


def test_a_check_of_constants_still_checks():
    told = raised(AnalysisError, output_shape, v1.Normalize(MEAN, [0.0, 1.0, 1.0]), (3, 8, 8))
    assert "leading to division by zero" in told


# Only read ----------------------------------------------------------------------------------


def test_the_model_is_only_read():
    model, fired = Small().train(), []
    model.stage[0].bn.num_batches_tracked.fill_(3)
    model.fc.register_forward_hook(lambda *_: fired.append(1))
    caching, before = Caching(), fingerprint(model)
    for stage in (
        model,
        model.forward,
        [nn.Identity(), model],
        v1.Compose([model]),
        v2.Compose([v2.Pad(1), model]),
    ):
        output_shape(stage, (2, 3, 16, 16))
        output_shape(stage, (2, 3, 16, 16), training=True)
    shapes(model, (2, 3, 16, 16), training=True)
    shapes(caching, (2, 3))
    output_shape(v1.Compose([caching]), (2, 3))
    assert not changes(before, fingerprint(model))
    assert fired == []
    assert caching.last is None
    assert caching.seen == {}


class Keeper:
    """No module, and holds one."""

    def __init__(self, held):
        self.held = held


class Aside(nn.Module):
    """Runs what it holds and has not registered."""

    def __init__(self):
        super().__init__()
        self.first, self.keeper = nn.Conv2d(3, 4, 1), Keeper(nn.BatchNorm2d(4))

    def forward(self, x):
        return self.keeper.held(self.first(x))


@pytest.mark.parametrize("training", [False, True])
def test_tensors_that_are_not_registered_are_only_read(training):
    model = Aside()
    before = fingerprint(model.keeper.held)
    assert shapes(model, (2, 3, 8, 8), training=training)[""] == (2, 4, 8, 8)
    assert output_shape(model, (2, 3, 8, 8), training=training) == (2, 4, 8, 8)
    assert not changes(before, fingerprint(model.keeper.held))


def test_a_function_around_a_model_changes_no_tensor_of_it():
    model = Small().train()
    before = fingerprint(model)
    assert output_shape(lambda x: model(x[None]), (3, 16, 16)) == (1, 5)
    weight, doubled = nn.Parameter(torch.ones(3)), []
    assert output_shape(lambda x: (doubled.append(weight * 2), x @ doubled[0])[1], (2, 3)) == (2,)
    assert doubled[0].is_meta
    assert output_shape(functools.partial(torch.add, torch.ones(3)), (2, 3)) == (2, 3)
    assert not changes(before, fingerprint(model))


def test_nothing_is_allocated():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 100_000, 3), nn.Conv2d(100_000, 100_000, 3))
    assert output_shape(model, (64, 3, 1000, 1000)) == (64, 100_000, 996, 996)


def test_tied_weights_are_read_once():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    assert output_shape(nn.Sequential(one, other), (2, 3)) == (2, 3)
    assert shapes(nn.Sequential(one, other), (2, 3)).of("").parameters == 15


# Constants ----------------------------------------------------------------------------------


def test_what_follows_from_constants_can_be_read():
    def function(x):
        sides = torch.tensor([2, 3]) + torch.arange(2)
        sides[0] *= 2
        more = x.new_tensor([[1.0, 0.0, 2.0]]).nonzero()
        assert torch.as_tensor([1, 2]).tolist() == [1, 2]
        assert torch.asarray([1, 2]).numpy().sum() == 3
        return x.expand(int(sides[0]), int(sides[1])), more

    assert output_shape(function, (1, 1)) == ((4, 4), (2, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: torch.zeros(3).copy_(x[0]).sum().item(),
        lambda x: torch.zeros(2, 3)[0].copy_(x[0]).sum().item(),
        lambda x: (torch._foreach_add_([a := torch.zeros(3)], [x[0]]), a.sum().item()),
        lambda x: torch.as_tensor(x).sum().item(),
        lambda x: (x.sum() + torch.tensor(1.0)).item(),
        lambda x: torch.zeros(100_000).sum().item(),
    ],
)
def test_what_follows_from_an_input_or_is_large_cannot(function):
    told = raised(AnalysisError, output_shape, function, (2, 3))
    assert "Tensor.item() cannot be called on meta tensors" in told


def test_a_view_that_was_written_to_is_forgotten_with_its_base():
    def function(x):
        base = torch.zeros(2, 3)
        base[0].copy_(x[0])
        return base.sum().item()

    raised(AnalysisError, output_shape, function, (2, 3))


def test_writing_to_what_is_real_leaves_it_as_it_is():
    table = torch.zeros(3)
    assert output_shape(lambda x: (table.add_(1), x.expand(int(table.sum())))[1], (1,)) == (3,)
    assert torch.equal(table, torch.zeros(3))


class Normed(nn.Module):
    """Reads a constant before it runs its layers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("std", torch.full((3,), 0.5))
        self.normalize, self.conv = v2.Normalize([0.5] * 3, [0.5] * 3), nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        if (self.std == 0).any():
            raise ValueError
        return self.head(self.conv(self.normalize(x) / self.std[:, None, None]).mean((2, 3)))


def test_constants_are_known_in_every_run():
    told = shapes(Normed(), (1, 3, 32, 32))
    assert told.of("conv").layout == "NCHW"
    assert told.of("normalize").layout == "NCHW"  # what it does is seen, though it reads its own numbers
    assert tiers(Normed(), example=torch.zeros(1, 3, 32, 32)).stages[0].stride == 2
    assert align(Normed(), Normed(), evidence="structure").of("conv.weight").keys == ("conv.weight",)


def test_a_model_is_run_once():
    class Counted(Small):
        def forward(self, x):
            runs.append(tuple(x.shape))
            return super().forward(x)

    runs = []
    shapes(Counted(), (1, 3, 16, 16))
    shapes(Counted(), (1, 3, 24, 24), training=True)
    assert runs == [(1, 3, 16, 16), (1, 3, 24, 24)]


def test_dtypes_that_do_not_meet_are_refused_as_in_a_run():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert raised(AnalysisError, output_shape, model, (1, 3, 16, 16), dtype=torch.uint8) == (
        "Sequential does not run on meta tensors\n"
        "  asked  output_shape(<a Sequential>, (1, 3, 16, 16), dtype=torch.uint8)\n"
        "  found  0 (Conv2d) got 1 3 16 16: RuntimeError: "
        "input and weights should have one dtype, but have uint8 and float32"
    )


# The table ----------------------------------------------------------------------------------


def test_the_table_of_a_model():
    told = shapes(Small(), (2, 3, 16, 16))
    assert list(told)[:4] == ["", "stem", "stage", "stage.0"]
    assert list(told)[-1] == "unused"
    assert told["stem"] == (2, 8, 8, 8)
    assert told.get("nothing") is None
    assert told.get("stem", 3) == (2, 8, 8, 8)
    assert "fc" in told
    assert "nothing" not in told
    assert dict(told)["fc"] == told[""] == (2, 5)
    relu = told.of("stage.0.relu")
    assert relu == attrs.evolve(
        relu, kind="ReLU", calls=2, parameters=0, layout="NCHW", inputs=((2, 8, 8, 8),)
    )
    assert told.of("unused").calls == 0
    assert told.of("unused").output is None
    assert told.of("").parameters == sum(p.numel() for p in Small().parameters())
    assert repr(told) == (
        "Small on 2 3 16 16 gives 2 5: 2,649 parameters in 15 modules\n"
        "  stem       Conv2d             2 3 16 16 -> 2 8 8 8  NCHW    224\n"
        "  stage      Sequential         2 8 8 8 -> 2 8 8 8    NCHW  2,368\n"
        "    0 ... 1  Residual, 2 alike  2 8 8 8 -> 2 8 8 8    NCHW  1,184\n"
        "      conv1  Conv2d             2 8 8 8 -> 2 8 8 8    NCHW    584\n"
        "      relu   ReLU               2 8 8 8 -> 2 8 8 8    NCHW      0  2 calls\n"
        "      conv2  Conv2d             2 8 8 8 -> 2 8 8 8    NCHW    584\n"
        "      bn     BatchNorm2d        2 8 8 8 -> 2 8 8 8    NCHW     16\n"
        "  fc         Linear             2 8 -> 2 5            NC       45\n"
        "  unused     Linear                                            12  not called"
    )
    assert told.table().splitlines()[3].split() == [
        "stage.0",
        "Residual",
        *"2 8 8 8 -> 2 8 8 8 NCHW 1,184".split(),
    ]
    assert len(told.table().splitlines()) == len(told) == 15


def test_a_deep_model_is_drawn_as_deep_as_it_can_be_read():
    with torch.device("meta"):
        told = shapes(models.resnet152(), (1, 3, 224, 224))
    lines = repr(told).splitlines()
    assert lines[0] == "ResNet on 1 3 224 224 gives 1 1000: 60,192,808 parameters in 423 modules"
    assert len(lines) < 25
    assert any("1 ... 35  Bottleneck, 35 alike" in line for line in lines)
    assert lines[-1] == "  ... deeper: .table() lists every module"


def test_lists_stand_where_the_first_of_them_is_called():
    told = shapes(Listed(), (1, 3, 8, 8))
    assert list(told)[1:3] == ["units", "units.0"]
    assert told.of("units").calls == 0
    assert "not called" not in repr(told).splitlines()[1]


def test_a_shared_module_stands_under_each_of_its_names():
    unit = Residual(3)
    told = shapes(nn.Sequential(unit, nn.Identity(), unit), (1, 3, 8, 8))
    assert [told.of(path).calls for path in ("0", "1", "2")] == [2, 1, 2]


@pytest.mark.parametrize(
    ("name", "path", "layout"),
    [
        ("swin_t", "features.1", "NHWC"),
        ("swin_t", "features.0.0", "NCHW"),
        ("vit_b_16", "encoder.layers.encoder_layer_3", "NLC"),
        ("vit_b_16", "", "NC"),
    ],
)
def test_layouts(name, path, layout):
    with torch.device("meta"):
        model = models.get_model(name)
    assert shapes(model, (1, 3, 224, 224)).of(path).layout == layout


class Odd(nn.Module):
    """Values whose layout only a larger input tells, or nothing."""

    def __init__(self):
        super().__init__()
        self.grown, self.squared, self.flat = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, image):
        return self.grown(image), self.squared(image[:, :1] @ image[:, :1]), self.flat(image.mean((2, 3)))


def test_layouts_that_only_a_larger_input_tells():
    told = shapes(Odd(), image=(2, 6, 8, 8))
    assert [told.of(path).layout for path in ("grown", "squared", "flat", "")] == ["NCHW", "NCHW", "NC", None]
    assert repr(told).startswith("Odd on 2 6 8 8 gives (2 6 8 8, 2 1 8 8, 2 6): 0 parameters in 4 modules\n")


class OneSize(nn.Module):
    """A forward that no graph follows and that takes one size, with a part for small values alone."""

    def __init__(self, strict):
        super().__init__()
        self.strict, self.fixed, self.free, self.small = (
            strict,
            nn.Conv2d(3, 4, 1),
            nn.Identity(),
            nn.Identity(),
        )

    def forward(self, x):
        if self.strict and x.shape[-1] != 8:
            raise ValueError
        x.tag = "seen"
        x = self.fixed(x)
        x = self.free(x.flatten(2).transpose(1, 2) @ x.flatten(2))
        return self.small(x[None]) if x.shape[-1] < 100 else self.small(x)


@pytest.mark.parametrize("strict", [False, True])
def test_no_layout_is_told_where_nothing_tells_it(strict):
    told = shapes(OneSize(strict), (1, 3, 8, 8))
    assert told["free"] == (1, 64, 64)
    assert [told.of(path).layout for path in ("fixed", "free", "small", "")] == ["NCHW", None, None, None]


def test_modes_with_outputs_of_different_kinds():
    class Reverse(nn.Module):
        def forward(self, x):
            return x if self.training else (x, x)

    assert shapes(Reverse(), (1, 3, 8, 8), training=True).of("").layout == "NCHW"
    assert shapes(Reverse(), (1, 3, 8, 8)).of("").layout is None


def test_outputs_of_other_kinds_are_written():
    class Kinds(nn.Module):
        def forward(self, x):
            return {"a": Record(x[0, 0], (x,)), "b": [None, 2, object()]}

    text = repr(shapes(Kinds(), (2, 3)))
    assert (
        "gives {a: Record(logits: scalar, states: (2 3), name: record), b: (None, 2, object)}"
        in text.replace("'record'", "record")
    )


# What is said -------------------------------------------------------------------------------


def test_channels_that_do_not_fit():
    model = models.resnet18()
    expected = (
        "conv1 takes 3 channels, the input has 1\n"
        "  asked  {}(<a ResNet>, (1, 1, 224, 224))\n"
        "  found  conv1 (Conv2d) got 1 1 224 224: RuntimeError: Invalid channel dimensions\n"
        "  write  adapt_input(1)"
    )
    assert raised(ShapeError, output_shape, model, (1, 1, 224, 224)) == expected.format("output_shape")
    assert raised(ShapeError, shapes, model, (1, 1, 224, 224)) == expected.format("shapes")
    assert output_shape(adapt_input(1)(model), (1, 1, 224, 224)) == (1, 1000)
    told = raised(ShapeError, output_shape, nn.Linear(4, 5), (1, 7))
    assert told.startswith("Linear takes 4 channels, the input has 7\n")
    assert told.endswith("\n  write  output_shape(model, (1, 4))")
    assert raised(ShapeError, output_shape, nn.Linear(4, 5), (1, 1, 6, 7)).endswith("model, (1, 1, 6, 4))")


def test_channels_that_do_not_fit_inside():
    broken = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3))
    assert raised(ShapeError, output_shape, broken, (1, 3, 8, 8)) == (
        "1 takes 5 channels, it gets 4\n"
        "  asked  output_shape(<a Sequential>, (1, 3, 8, 8))\n"
        "  found  1 (Conv2d) got 1 4 6 6: RuntimeError: Invalid channel dimensions"
    )
    assert raised(ShapeError, output_shape, broken, (1, 3, 8, 4)).startswith(
        "1 takes 5 channels, it gets 4\n"
    )
    told = raised(ShapeError, output_shape, [v2.Grayscale(), Small()], (1, 3, 16, 16))
    assert told.startswith(
        "stem takes 3 channels, it gets 1\n  asked  output_shape([<a Grayscale>, <a Small>], (1"
    )


def test_axes_that_do_not_fit():
    model = models.resnet18()
    assert raised(ShapeError, output_shape, model, (3, 224, 224)) == (
        "ResNet takes inputs with 4 axes, this one has 3\n"
        "  asked  output_shape(<a ResNet>, (3, 224, 224))\n"
        "  found  bn1 (BatchNorm2d) got 64 112 112: ValueError: expected 4D input (got 3D input)\n"
        "  write  output_shape(model, (1, 3, 224, 224))"
    )
    told = raised(ShapeError, output_shape, model, (224,))
    assert told.startswith("ResNet does not run on an input of 224\n")
    assert told.endswith("write  output_shape(model, (224, 3, 224, 224))")


def test_sizes_that_do_not_fit():
    with torch.device("meta"):
        alexnet, vit = models.alexnet(), models.vit_b_16()
    assert raised(ShapeError, output_shape, alexnet, (1, 3, 32, 32)) == (
        "AlexNet does not run on an input of 1 3 32 32\n"
        "  asked  output_shape(<a AlexNet>, (1, 3, 32, 32))\n"
        "  found  features.12 (MaxPool2d) got 1 256 1 1: RuntimeError: Given input size: (256x1x1). "
        "Calculated output size: (256x0x0). Output size is too small\n"
        "  write  output_shape(model, (1, 3, 64, 64))"
    )
    told = raised(ShapeError, shapes, vit, (1, 3, 256, 256), training=True)
    assert told.endswith("\n  write  shapes(model, (1, 3, 224, 224), training=True)")
    assert "Wrong image height! Expected 224 but got 256!" in told


def test_what_does_not_run_at_all():
    told = raised(AnalysisError, output_shape, ByData(), (1, 3, 8, 8))
    assert told.startswith("ByData does not run on meta tensors\n")
    told = raised(AnalysisError, output_shape, [nn.Identity(), lambda x, y: x], (1, 3))
    assert told.startswith("Identity >> <lambda> does not run on meta tensors\n")
    assert "test_shapes.py" in told
    raised(AnalysisError, output_shape, lambda x: x.missing, torch.zeros(3))
    guarded = pipe(BySize(), example=torch.zeros(1, 3, 32, 32))
    assert output_shape(guarded, (1, 3, 8, 8)) == (1, 5)
    guarded.recompile()  # from now on it runs this one graph
    told = raised(SpecialisedError, output_shape, guarded, (1, 3, 8, 8))
    assert "asked  output_shape(<a " in told


def test_what_is_no_model():
    assert raised(ModelError, output_shape, nn.Linear, (1, 3)) == (
        "output_shape takes a model, another callable or a list of them\n"
        "  asked  output_shape(nn.Linear, (1, 3))\n"
        "  found  a class\n"
        "  write  output_shape(Linear(), ...)"
    )
    assert "found  an int" in raised(ModelError, output_shape, [nn.Identity(), 3], (1, 3))
    assert "at least one stage" in raised(ModelError, output_shape, [], (1, 3))
    assert "is a wrapper" in raised(ModelError, output_shape, nn.DataParallel(Small()), (1, 3))
    assert raised(ModelError, shapes, models.resnet18, (1, 3)) == (
        "shapes takes a model\n"
        "  asked  shapes(torchvision.models.resnet.resnet18, (1, 3))\n"
        "  found  a function\n"
        "  write  output_shape(<a callable>, ...)"
    )
    assert "write  shapes(<an nn.Module>, ...)" in raised(ModelError, shapes, 3, (1, 3))


def test_inputs_that_cannot_be_meant():
    model = Small()
    assert raised(OptionError, output_shape, model, 1, 3, 8, 8) == (
        "the shape of an input is one tuple\n"
        "  asked  output_shape(<a Small>, 1, 3, 8, 8)\n"
        "  found  4 numbers\n"
        "  write  output_shape(model, (1, 3, 8, 8))"
    )
    assert raised(OptionError, output_shape, model) == (
        "the shape of an input is missing\n"
        "  asked  output_shape(<a Small>)\n"
        "  write  output_shape(model, (1, 3, 224, 224))"
    )
    assert raised(OptionError, output_shape, model, (1, 3, 8, 8), trainig=True) == (
        "Small takes no input named 'trainig'\n"
        "  asked  output_shape(<a Small>, (1, 3, 8, 8), trainig=True)\n"
        "  found  x\n"
        "  near   training"
    )
    negative = "the sides of a shape are not negative"
    assert negative in raised(OptionError, output_shape, model, (1, 3, -1, 8))
    assert negative in raised(OptionError, output_shape, model, [(1, 3, -1, 8)])
    assert negative in raised(OptionError, output_shape, model, {"x": (1, 3, -1, 8)})
    assert "found  a str" in raised(OptionError, output_shape, model, (1, 3, 8, 8), dtype="float")
    assert "found  training=1" in raised(OptionError, output_shape, model, (1, 3, 8, 8), training=1)
    told = raised(
        OptionError, output_shape, model, {"a": (1, None)}, torch.add, image=Image.new("RGB", (2, 2))
    )
    assert 'output_shape(<a Small>, {"a": [1, None]}, torch.add, image=<an Image>)' in told


def test_a_path_that_is_not_there():
    told = shapes(Small(), (1, 3, 8, 8))
    assert raised(TargetError, told.__getitem__, "stages") == (
        '"stages" is no module of this Small\n  found  14 modules\n  near   stage, stage.1, stage.0'
    )

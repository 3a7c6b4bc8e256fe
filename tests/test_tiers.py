"""Tiers: stem, stages and head by structure, as a report and as targets."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
import torch
from fingerprint import changes, fingerprint
from nets import ByData
from torch import nn
from torch.nn import functional as F
from torchvision import models

from torchgraft import (
    adapt_input,
    at,
    compose,
    dilate,
    drop_head,
    explain,
    feature_info,
    features,
    freeze,
    head,
    inject,
    pipe,
    remove,
    rename,
    replace,
    stage,
    stem,
    swap_head,
    tiers,
    unfreeze,
    wrap,
)
from torchgraft.blocks import se
from torchgraft.errors import AnalysisError, ModelError, OptionError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.tiers.trunk import Trunk
from torchgraft.recipe.reader import parse


def empty(name: str) -> nn.Module:
    """Make a model of torchvision without memory for its weights."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if "regnet" in name:  # computes its widths with tensors
        return models.get_model(name)
    with torch.device("meta"):
        return models.get_model(name, **options)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return empty("resnet18")


def layer(given: int, made: int, stride: int = 1, kernel: int = 3) -> nn.Module:
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU())


class Rectified(nn.Module):
    """A residual block that ends in an activation."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = layer(given, made, stride), nn.Conv2d(made, made, 3, 1, 1)
        self.skip = nn.Conv2d(given, made, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


class Inverted(nn.Module):
    """A linear bottleneck: narrow between and wide inside, with no activation at its end."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.wide = layer(given, 4 * given, kernel=1)
        self.deep = nn.Conv2d(4 * given, 4 * given, 3, stride, 1, groups=4 * given)
        self.narrow = nn.Conv2d(4 * given, made, 1)
        self.same = given == made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.narrow(F.relu(self.deep(self.wide(x))))
        return x + y if self.same else y


class PreActivated(nn.Module):
    """A block wide inside that starts with an activation."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(given, 4 * given, 3, stride, 1), nn.Conv2d(4 * given, made, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(F.relu(self.wide(F.relu(x))))


class Thin(nn.Module):
    """A block that ends linearly and is nowhere wide."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = layer(given, made, stride), nn.Conv2d(made, made, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def units(block) -> list[nn.Module]:
    return [layer(3, 8, 2), block(8, 8), block(8, 16, 2), block(16, 16), block(16, 24, 2), block(24, 24)]


def chain(*parts: nn.Module, classifier: list[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier)


class Apart(nn.Module):
    """A last projection that stands elsewhere than the blocks."""

    def __init__(self, block, classifier: nn.Module) -> None:
        super().__init__()
        self.blocks, self.final = nn.Sequential(*units(block)), layer(24, 96, kernel=1)
        self.fc = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.final(self.blocks(x)).mean((2, 3)))


class Parallel(nn.Module):
    """Two branches that are summed up before a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = layer(3, 8, 2), Rectified(8, 16, 2), Rectified(8, 16, 2)
        self.final, self.fc = layer(16, 64, kernel=1), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(self.final(self.one(x) + self.two(x)).mean((2, 3)))


class UNet(nn.Module):
    """Down and up again, with what was on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 8)
        self.down1 = nn.Sequential(Rectified(8, 16, 2), Rectified(16, 16))
        self.down2 = nn.Sequential(Rectified(16, 32, 2), Rectified(32, 32))
        self.up1, self.join1 = nn.ConvTranspose2d(32, 16, 2, 2), Rectified(32, 16)
        self.up0, self.join0 = nn.ConvTranspose2d(16, 8, 2, 2), Rectified(16, 8)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x)
        middle = self.down1(fine)
        x = self.join1(torch.cat([middle, self.up1(self.down2(middle))], 1))
        return self.out(self.join0(torch.cat([fine, self.up0(x)], 1)))


class TwoStrides(nn.Module):
    """A module that takes and gives maps of two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(Rectified(8, 8), Rectified(8, 8))
        self.coarse = nn.Sequential(Rectified(16, 16), Rectified(16, 16))
        self.down, self.up = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 8, 1)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        fine, coarse = self.fine(maps[0]), self.coarse(maps[1])
        up = F.interpolate(self.up(coarse), scale_factor=2)
        return [F.relu(fine + up), F.relu(coarse + self.down(fine))]


class Branched(nn.Module):
    """Maps of two strides side by side all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = layer(3, 8, 2), nn.Conv2d(8, 16, 3, 2, 1)
        self.stages = nn.Sequential(TwoStrides(), TwoStrides())
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(torch.cat([m.mean((2, 3)) for m in self.stages([x, self.down(x)])], 1))


class Tokens(nn.Module):
    """A transformer on patches with class and other tokens."""

    def __init__(self, tokens: int = 1) -> None:
        super().__init__()
        self.patches, self.extra = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, tokens, 16))
        blocks = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3)]
        self.blocks, self.norm, self.head = nn.ModuleList(blocks), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


# The zoo of torchvision --------------------------------------------------------------------

ZOO = {
    # stem, head, stages (path of the map, channels, stride, blocks), features before the classifier, pooled
    "resnet18": (
        "conv1 bn1 relu maxpool", "avgpool fc",
        [("layer1", 64, 4, 2), ("layer2", 128, 8, 2), ("layer3", 256, 16, 2), ("layer4", 512, 32, 2)], 512, 512,
    ),
    "resnet50": (
        "conv1 bn1 relu maxpool", "avgpool fc",
        [("layer1", 256, 4, 3), ("layer2", 512, 8, 4), ("layer3", 1024, 16, 6), ("layer4", 2048, 32, 3)], 2048, 2048,
    ),
    "vgg11": (
        "", "avgpool classifier",
        [
            ("features.1", 64, 1, 0), ("features.4", 128, 2, 0), ("features.9", 256, 4, 0),
            ("features.14", 512, 8, 0), ("features.19", 512, 16, 0), ("features.20", 512, 32, 0),
        ], 4096, 25088,
    ),
    "alexnet": (
        "", "avgpool classifier",
        [("features.1", 64, 4, 0), ("features.4", 192, 8, 0), ("features.11", 256, 16, 0), ("features.12", 256, 32, 0)],
        4096, 9216,
    ),
    "densenet121": (
        "features.conv0 features.norm0 features.relu0 features.pool0", "features.norm5 classifier",
        [(f"features.denseblock{i}", c, s, 1) for i, c, s in ((1, 256, 4), (2, 512, 8), (3, 1024, 16), (4, 1024, 32))],
        1024, 1024,
    ),
    "googlenet": (
        "conv1 maxpool1 conv2 conv3 maxpool2", "avgpool dropout fc",
        [("inception3b", 480, 8, 2), ("inception4e", 832, 16, 5), ("inception5b", 1024, 32, 2)], 1024, 1024,
    ),
    "inception_v3": (
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2", "avgpool dropout fc",
        [("Mixed_5d", 288, 8, 3), ("Mixed_6e", 768, 16, 5), ("Mixed_7c", 2048, 32, 3)], 2048, 2048,
    ),
    "squeezenet1_0": (
        "features.0 features.1 features.2", "classifier",
        [("features.5", 256, 4, 3), ("features.10", 512, 8, 4), ("features.12", 512, 16, 1)], 512, 512,
    ),
    "mobilenet_v2": (
        "features.0", "features.18 classifier",
        [
            ("features.1", 16, 2, 1), ("features.3", 24, 4, 2), ("features.6", 32, 8, 3),
            ("features.13", 96, 16, 7), ("features.17", 320, 32, 4),
        ], 1280, 1280,
    ),
    "mobilenet_v3_large": (
        "features.0", "avgpool classifier",
        [
            ("features.1", 16, 2, 1), ("features.3", 24, 4, 2), ("features.6", 40, 8, 3),
            ("features.12", 112, 16, 6), ("features.16", 960, 32, 3),
        ], 1280, 960,
    ),
    "mobilenet_v3_small": (
        "features.0", "avgpool classifier",
        [("features.1", 16, 4, 1), ("features.3", 24, 8, 2), ("features.8", 48, 16, 5), ("features.12", 576, 32, 3)],
        1024, 576,
    ),
    "efficientnet_b0": (
        "features.0", "features.8 avgpool classifier",
        [
            ("features.1", 16, 2, 1), ("features.2", 24, 4, 2), ("features.3", 40, 8, 2),
            ("features.5", 112, 16, 6), ("features.7", 320, 32, 5),
        ], 1280, 1280,
    ),
    "mnasnet1_0": (
        " ".join(f"layers.{i}" for i in range(8)), "layers.14 layers.15 layers.16 classifier",
        [("layers.8", 24, 4, 3), ("layers.9", 40, 8, 3), ("layers.11", 96, 16, 5), ("layers.13", 320, 32, 5)],
        1280, 1280,
    ),
    "shufflenet_v2_x1_0": (
        "conv1 maxpool", "fc", [("stage2", 116, 8, 4), ("stage3", 232, 16, 8), ("conv5", 1024, 32, 4)], 1024, 1024,
    ),
    "regnet_y_400mf": (
        "stem", "avgpool fc",
        [(f"trunk_output.block{i}", c, s, b) for i, c, s, b in ((1, 48, 4, 1), (2, 104, 8, 3), (3, 208, 16, 6), (4, 440, 32, 6))],
        440, 440,
    ),
    "convnext_tiny": (
        "features.0", "avgpool classifier",
        [("features.1", 96, 4, 3), ("features.3", 192, 8, 3), ("features.5", 384, 16, 9), ("features.7", 768, 32, 3)],
        768, 768,
    ),
    "swin_t": (
        "features.0", "norm permute avgpool flatten head",
        [("features.1", 96, 4, 2), ("features.3", 192, 8, 2), ("features.5", 384, 16, 6), ("features.7", 768, 32, 2)],
        768, 768,
    ),
    "maxvit_t": (
        "stem", "classifier",
        [("blocks.0", 64, 4, 2), ("blocks.1", 128, 8, 2), ("blocks.2", 256, 16, 5), ("blocks.3", 512, 32, 2)], 512, 512,
    ),
    "vit_b_16": ("conv_proj", "heads", [("encoder", 768, 16, 12)], 768, 768),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_tiers_of_the_zoo(name):
    before, after, stages, width, pooled = ZOO[name]
    model = empty(name)
    told = tiers(model)
    assert told.stem == tuple(before.split())
    assert told.head == tuple(after.split())
    assert [(s.path, s.channels, s.stride, len(s.blocks)) for s in told.stages] == stages
    assert {s.layout for s in told.stages} == {{"swin_t": "NHWC", "vit_b_16": "NLC"}.get(name, "NCHW")}
    assert (told.num_features, told.pooled) == (width, pooled)
    assert [m for m in told.maps if m.stride not in told.strides] == []
    assert {m.stride: m for m in told.maps} | {s.stride: s.map for s in told.stages} == {
        m.stride: m for m in told.maps
    }
    paths = [*told.stem, *(p for s in told.stages for p in s.paths), *told.head]
    assert len(set(paths)) == len(paths)
    assert all(model.get_submodule(path) is not None for path in paths)
    # What no module of the tiers holds are heads for training and parameters of containers.
    counted = sum(told.parameters) + sum(s.parameters for s in told.stages)
    held = {id(p): p.numel() for path in paths for p in model.get_submodule(path).parameters()}
    assert counted == sum(held.values())
    assert told.blocks == tuple(block for s in told.stages for block in s.blocks)


def test_the_report_of_a_model():
    assert str(tiers(empty("resnet50"))) == (
        "stem     conv1 bn1 relu maxpool  9,536\n"
        "stage 0  layer1                  215,808     256 channels   stride 4   NCHW  3 blocks\n"
        "stage 1  layer2                  1,219,584   512 channels   stride 8   NCHW  4 blocks\n"
        "stage 2  layer3                  7,098,368   1024 channels  stride 16  NCHW  6 blocks\n"
        "stage 3  layer4                  14,964,736  2048 channels  stride 32  NCHW  3 blocks\n"
        "head     avgpool fc              2,049,000   2048 features"
    )
    large = str(tiers(empty("mobilenet_v3_large"))).splitlines()
    assert large[-1].endswith("1280 features, 960 pooled")
    assert str(tiers(empty("alexnet"))).startswith("stage 0  features.0 features.1")


def test_an_explanation_of_a_model_tells_its_tiers_and_costs_it_nothing():
    model = models.resnet18().train()
    before = fingerprint(model)
    told = explain(model)
    assert not changes(before, fingerprint(model))
    assert told.tiers == tiers(model)
    assert str(told).splitlines()[:3] == [
        "ResNet: 11,689,512 parameters, 11,689,512 trainable in 62 tensors",
        "  stem     conv1 bn1 relu maxpool  9,536",
        "  stage 0  layer1                  147,968    64 channels   stride 4   NCHW  2 blocks",
    ]
    large = explain(empty("resnet50"))
    assert large.parameters == 25_557_032
    assert [(s.path, s.channels, s.stride) for s in large.tiers.stages] == [
        ("layer1", 256, 4), ("layer2", 512, 8), ("layer3", 1024, 16), ("layer4", 2048, 32),
    ]  # fmt: skip
    assert explain(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))).tiers is None
    assert explain(ByData()).tiers is None
    assert wrap("layer4", se).explain(model).tiers is None


def test_what_makes_no_maps_has_no_tiers():
    with pytest.raises(AnalysisError) as caught:
        tiers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert str(caught.value) == (
        "Sequential makes no maps, so it has no stages\n"
        "  found  no module gives a map n c h w, or tokens, that is no finer than the input\n"
        "  write  a model of images, or an input for it: example=torch.zeros(<n c h w>)"
    )
    with pytest.raises(AnalysisError, match="makes no maps"):
        stage(0).on(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(AnalysisError, match="makes no maps"):  # places further apart one way than the other
        tiers(nn.Sequential(nn.Conv2d(3, 8, 3, (2, 1), 1)))
    with pytest.raises(AnalysisError, match="does not run on the example"):
        tiers(nn.Conv2d(3, 8, 3), example=torch.zeros(2, 5, 8, 8))
    for asked in (tiers, feature_info):
        with pytest.raises(ModelError):
            asked(3)


# Sizes of the input ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 299, 299), (1, 3, 225, 417)])
@pytest.mark.parametrize("name", ["resnet18", "swin_t", "alexnet", "efficientnet_b0"])
def test_strides_do_not_depend_on_the_input(name, shape):
    model = empty(name)
    told, usual = tiers(model, example=torch.empty(shape)), tiers(model)
    assert [(s.paths, s.stride, s.channels) for s in told.stages] == [
        (s.paths, s.stride, s.channels) for s in usual.stages
    ]
    assert told.strides == usual.strides
    for m in told.maps:
        for side, places in zip(shape[2:], m.layout.grid, strict=True):
            assert abs(side / m.stride - places) < 2, m


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "convnext_tiny"])
def test_a_map_of_one_place_is_a_map(name):
    told = tiers(empty(name), example=torch.zeros(2, 3, 32, 32))
    assert [(m.stride, m.layout.grid) for m in told.maps][-2:] == [(16, (2, 2)), (32, (1, 1))]


def test_convolutions_without_padding_keep_their_strides():
    told = tiers(empty("inception_v3"), example=torch.zeros(2, 3, 299, 299))
    assert [(m.stride, m.layout.grid) for m in told.maps][-3:] == [
        (8, (35, 35)),
        (16, (17, 17)),
        (32, (8, 8)),
    ]


# By structure ------------------------------------------------------------------------------


def classifier(width: int, *, hidden: bool = False) -> list[nn.Module]:
    return [nn.Linear(width, 50), nn.ReLU(), nn.Linear(50, 10)] if hidden else [nn.Linear(width, 10)]


@pytest.mark.parametrize(
    ("net", "last", "channels"),
    [
        # Linear bottlenecks: what widens their code is the head's.
        (lambda: chain(*units(Inverted), layer(24, 96, kernel=1), classifier=classifier(96)), ("0.4", "0.5"), 24),
        (lambda: Apart(Inverted, classifier(96)[0]), ("blocks.4", "blocks.5"), 24),
        (lambda: Apart(Inverted, nn.Sequential(*classifier(96, hidden=True))), ("blocks.4", "blocks.5"), 24),
        # It stands among the blocks, and the head has a hidden layer of its own.
        (
            lambda: chain(*units(Inverted), layer(24, 96, kernel=1), classifier=classifier(96, hidden=True)),
            ("0.4", "0.5", "0.6"), 96,
        ),
        # Blocks of other kinds.
        (lambda: chain(*units(Rectified), layer(24, 96, kernel=1), classifier=classifier(96)), ("0.4", "0.5", "0.6"), 96),
        (lambda: chain(*units(PreActivated), layer(24, 96, kernel=1), classifier=classifier(96)), ("0.4", "0.5", "0.6"), 96),
        (lambda: chain(*units(Thin), layer(24, 96, kernel=1), classifier=classifier(96)), ("0.4", "0.5", "0.6"), 96),
        (lambda: Apart(Rectified, classifier(96)[0]), ("blocks.4", "blocks.5", "final"), 96),
        # It does not widen.
        (lambda: chain(*units(Inverted), layer(24, 20, kernel=1), classifier=classifier(20)), ("0.4", "0.5", "0.6"), 20),
        # Nothing comes after the blocks, or nothing but dressing.
        (lambda: chain(*units(Inverted), classifier=classifier(24)), ("0.4", "0.5"), 24),
        (lambda: chain(*units(Inverted), nn.BatchNorm2d(24), nn.Dropout(), classifier=classifier(24)), ("0.4", "0.5"), 24),
        # More than one layer is a block.
        (lambda: chain(*units(Inverted), Thin(24, 96), classifier=classifier(96)), ("0.4", "0.5", "0.6"), 96),
        # Blocks that stand in a container.
        (
            lambda: nn.Sequential(
                layer(3, 8, 2), nn.Sequential(Inverted(8, 8), Inverted(8, 8)),
                nn.Sequential(Inverted(8, 16, 2), Inverted(16, 16)), layer(16, 64, kernel=1),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
            ), ("2",), 16,
        ),
    ],
)  # fmt: skip
def test_the_last_layers_belong_to_the_head_where_they_undo_a_bottleneck(net, last, channels):
    told = tiers(net())
    assert (told.stages[-1].paths, told.stages[-1].channels) == (last, channels)


def test_what_takes_the_sum_of_branches_belongs_to_the_head():
    told = tiers(Parallel())
    assert (told.stem, told.stages[0].paths, told.head) == (("stem",), ("one", "two"), ("final", "fc"))
    assert (told.num_features, told.pooled) == (64, 64)


def test_stages_end_where_maps_get_finer_again():
    told = tiers(UNet())
    assert [(m.path, m.stride) for m in told.maps] == [("stem", 1), ("down1", 2), ("down2", 4)]
    assert [(s.path, s.stride, len(s.blocks)) for s in told.stages] == [("down1", 2, 2), ("down2", 4, 2)]
    assert told.head == ("up1", "join1", "up0", "join0", "out")


def test_maps_of_several_strides_from_one_module():
    told = tiers(Branched())
    assert [(m.path, m.item, m.stride, m.layout.channels) for m in told.maps] == [
        ("stages", (0,), 2, 8), ("stages", (1,), 4, 16),
    ]  # fmt: skip
    assert stage(0).on(Branched()).paths == ("stages",)


@pytest.mark.parametrize("tokens", [1, 5])
def test_tokens_make_one_stage_of_blocks(tokens):
    told = tiers(Tokens(tokens))
    assert (told.stem, told.head) == (("patches",), ("norm", "head"))
    (only,) = told.stages
    assert only.paths == ("blocks.0", "blocks.1", "blocks.2")
    assert [block.path for block in only.blocks] == list(only.paths)
    assert only.map.layout.prefix == tokens
    assert (only.stride, only.layout, told.num_features) == (8, "NLC", 16)


def test_a_wrapper_is_looked_through(resnet):
    inner, outer = tiers(resnet), tiers(Wrapped(Wrapped(resnet)))
    assert outer.stem == tuple(f"model.model.{path}" for path in inner.stem)
    assert [s.path for s in outer.stages] == [f"model.model.{s.path}" for s in inner.stages]
    assert outer.head == ("model.model.avgpool", "model.model.fc")
    assert (outer.num_features, outer.parameters) == (inner.num_features, inner.parameters)


def test_a_model_without_a_head_and_one_with_two():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.other = (
                nn.Sequential(*units(Rectified)),
                nn.Linear(24, 5),
                nn.Linear(24, 7),
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self.body(x).mean((2, 3))
            return self.one(x), self.other(x)

    told = tiers(TwoHeads())
    assert (told.head, told.num_features) == (("one", "other"), 24)
    bare = tiers(nn.Sequential(*units(Rectified)))
    assert (bare.head, bare.num_features, bare.pooled) == ((), 24, 24)
    assert str(bare).splitlines()[-1].split() == ["head", "none", "0", "24", "features"]
    dropped = tiers(pipe(empty("mobilenet_v3_large"), drop_head()))
    assert (dropped.num_features, dropped.pooled) == (1280, 960)


def test_parts_that_the_forward_never_reaches_are_no_tiers():
    told = tiers(empty("googlenet"))
    assert not [path for path in (*told.stem, *told.head) if "aux" in path]


def test_an_image_that_is_prepared_is_no_map_yet(resnet):
    told = tiers(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Identity(), resnet))
    assert told.strides == tiers(resnet).strides == (2, 4, 8, 16, 32)
    assert told.stem == ("0", "1", "2.conv1", "2.bn1", "2.relu", "2.maxpool")
    with pytest.raises(AnalysisError, match="makes no maps"):
        tiers(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))


def test_a_call_whose_output_is_never_used_is_no_stage():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.idle, self.fc = (
                nn.Sequential(*units(Rectified)),
                Rectified(24, 48, 2),
                nn.Linear(24, 5),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            self.idle(x)
            return self.fc(x.mean((2, 3)))

    assert tiers(Idle()).strides == (2, 4, 8)


# Targets -----------------------------------------------------------------------------------


def trainable(model: nn.Module) -> tuple[int, int]:
    free = [p for p in model.parameters() if p.requires_grad]
    return sum(p.numel() for p in free), len(free)


def test_tiers_as_targets(resnet):
    assert stem.on(resnet).paths == ("conv1", "bn1", "relu", "maxpool")
    assert head.on(resnet).paths == ("avgpool", "fc")
    assert (
        stage(0).on(resnet).paths
        == stage(-4).on(resnet).paths
        == stage(stride=4).on(resnet).paths
        == ("layer1",)
    )
    assert (
        stage(-1).on(resnet).paths
        == stage(3).on(resnet).paths
        == stage(stride=32).on(resnet).paths
        == ("layer4",)
    )
    assert stage(1).on(empty("swin_t")).paths == ("features.2", "features.3")
    assert (stage(-1) | head).on(resnet).paths == ("layer4", "avgpool", "fc")
    assert (~(stage(-1) | head)).on(resnet).paths == (
        "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3",
    )  # fmt: skip
    assert (at(nn.Conv2d) & stage(0)).on(resnet).paths == at(nn.Conv2d).inside("layer1").on(resnet).paths
    assert at(nn.Conv2d).inside(stage(0)).on(resnet).paths == (at(nn.Conv2d) & stage(0)).on(resnet).paths
    assert at(nn.BatchNorm2d).before(stage(0)).on(resnet).paths == ("bn1",)
    assert (stage(0) - "layer1.1").on(resnet).paths == ("layer1.0",)
    assert stage(0).inside("layer2").maybe().on(resnet).paths == ()
    assert stem.inside("layer2").maybe().on(resnet).paths == ()


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (head, (20_490, 2)),
        (stage(-1) | head, (14_985_226, 32)),
        (stage(-2) | stage(-1) | head, (22_083_594, 89)),
        (stage(stride=16) | stage(stride=32) | head, (22_083_594, 89)),
    ],
)
def test_all_but_some_tiers_are_frozen(free, expected):
    assert trainable(pipe(empty("resnet50"), swap_head(10), freeze(~free))) == expected


def test_a_stage_is_wrapped_like_any_other_target():
    model = models.resnet18().eval()
    x = torch.randn(2, 3, 64, 64)
    result = pipe(model, wrap(stage(-1), "se"))
    assert "layer4.se.fc1.weight" in result.state_dict()
    assert result(x).equal(model(x))
    many = pipe(empty("swin_t"), wrap(stage(1), "se"))
    assert [key for key in many.state_dict() if key.endswith("se.fc1.weight")] == [
        "features.2.se.fc1.weight", "features.3.se.fc1.weight",
    ]  # fmt: skip


def test_tiers_are_those_of_the_model_as_edited_so_far():
    model = empty("resnet18")
    classes = replace("fc", lambda old: nn.Linear(256, 7), keep_shape=False)

    def free(*steps: object) -> set[str]:
        first = unfreeze(stage(0))  # the tiers are asked for before the edits too
        result = pipe(model, first, *steps)
        return {name.partition(".")[0] for name, p in result.named_parameters() if p.requires_grad}

    assert free(freeze(~stage(stride=16))) == {"layer3"}
    assert free(replace("maxpool", nn.Identity, keep_shape=False), freeze(~stage(stride=16))) == {"layer4"}
    gone = replace("layer4", nn.Identity(), keep_shape=False)
    assert free(gone, classes, freeze(~(stage(-1) | head))) == {"layer3", "fc"}
    assert free(adapt_input(1), freeze(~stage(1))) == {"layer2"}
    assert free(inject("layer4", "se", name="more"), freeze(~head)) == {"more", "fc"}
    assert free(dilate(8), freeze(~stage(-1))) == {"layer2", "layer3", "layer4"}
    assert free(inject("layer4", "se", name="more"), swap_head(3), freeze(~stage(-1))) == {"layer4"}
    steps = swap_head(10), wrap(stage(-1), "se"), freeze(~(stage(-1) | head))
    result = pipe(models.resnet18(), *steps)
    kept = {name for name, p in result.named_parameters() if p.requires_grad}
    assert {"layer4.se.fc1.weight", "layer4.0.conv1.weight", "fc.weight"} <= kept
    assert all(name.startswith(("layer4.", "fc.")) for name in kept)
    assert "layer1.se.fc1.weight" in pipe(model, remove("layer1.1"), wrap(stage(0), "se")).state_dict()


def test_a_model_that_does_not_run_in_between_has_no_tiers_there():
    gone = replace("layer4", nn.Identity(), keep_shape=False)
    with pytest.raises(AnalysisError) as caught:
        pipe(empty("resnet18"), freeze(stage(0)), gone, wrap(stage(-1), "se"))
    assert str(caught.value) == (
        "ResNet as edited so far does not run, so its tiers are unknown\n"
        "  asked  wrap(stage(-1), se())\n"
        "  found  RuntimeError: a and b must have same reduction dim, but got [2, 256] X [512, 1000].\n"
        "  write  the edits that make its shapes fit again, and this one behind them"
    )


def test_a_stage_that_does_not_exist_is_an_error_that_lists_those_that_do(resnet):
    with pytest.raises(TargetError) as caught:
        pipe(resnet, freeze(stage(7)))
    assert str(caught.value) == (
        "this model has no stage 7\n"
        "  asked  freeze(stage(7))\n"
        "  found  0 (layer1, stride 4), 1 (layer2, stride 8), 2 (layer3, stride 16), 3 (layer4, stride 32)\n"
        "  write  freeze(stage(-1))"
    )
    with pytest.raises(TargetError) as caught:
        stage(stride=64).on(resnet)
    assert str(caught.value) == (
        "this model has no stage of stride 64\n"
        "  asked  stage(stride=64)\n"
        "  found  0 (layer1, stride 4), 1 (layer2, stride 8), 2 (layer3, stride 16), 3 (layer4, stride 32)\n"
        "  write  stage(stride=32)"
    )
    for missing in (stage(4), stage(-5), stage(stride=2)):
        with pytest.raises(TargetError):
            missing.on(resnet)
        assert missing.maybe().on(resnet).paths == ()
    assert (stage(9).maybe() | "fc").on(resnet).paths == ("fc",)


def test_a_tier_that_is_empty_is_an_error():
    with pytest.raises(TargetError) as caught:
        stem.on(empty("vgg11"))
    assert str(caught.value) == (
        "this model has no stem\n"
        "  asked  stem\n"
        "  found  the first stage begins with features.0, the last ends with features.20\n"
        "  write  stage(0)"
    )
    assert stem.maybe().on(empty("vgg11")).paths == ()
    with pytest.raises(TargetError, match="has no head") as caught:
        head.on(nn.Sequential(*units(Rectified)))
    assert caught.value.write == "stage(-1)"
    assert head.maybe().on(nn.Sequential(*units(Rectified))).paths == ()
    with pytest.raises(TargetError, match="nothing is left"):
        stem.inside("layer2").on(empty("resnet18"))


@pytest.mark.parametrize(
    ("args", "options", "asked", "found"),
    [
        ((), {}, "stage()", "neither"),
        ((1,), {"stride": 8}, "stage(1, stride=8)", "both"),
        ((True,), {}, "stage(True)", "True"),
        (("layer4",), {}, 'stage("layer4")', '"layer4"'),
        ((1.0,), {}, "stage(1.0)", "1.0"),
        ((), {"stride": 16.0}, "stage(stride=16.0)", "16.0"),
    ],
)
def test_a_stage_is_meant_by_one_whole_number(args, options, asked, found):
    with pytest.raises(OptionError, match="by its number or by its stride") as caught:
        stage(*args, **options)
    assert (caught.value.asked, caught.value.found) == (asked, found)
    assert caught.value.write == "stage(-1), or stage(stride=16)"
    with pytest.raises(OptionError) as caught:
        stage(stide=2)
    assert caught.value.near[0] == "stride"


def test_tiers_are_values():
    for one, text in (
        (stem, "stem"),
        (head, "head"),
        (stage(-1), "stage(-1)"),
        (stage(stride=16), "stage(stride=16)"),
        (~(stage(-1) | head), "~(stage(-1) | head)"),
        ((stem | stage(0)) - at("bn1"), '(stem | stage(0)) - "bn1"'),
    ):
        assert repr(one) == text
        assert pickle.loads(pickle.dumps(one)) == one
        step = freeze(one)
        assert parse(repr(step)) == step
        assert hash(parse(repr(step))) == hash(step)
    assert stage(1) == stage(index=1) != stage(-1)
    assert stage(stride=8) != stage(8)
    assert stem != head
    recipe = compose(swap_head(10), freeze(~(stage(-1) | head)), wrap(stage(stride=32), "se"))
    assert parse(repr(recipe)) == recipe


def test_looking_leaves_the_model_alone():
    model = models.mobilenet_v3_small().train()
    fired: list[object] = []
    model.features[0].register_forward_hook(lambda *given: fired.append(given))
    before, state = fingerprint(model), torch.get_rng_state()
    tiers(model)
    feature_info(model)
    (stage(-1) | head | stem).on(model)
    assert not changes(before, fingerprint(model))
    assert fired == []
    assert torch.get_rng_state().equal(state)


def test_nothing_is_kept_of_a_question_once_it_is_answered(resnet):
    trunk = Trunk(Draft(resnet).runs.deep())
    assert trunk.depth(0) == trunk.depth(0) == 17  # the head is no layer of maps
    assert trunk.merges(0)
    gone = weakref.ref(trunk)
    del trunk
    gc.collect()
    assert gone() is None


# What maps there are -----------------------------------------------------------------------


def test_the_maps_of_a_model_are_described(resnet):
    told = feature_info(resnet)
    assert [(m.name, m.channels, m.stride, m.layout) for m in told] == [
        ("relu", 64, 2, "NCHW"), ("layer1", 64, 4, "NCHW"), ("layer2", 128, 8, "NCHW"),
        ("layer3", 256, 16, "NCHW"), ("layer4", 512, 32, "NCHW"),
    ]  # fmt: skip
    assert [m.layout for m in feature_info(empty("swin_t"))] == ["NHWC"] * 4
    assert feature_info(Tokens())[0].layout == "NLC"
    assert feature_info(resnet, example=torch.zeros(1, 3, 97, 65)) == told


def test_a_model_that_returns_maps_by_name_describes_those():
    class Named(nn.Module):
        def __init__(self, *, also: object = None) -> None:
            super().__init__()
            self.body, self.also = nn.ModuleList(units(Rectified)), also

        def forward(self, x: torch.Tensor) -> dict[object, torch.Tensor]:
            maps: dict[object, torch.Tensor] = {}
            for number, part in enumerate(self.body):
                x = part(x)
                if number % 2:
                    maps[f"level{number}"] = x
            return {
                **maps,
                "tokens": x.flatten(2),
                "code": x.mean((2, 3)),
                **({self.also: x} if self.also else {}),
            }

    told = feature_info(Named())
    assert [(m.name, m.channels, m.stride, m.layout) for m in told] == [
        ("level1", 8, 2, "NCHW"), ("level3", 16, 4, "NCHW"), ("level5", 24, 8, "NCHW"),
        ("tokens", 24, 8, "NCL"), ("code", 24, None, "NC"),
    ]  # fmt: skip
    assert [m.name for m in feature_info(Named(also=3))] == ["body.1", "body.3", "body.5"]


def test_stages_are_found_in_a_draft_in_the_middle_of_editing(resnet):
    draft = Draft(resnet)
    for step in (wrap(stage(-1), "se"), remove("layer2.1")):
        step._edit(draft)
    assert "layer4" in [site.path for site in stage(-1).find(draft)]


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_maps_of_classes_are_the_head(name, auxiliary):
    """A dense classifier works at the stride of the last stage, and is no part of it."""
    with torch.device("meta"):
        build = getattr(models.segmentation, name)
        model = build(weights=None, weights_backbone=None, aux_loss=auxiliary)
    told = tiers(model)
    assert [(one.path, one.stride, one.layout.channels) for one in told.maps][-1] == (
        "backbone.layer4",
        8,
        2048,
    )
    assert told.head == (("classifier", "aux_classifier") if auxiliary else ("classifier",))


def test_an_extractor_has_no_head():
    told = tiers(features("layer2", "layer4")(models.resnet18()))
    assert told.head == ()
    assert told.num_features == 512
    assert str(told).splitlines()[-1].split() == ["head", "none", "0", "512", "features"]


def test_the_image_itself_is_no_level():
    """A unit may hold a step that passes the image on before its first layer."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.conv, self.down = (
                nn.Dropout(0.1),
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.Conv2d(8, 8, 3, 1, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.conv(self.drop(x)))

    model = nn.Sequential(
        Stem(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    assert tiers(model).strides == (2, 4)


@pytest.mark.parametrize("grow", [nn.Upsample(scale_factor=4), nn.ConvTranspose2d(3, 3, 4, 4)])
def test_maps_finer_than_the_image_are_no_levels(grow):
    """A net may begin by growing the image; what follows has strides from the image's own size on."""
    down = [nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(5)]
    model = nn.Sequential(grow, nn.Sequential(*down), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert tiers(model).strides == (1, 2, 4, 8)
    assert "stride 8" in str(explain(model))
    given = pipe(model, features(strides=(2, 8)))(torch.zeros(1, 3, 32, 32))
    assert [value.shape[-1] for value in given.values()] == [16, 4]


def test_a_net_of_fine_maps_alone_has_no_tiers():
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3, 1, 1), nn.Sequential(nn.PixelShuffle(4), nn.Conv2d(3, 3, 3, 1, 1))
    )
    assert tiers(model).strides == (1,)
    finer = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()))
    with pytest.raises(AnalysisError, match="makes no maps"):
        tiers(finer)
    assert explain(finer).tiers is None


@pytest.mark.parametrize(
    "block", ["se", "cbam", "self_attention", "simam", "non_local", "basic_residual", "triplet_attention"]
)
def test_what_steps_hang_behind_blocks_is_none_of_them(block):
    def blocks(model: nn.Module) -> list[str]:
        return [one.path for stage in tiers(model).stages for one in stage.blocks]

    plain = models.resnet18()
    expected = blocks(plain)
    assert blocks(pipe(plain, wrap("layer4", block))) == expected
    assert blocks(pipe(pipe(plain, wrap("layer2", block)), wrap("layer3", block))) == expected
    assert blocks(pipe(plain, inject(models.resnet.BasicBlock, block))) == expected
    renamed = pipe(plain, wrap("layer1", block), rename({"layer1": "first"}))
    assert blocks(renamed) == [path.replace("layer1", "first") for path in expected]
    assert blocks(pipe(models.swin_t(), wrap("features.5", block))) == blocks(models.swin_t())


@pytest.mark.parametrize("block", ["se", "cbam", "self_attention", "triplet_attention"])
def test_what_steps_hang_behind_a_layer_does_not_end_the_stem(block):
    plain = tiers(models.vgg11())
    edited = tiers(pipe(models.vgg11(), inject("features.10", block)))
    assert (edited.stem, len(edited.stages)) == (plain.stem, len(plain.stages))


def test_what_takes_the_place_of_blocks_is_blocks():
    def blocks(model: nn.Module) -> list[int]:
        return [len(stage.blocks) for stage in tiers(model).stages]

    plain, unit = models.resnet18(), models.resnet.BasicBlock
    assert blocks(pipe(plain, replace("layer4.1", "basic_residual"))) == [2, 2, 2, 2]
    longer = nn.Sequential(unit(64, 128, 2, nn.Conv2d(64, 128, 1, 2)), *(unit(128, 128) for _ in range(4)))
    assert blocks(pipe(plain, replace("layer2", longer))) == [2, 5, 2, 2]

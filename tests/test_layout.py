"""Where the channels are: found by following the graph, through layers and through operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn
from torch.nn import functional as F

from torchgraft import at, inject, pipe, shapes, where, wrap
from torchgraft.errors import LayoutError
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import spec_of
from torchgraft.spec import layout_name


class By(nn.Module):
    """A forward made of a function of a map with 6 channels."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.bn = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.flat = nn.Flatten()
        self.wide = nn.Parameter(torch.randn(8, 6, 1, 1))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, self.conv(x))


FORWARDS = {
    "relu": (lambda s, x: F.relu(x), 1, 6),
    "pool": (lambda s, x: F.max_pool2d(x, 2), 1, 6),
    "average": (lambda s, x: F.avg_pool2d(x, 2), 1, 6),
    "batch norm": (lambda s, x: F.batch_norm(x, s.bn.running_mean, s.bn.running_var), 1, 6),
    "convolution": (lambda s, x: F.conv2d(x, s.conv.weight[:, :1].repeat(1, 6, 1, 1)), 1, 6),
    "scaled": (lambda s, x: x * s.scale, 1, 6),
    "scaled from the left": (lambda s, x: s.scale * x, 1, 6),
    "permuted": (lambda s, x: x.permute(0, 2, 3, 1), -1, 6),
    "permuted by a tuple": (lambda s, x: x.permute((0, 2, 3, 1)), -1, 6),
    "swapped": (lambda s, x: x.swapaxes(1, -1), -1, 6),
    "layer norm by keyword": (
        lambda s, x: F.layer_norm(x.permute(0, 2, 3, 1), normalized_shape=(6,), weight=s.norm.weight),
        -1,
        6,
    ),
    "linear by keyword": (lambda s, x: F.linear(x.permute(0, 2, 3, 1), weight=s.fc.weight), -1, 6),
    "convolution by keyword": (lambda s, x: F.conv2d(x, weight=s.wide), 1, 8),
    "batch norm by keyword": (
        lambda s, x: F.batch_norm(x, running_mean=s.bn.running_mean, running_var=s.bn.running_var),
        1,
        6,
    ),
    "permuted by keyword": (lambda s, x: torch.permute(x, dims=(0, 2, 3, 1)), -1, 6),
    "there and back": (lambda s, x: s.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1, 6),
    "tokens": (lambda s, x: x.flatten(2).transpose(1, 2), -1, 6),
    "tokens by keyword": (lambda s, x: x.flatten(2).transpose(dim0=2, dim1=1), -1, 6),
    "transposed places": (lambda s, x: x.transpose(2, 3), 1, 6),
    "places of tokens": (lambda s, x: x.permute(0, 2, 3, 1).transpose(-3, -2), -1, 6),
    "joined": (lambda s, x: torch.cat([x, x], 1), 1, 12),
    "joined at the end": (lambda s, x: torch.cat([x.permute(0, 2, 3, 1)] * 2, -1), -1, 12),
    "joined places": (lambda s, x: torch.cat([x, x], dim=2), 1, 6),
    "flat": (lambda s, x: F.adaptive_avg_pool2d(x, 1).flatten(1), 1, 6),
    "flat by a layer": (lambda s, x: s.flat(F.adaptive_avg_pool2d(x, 1)), 1, 6),
    "mean": (lambda s, x: x.mean((2, 3)), 1, 6),
    "mean of rows": (lambda s, x: x.mean(2), 1, 6),
    "mean of tokens": (lambda s, x: x.permute(0, 2, 3, 1).mean(1), -1, 6),
    "linear": (lambda s, x: F.linear(x.permute(0, 2, 3, 1), s.fc.weight), -1, 6),
    "layer norm": (lambda s, x: F.layer_norm(x.permute(0, 2, 3, 1), (6,), s.norm.weight), -1, 6),
    "one token": (lambda s, x: s.fc(x.flatten(2).transpose(1, 2))[:, 0], -1, 6),
    "attention": (lambda s, x: s.attention(*[x.flatten(2).transpose(1, 2)] * 3)[0], -1, 6),
    "reshaped": (lambda s, x: x.reshape(x.shape[0], 6, -1), 1, 6),
    "unflattened": (lambda s, x: x.flatten(2).unflatten(2, (4, -1)), 1, 6),
    "viewed as": (lambda s, x: x.flatten(2).view_as(x), 1, 6),
}


def output_spec(model: nn.Module, example: torch.Tensor | None = None):
    draft = Draft(model, example)
    (graph,) = draft.graphs("")
    (value,) = next(n for n in graph.nodes if n.op == "output").args
    return spec_of(draft, "", value)


@pytest.mark.parametrize("name", FORWARDS)
def test_the_axis_of_the_channels_is_followed(name):
    function, axis, channels = FORWARDS[name]
    spec = output_spec(By(function), torch.zeros(2, 3, 8, 12))
    rank = By(function)(torch.zeros(2, 3, 8, 12)).ndim
    assert (spec.axis % rank, spec.channels) == (axis % rank, channels)


def test_where_no_rule_tells_two_sizes_do():
    def odd(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, 1, 2).movedim(1, -1)

    assert output_spec(By(odd)).axis == -1


def test_what_cannot_be_told_is_said():
    def mixed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, 1, 1).reshape(x.shape[0], 2, 3, -1)

    with pytest.raises(LayoutError, match="cannot be told"):
        pipe(nn.Sequential(By(mixed), nn.Identity()), wrap("0", "se"))


def test_a_net_for_volumes_needs_no_example():
    model = nn.Sequential(nn.Conv3d(2, 4, 1), nn.ReLU())
    assert at(nn.ReLU).on(model)[0].output[1] == 4
    assert at(nn.Conv1d).on(nn.Sequential(nn.Conv1d(2, 4, 1)))[0].layout == "NCL"
    assert where(lambda site: site.layout == "NCDHW").on(model).paths == ("0", "1")


@pytest.mark.parametrize("name", ["linear by keyword", "convolution by keyword", "layer norm by keyword"])
def test_the_weights_tell_dtype_and_device(name):
    assert output_spec(By(FORWARDS[name][0]).half()).dtype == torch.float16


def test_a_model_without_parameters_gives_the_usual_dtype():
    model, x = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), torch.randn(2, 3, 8, 8)
    result = pipe(model, wrap("0", "se"), example=x)
    assert result.get_submodule("0_se").fc1.weight.dtype == torch.get_default_dtype()
    assert result(x).equal(model(x))


MODELS = (
    "mixer_s32_224", "resmlp_12_224", "gmixer_12_224", "gmlp_ti16_224", "resnet18", "vit_tiny_patch16_224",
    "swin_t", "convnext_tiny", "poolformer_s12", "pvt_v2_b0", "levit_128s", "densenet121", "squeezenet1_0",
    "mobilenet_v3_small", "vgg11_bn", "shufflenet_v2_x0_5", "googlenet", "vit_b_16", "convmixer_768_32",
    "mambaout_femto", "edgenext_xx_small", "twins_pcpvt_small", "xcit_nano_12_p8_224", "cait_xxs24_224",
    "beit_base_patch16_224", "maxvit_nano_rw_256", "hrnet_w18_small", "regnetx_002", "ghostnet_050",
    "mvitv2_tiny", "davit_tiny", "nest_tiny",
)  # fmt: skip
QUICK = ("mixer_s32_224", "resnet18", "squeezenet1_0")


@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in MODELS]
)
def test_all_answers_on_layouts_agree(name):
    with torch.device("meta"):
        build = tv.get_model if hasattr(tv, name) else timm.create_model
        model = build(name).eval()
    draft = Draft(model)
    told = shapes(model, tuple(draft.runs.run(training=False).calls[-1].args[0].shape))
    seen = 0
    for site in at("**").on(model):
        known = told.of(site.path).layout
        if site.calls and known is not None:
            call = draft.calls(site.path)[0]
            spec = spec_of(draft, call.owner, call.node)
            rank = len(told[site.path])
            built = layout_name(rank, spec.axis)
            assert (site.layout, built) == (known, known), site.path
            assert spec.channels == told[site.path][spec.axis % rank], site.path
            seen += 1
    assert seen > 10


def test_tokens_are_not_gated_as_channels():
    model = timm.create_model("mixer_s32_224", num_classes=2)
    assert pipe(model, wrap("blocks.0", "se")).blocks[0].se.fc1.in_channels == 512
    assert pipe(model, wrap("blocks.1.mlp_tokens", "se")).get_submodule("blocks.1.mlp_tokens.se") is not None
    assert (
        at("blocks.0").on(model)[0].layout == shapes(model, (1, 3, 224, 224)).of("blocks.0").layout == "NLC"
    )


def test_the_input_of_a_layer_on_tokens():
    model = timm.create_model("mixer_s32_224", num_classes=2)
    new = pipe(model, inject("blocks.0.norm1", "se", where="before"), inject("blocks.1.add", "se"))
    sizes = [m.in_channels for n, m in new.named_modules() if n.endswith("_se.fc1")]
    assert sizes == [512, 512]


class Sequence(nn.Module):
    """Tokens before samples, as layers of torch have them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.layer, self.fc = nn.TransformerEncoderLayer(16, 2, 32, 0.0), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


@pytest.mark.parametrize("block", ["se", "eca", "group_norm", "self_attention", "non_local", "gather_excite"])
def test_a_block_does_not_mix_samples_where_the_batch_is_not_first(block):
    x = torch.rand(3, 3, 32, 32)
    with pytest.raises(LayoutError, match="not the batch"):
        pipe(Sequence(), wrap("layer", block), example=x)
    assert shapes(Sequence(), x.shape).of("layer").layout is None
    result = pipe(Sequence().eval(), wrap("layer", "adapter"), example=x)
    assert torch.allclose(result(x)[:1], result(x[:1]), atol=1e-5)


def test_a_part_that_is_called_again_and_again_has_a_layout():
    part = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(part, part), nn.Flatten(), nn.Linear(4 * 900, 2))
    assert pipe(model, wrap("1", "se"), example=torch.zeros(2, 3, 32, 32))

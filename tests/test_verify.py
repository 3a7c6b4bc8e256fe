"""Verify: equal models are the same; of others it is said where they part, and why."""

from __future__ import annotations

import copy
import random
from functools import partial

import pytest
import timm
import torch
import transformers
from randomised import randomise
from torch import nn
from torch.nn import functional as F
from torchvision import models

from torchgraft import drop_head, pipe, replace, swap_head, trace, wrap
from torchgraft.alignment.align import align
from torchgraft.alignment.check.trail import mark_of
from torchgraft.alignment.verify import Difference, Output, Site, Verdict, verify
from torchgraft.blocks import se
from torchgraft.errors import AnalysisError, ModelError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 64, 64)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
TIGHT = 1e-6


class Net(nn.Module):
    """A convolution, a residual, a concatenation, a resizing, attention, an MLP; each can be varied."""

    def __init__(self, **options):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.gn = nn.Conv2d(16, 8, 1), nn.GroupNorm(2, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.ln, self.fc1, self.fc2, self.head = (
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 5),
        )
        self.options = {
            "slope": 0.1,
            "scale": 0.25,
            "residual": True,
            "gelu": "none",
            "mode": {"mode": "bilinear"},
            "pool": F.max_pool2d,
            "act": F.relu,
            "drop": 0,
            "turned": False,
            "roll": 1,
            "temperature": 1.0,
        } | options

    def forward(self, x):
        told = self.options
        x = F.leaky_relu(self.bn(self.conv1(x)), told["slope"])
        y = self.conv3(told["act"](self.conv2(x)))
        x = told["pool"](x + y if told["residual"] else y, 2, stride=4)
        parts = [self.left(x), self.right(x)]
        x = self.gn(
            torch.roll(self.mix(torch.cat(parts[::-1] if told["turned"] else parts, 1)), told["roll"], 2)
        )
        t = F.avg_pool2d(F.interpolate(x, scale_factor=2, **told["mode"]), 4).flatten(2).transpose(1, 2)
        shares = torch.softmax(self.q(t) @ self.k(t).transpose(1, 2) * told["scale"], -1)
        shares = F.dropout(shares, told["drop"], training=True) if told["drop"] else shares
        t = t + self.o(shares @ self.v(t))
        t = t + self.fc2(F.gelu(self.fc1(self.ln(t)), approximate=told["gelu"]))
        return self.head(t.mean(1)) / told["temperature"]


BASE = randomise(Net(), 1, SHAPE)


def other(**options):
    made = Net(**options)
    made.load_state_dict(BASE.state_dict())
    return made


def reasons(verdict):
    return {(r.what, r.a, r.b) for r in verdict.divergence.reasons}


VARIED = {
    "slope": ({"slope": 0.3}, "leaky_relu", ("negative_slope", 0.1, 0.3)),
    "activation": ({"act": F.silu}, "relu", ("function", "relu", "silu")),
    "no activation": ({"act": lambda t: t}, "relu", ("function", "relu", None)),
    "no residual": ({"residual": False}, "add", ("function", "add", None)),
    "pooling": ({"pool": F.avg_pool2d}, "max_pool2d", ("function", "max_pool2d", "avg_pool2d")),
    "order of parts": ({"turned": True}, "cat", ("input", "linear of left", "conv of right")),
    "roll": ({"roll": 2}, "roll", ("shifts", (1,), (2,))),
    "corners": (
        {"mode": {"mode": "bilinear", "align_corners": True}},
        "upsample_bilinear2d",
        ("align_corners", False, True),
    ),
    "mode": (
        {"mode": {"mode": "nearest"}},
        "upsample_bilinear2d",
        ("function", "upsample_bilinear2d", "upsample_nearest2d"),
    ),
    "attention scale": ({"scale": 0.3}, "mul", ("factor", 0.25, 0.3)),
    "gelu": ({"gelu": "tanh"}, "gelu", ("approximate", "none", "tanh")),
    "temperature": ({"temperature": 1.1}, "div", ("function", None, "div(1.1)")),
}


@pytest.mark.parametrize("name", VARIED)
def test_functions(name):
    options, kind, reason = VARIED[name]
    found = verify(BASE, other(**options), X, tolerance=TIGHT)
    assert not found
    assert found.divergence.site_a.path == ""
    assert found.divergence.site_a.kind == kind
    assert reason in reasons(found)
    assert found.divergence.made > TIGHT
    assert (found.divergence.seen < TIGHT) == (reason[0] != "input")


def test_dropout_that_is_active_in_evaluation_mode():
    found = verify(BASE, other(drop=0.2), X)
    assert reasons(found) == {("function", None, "dropout(p=0.2)")}
    assert found.divergence.site_b.kind == "dropout"


SETTINGS = {
    "bn eps": ("bn", {"eps": 1e-3}, ("eps", 1e-5, 1e-3)),
    "ln eps": ("ln", {"eps": 1e-2}, ("eps", 1e-5, 1e-2)),
    "gn eps": ("gn", {"eps": 1e-2}, ("eps", 1e-5, 1e-2)),
    "groups": ("gn", {"num_groups": 4}, ("group", 2, 4)),
    "dilation": ("conv2", {"dilation": (2, 2), "padding": (2, 2)}, ("dilation", (1, 1), (2, 2))),
    "padding mode": (
        "conv2",
        {"padding_mode": "reflect", "_reversed_padding_repeated_twice": (1, 1, 1, 1)},
        ("function", None, "reflection_pad2d"),
    ),
}


def changed(model, path, **attributes):
    made = copy.deepcopy(model)
    for name, value in attributes.items():
        setattr(made.get_submodule(path), name, value)
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    path, attributes, reason = SETTINGS[name]
    found = verify(BASE, changed(BASE, path, **attributes), X)
    assert found.divergence.site_a.path == found.divergence.site_b.path == path
    assert reason in reasons(found)


def altered(model, **alter):
    made = copy.deepcopy(model)
    state = made.state_dict()
    with torch.no_grad():
        for key, change in alter.items():
            state[key.replace("__", ".")].copy_(change(state))
    return made


WEIGHTS = {
    "one per cent": ({"conv3__weight": lambda s: s["conv3.weight"] * 1.01}, "conv3.weight", 0.01),
    "one value": (
        {"fc1__weight": lambda s: s["fc1.weight"] + torch.eye(16, 8) * 0.5},
        "fc1.weight",
        None,
    ),
    "bias": ({"v__bias": lambda s: s["v.bias"] + 1}, "v.bias", None),
    "statistics": ({"bn__running_mean": lambda s: s["bn.running_mean"] * 2}, "bn.running_mean", 1.0),
    "transposed": ({"o__weight": lambda s: s["o.weight"].t().clone()}, "o.weight", None),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    alter, key, far = WEIGHTS[name]
    found = verify(BASE, altered(BASE, **alter), X)
    path, _, what = key.rpartition(".")
    assert reasons(found) == {(what, key, key)}
    assert found.divergence.site_b.path == path
    assert key in found.divergence.site_b.keys
    assert far is None or found.divergence.reasons[0].apart == pytest.approx(far, rel=1e-3)


@pytest.mark.parametrize(("one", "two"), [("q", "k"), ("conv2", "conv3")])
def test_swapped_weights(one, two):
    names = f"{one}.weight", f"{two}.weight"
    held = BASE.state_dict()
    swap = {f"{one}__weight": lambda _: held[names[1]], f"{two}__weight": lambda _: held[names[0]]}
    found = verify(BASE, altered(BASE, **swap), X)
    assert found.divergence.site_a.path == one
    assert reasons(found) == {("weight", names[0], names[0]), ("moved", *names)}


def test_a_missing_bias_is_zeros():
    made = copy.deepcopy(BASE)
    made.conv1.bias = None
    found = verify(BASE, made, X)
    assert reasons(found) == {("bias", "conv1.bias", None)}
    zero = altered(BASE, conv1__bias=lambda s: torch.zeros_like(s["conv1.bias"]))
    assert verify(zero, made, X)


@pytest.fixture(scope="module")
def resnet():
    return randomise(models.resnet18(), 1, SHAPE)


@pytest.fixture(scope="module")
def timm_resnet(resnet):
    made = timm.create_model("resnet18").eval()
    found = align(resnet, made, example=X)
    assert verify(resnet, made, X, alignment=found)
    assert not verify(resnet, made, X)
    made.load_state_dict(found.apply(resnet.state_dict()), strict=False)
    return made


def test_golden_texts(resnet, timm_resnet):
    assert str(verify(resnet, resnet, X)) == "same: 1 output, 0 apart (relative)"
    one = altered(resnet, layer3__1__conv2__weight=lambda s: s["layer3.1.conv2.weight"] * 1.01)
    assert str(verify(resnet, one, X).divergence) == (
        "layer3.1.conv2 (conv): weight layer3.1.conv2.weight, 0.01 apart; 28 of 41 sites agree before it"
    )
    other = changed(timm_resnet, "layer3.1", act1=nn.SiLU())
    found = verify(resnet, other, X)
    assert str(found) == f"differ by {found.error:.2g} (relative): first at {found.divergence}"
    assert str(found.divergence) == (
        "layer3.1.relu / layer3.1.act1 (relu / silu): function relu against silu; 28 of 41 sites agree before it"
    )
    assert found.divergence.site_a == Site("layer3.1.relu", (), "relu")
    assert found.divergence.reasons == (Difference("function", "relu", "silu"),)
    head = verify(resnet, pipe(resnet, swap_head(10), seed=0), X)
    assert str(head) == (
        "differ in shape: the output (2, 1000) against (2, 10): first at fc (linear): "
        "bias fc.bias, of another shape; weight fc.weight, of another shape; 40 of 41 sites agree before it"
    )
    assert head.error == float("inf")
    assert (
        str(Difference("moved", "q.weight", "k.weight")) == "q.weight of the first is k.weight of the second"
    )


RESNET = {
    "eps": ("layer4.1.bn2", {"eps": 1e-2}, ("eps", 1e-5, 1e-2)),
    "eps beside": ("layer2.0.downsample.1", {"eps": 1e-2}, ("eps", 1e-5, 1e-2)),
    "pool": ("maxpool", {"kernel_size": 2}, ("kernel_size", (3, 3), (2, 2))),
    "padding": ("conv1", {"padding": (2, 2)}, ("padding", (3, 3), (2, 2))),
}


@pytest.mark.parametrize("name", RESNET)
def test_one_setting_of_a_resnet(resnet, name):
    path, attributes, reason = RESNET[name]
    found = verify(resnet, changed(resnet, path, **attributes), X)
    assert found.divergence.site_b.path == path
    assert reasons(found) == {reason}


def test_a_stride_that_moved(resnet):
    made = changed(changed(resnet, "layer3.0.conv1", stride=(1, 1)), "layer3.0.conv2", stride=(2, 2))
    found = verify(resnet, made, X)
    assert found.divergence.site_b.path == "layer3.0.conv1"
    assert reasons(found) == {("stride", (2, 2), (1, 1))}


@pytest.mark.parametrize("across", [False, True])
def test_a_block_that_is_missing(resnet, timm_resnet, across):
    made = changed(timm_resnet if across else resnet, "layer3", **{"1": nn.Identity()})
    found = verify(resnet, made, X)
    block = "convolution, batch_norm(eps=1e-05), relu, convolution, batch_norm(eps=1e-05), add, relu"
    assert reasons(found) == {("function", block, None)}
    assert (found.divergence.site_a.path, found.divergence.site_b.path) == (
        "layer3.1.conv1",
        "layer4.0.conv1",
    )


@pytest.mark.parametrize("across", [False, True])
def test_a_norm_that_is_missing(resnet, timm_resnet, across):
    made = changed(timm_resnet if across else resnet, "layer2.0", bn2=nn.Identity())
    found = verify(resnet, made, X)
    assert reasons(found) == {("function", "batch_norm(eps=1e-05)", None)}
    assert found.divergence.site_a.path == "layer2.0.bn2"


@pytest.mark.parametrize("across", [False, True])
def test_permuted_weights(resnet, timm_resnet, across):
    key = "layer2.0.conv2.weight"
    made = altered(timm_resnet if across else resnet, layer2__0__conv2__weight=lambda s: s[key].flip(0))
    assert reasons(verify(resnet, made, X)) == {("weight", key, key)}


def test_dead_features_are_no_statistics_at_zero():
    one = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    dead = altered(one, **{f"0__{name}": lambda _: torch.zeros(()) for name in ("weight", "bias")})
    found = verify(one, dead, torch.randn(1, 6))
    assert reasons(found) == {("weight", "0.weight", "0.weight"), ("bias", "0.bias", "0.bias")}


def test_across_implementations(resnet, timm_resnet):
    assert verify(resnet, timm_resnet, X)
    found = verify(resnet, changed(timm_resnet, "layer4.1.bn2", eps=1e-2), X)
    assert found.divergence.site_a.path == "layer4.1.bn2"
    assert reasons(found) == {("eps", 1e-5, 1e-2)}
    assert (found.divergence.agree, found.divergence.total) == (39, 41)


def test_a_right_mapping_with_other_outputs_is_explained():
    source = randomise(models.mobilenet_v3_small(), 1, SHAPE)
    target = timm.create_model("mobilenetv3_small_100")
    mapping = align(source, target, example=X)
    found = verify(source, target, X, alignment=mapping)
    assert str(found.divergence) == (
        "features.0.1 / bn1 (norm): eps 0.001 against 1e-05; 1 of 88 sites agree before it"
    )
    assert verify(source, timm.create_model("mobilenetv3_small_100", bn_eps=1e-3), X, alignment=mapping)


CONFIG = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "image_size": 64,
    "intermediate_size": 128,
}


def hugging(**more):
    return transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG, **more))


def timm_vit(eps=1e-12):
    shape = {"img_size": 64, "depth": 3, "num_heads": 4, "embed_dim": 64, "mlp_ratio": 2, "num_classes": 2}
    return timm.create_model(
        "vit_tiny_patch16_224", norm_layer=partial(nn.LayerNorm, eps=eps), **shape
    ).eval()


@pytest.fixture(scope="module")
def vit():
    return randomise(hugging(), 1, SHAPE)


@pytest.fixture(scope="module")
def mapped(vit):
    made = timm_vit()
    made.load_state_dict(align(vit, made, example=X).apply(vit.state_dict()))
    return made


def test_transformers(vit, mapped):
    assert verify(vit, mapped, X)
    assert verify(vit, mapped, X).outputs[0].name == "logits"
    gelu = hugging(hidden_act="gelu_new")
    gelu.load_state_dict(vit.state_dict())
    found = verify(vit, gelu, X)
    assert found.divergence.site_a.path == "vit.layers.0.mlp.activation_fn"
    assert "function gelu against mul(0.5), pow(3), mul(0.044715), add, mul(" in str(found)


def rows(model, first, last):
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.blocks[1].attn.qkv.weight[first:last] *= 1.1
    return made


def test_parts_of_a_fused_layer(vit, mapped):
    for name, first in (("q", 0), ("v", 128)):
        found = verify(vit, rows(mapped, first, first + 64), X)
        assert found.divergence.site_a.path == f"vit.layers.1.attention.{name}_proj"
        assert found.divergence.site_b.path == "blocks.1.attn.qkv"
        assert reasons(found) == {
            ("weight", f"vit.layers.1.attention.{name}_proj.weight", "blocks.1.attn.qkv.weight")
        }


def test_what_matters_far_more_is_said_too(vit, mapped):
    made = timm_vit(eps=1e-5)
    made.load_state_dict(mapped.state_dict())
    assert verify(vit, made, X).larger is None
    made.blocks[1].mlp.act = nn.SiLU()
    found = verify(vit, made, X)
    assert reasons(found) == {("eps", 1e-12, 1e-5)}
    assert str(found).endswith(
        "; far more at vit.layers.1.mlp.activation_fn / blocks.1.mlp.act (gelu / silu): function gelu against silu"
    )
    scale = changed(changed(mapped, "blocks.1.attn", scale=0.3), "blocks.1.attn", fused_attn=False)
    found = verify(vit, scale, X)
    assert found.divergence.site_b.path == "blocks.1.attn"
    assert "mul(0.3)" in str(found)


def test_tables_shifts_and_heads():
    kind = models.swin_transformer.SwinTransformer
    swin = randomise(kind([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10), 1, SHAPE)
    key = "features.1.0.attn.relative_position_bias_table"
    table = verify(swin, altered(swin, **{key.replace(".", "__"): lambda s: s[key] * 1.1}), X)
    assert reasons(table) == {("parameter", key, key)}
    shift = verify(swin, changed(swin, "features.1.1.attn", shift_size=[1, 1]), X)
    assert shift.divergence.site_b == Site("features.1.1.attn", (), "roll")
    assert reasons(shift) == {("shifts", (-2, -2), (-1, -1))}


def test_heads():
    kind = models.vision_transformer.VisionTransformer
    vit = randomise(kind(64, 16, 3, 4, 64, 128, num_classes=10), 1, SHAPE)
    path = "encoder.layers.encoder_layer_1.self_attention"
    made = copy.deepcopy(vit)
    made.get_submodule(path).num_heads = 2
    found = verify(vit, made, X)
    assert found.divergence.site_b.path == path
    assert reasons(found) == {("size", (17, 8, 16), (17, 4, 32))}


def test_parameters_made_on_the_way():
    kinds = models.swin_transformer
    swin = randomise(
        kinds.SwinTransformer(
            [4, 4],
            24,
            [2, 2],
            [2, 4],
            [4, 4],
            num_classes=10,
            block=kinds.SwinTransformerBlockV2,
            downsample_layer=kinds.PatchMergingV2,
        ),
        1,
        SHAPE,
    )
    before = {key: value.clone() for key, value in swin.state_dict().items()}
    key = "features.1.1.attn.cpb_mlp.0.weight"
    found = verify(swin, altered(swin, **{key.replace(".", "__"): lambda s: s[key] * 1.1}), X)
    assert reasons(found) == {("weight", key, key)}
    assert all(value.equal(before[name]) for name, value in swin.state_dict().items())


def test_edited_models(resnet):
    assert verify(resnet, trace(resnet), X)
    assert verify(resnet, pipe(resnet, wrap("layer2", se)), X)  # neutral at the start
    silu = verify(resnet, pipe(resnet, replace("layer2.0.relu", nn.SiLU)), X)
    assert reasons(silu) == {("function", "relu", "silu")}
    assert silu.divergence.site_b.path == "layer2.0.relu"
    lost = verify(resnet, pipe(resnet, drop_head()), X)
    assert not lost


class Several(nn.Module):
    def __init__(self, *names, wrong=1.0):
        super().__init__()
        self.fc, self.names, self.wrong = nn.Linear(4, 4), names, wrong

    def forward(self, x):
        made = self.fc(x)
        return {name: made * self.wrong**i for i, name in enumerate(self.names)}


def test_several_outputs():
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    one, two = Several("a", "b"), Several("a", "b", wrong=1.1)
    two.load_state_dict(one.state_dict())
    assert len(verify(one, one, x).outputs) == 2
    found = verify(one, two, x)
    assert [output.error < TIGHT for output in found.outputs] == [True, False]
    assert reasons(found) == {("function", None, "mul(1.1)")}
    single = Several("a")
    single.load_state_dict(one.state_dict())
    for a, b, said in ((one, single, "a, b against a"), (single, one, "a against a, b")):
        assert str(verify(a, b, x)) == f"differ in what they return: {said}; a is the same"
    plain = verify(one.fc, one, x)
    assert str(plain) == "differ in what they return: a tensor against a, b; a is the same"
    assert verify(one, one.fc, x).outputs == (Output("a", (2, 4), (2, 4), 0.0),)
    less = Several("a", "c")
    less.load_state_dict(one.state_dict())
    found = verify(one, less, x)
    assert str(found) == "differ in what they return: a, b against a, c; a is the same"
    assert not found.same
    assert found.error == 0
    none = verify(one, Several(), x)
    assert str(none).startswith("differ in what they return: a, b against nothing")


def test_no_numbers_and_odd_numbers():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        two.bias.fill_(float("nan"))
    found = verify(one, two)
    assert found.error == float("inf")
    assert str(found).startswith(
        "differ: one gives no numbers where the other does: first at the root (linear)"
    )
    assert verify(two, two)
    zeros = nn.Linear(3, 2)
    nn.init.zeros_(zeros.weight)
    nn.init.zeros_(zeros.bias)
    assert verify(zeros, zeros)
    assert verify(zeros, one).error == float("inf")
    assert str(Verdict(0.5, 1e-4, ())) == "differ by 0.5 (relative); no site was found where they part"
    assert mark_of(torch.ones(2, dtype=torch.complex64)).told.count == 4


def test_half_precision_is_a_difference_of_weights():
    wide = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    half = copy.deepcopy(wide).half()
    assert verify(wide, half, torch.randn(2, 8), tolerance=1e-2)
    found = verify(wide, half, {"input": torch.randn(2, 8)}, tolerance=TIGHT)
    assert ("weight", "0.weight", "0.weight") in reasons(found)
    assert found.divergence.reasons[0].apart < 1e-3


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        if x.dtype == torch.float64:
            msg = "not in double precision"
            raise TypeError(msg)
        return self.two(self.one(x).relu_())


def test_single_precision_where_double_is_refused():
    one = Custom()
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.two.weight.mul_(1.5)
    found = verify(one, two, torch.randn(2, 4))
    assert reasons(found) == {("weight", "two.weight", "two.weight")}


def narrow(model, x):
    y = model.one(x.to(torch.float32)).to(torch.complex64).real
    return model.two(y + torch.zeros(6, dtype=torch.float32) + torch.tensor(0.5))


def test_forwards_that_ask_for_single_precision():
    one = written(narrow)
    other = altered(one, two__bias=lambda s: s["two.bias"] + 1e-3)
    found = verify(one, other)
    assert reasons(found) == {("bias", "two.bias", "two.bias")}
    assert found.divergence.seen == 0


def test_nothing_is_changed_and_chance_is_left_alone():
    model = other(drop=0.2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    verify(model, BASE, X)
    assert torch.rand(3).equal(expected[0])
    assert random.random() == expected[1]
    assert model.training
    assert model.bn.training
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_verified():
    with pytest.raises(AnalysisError) as caught:
        verify(nn.Linear(3, 2), nn.Linear(3, 2, device="meta"))
    assert str(caught.value) == (
        "model b, a Linear, is on the meta device and computes nothing\n"
        "  found  weight has no values\n"
        "  write  verify(a, b) with weights loaded in both"
    )
    with pytest.raises(AnalysisError) as caught:
        verify(nn.Linear(3, 2), nn.Linear(4, 2), torch.zeros(1, 3))
    assert str(caught.value) == (
        "model b, a Linear, does not run on the example\n"
        "  found  RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x3 and 4x2)\n"
        "  write  verify(a, b, torch.zeros(<an input both models take>))"
    )
    with pytest.raises(OptionError) as caught:
        verify(nn.Linear(3, 2), nn.Linear(3, 2), tolerance=0)
    assert str(caught.value) == (
        "a tolerance is a positive number\n"
        "  asked  verify(..., tolerance=0)\n"
        "  write  verify(..., tolerance=1e-4)"
    )
    with pytest.raises(ModelError):
        verify(nn.Linear(3, 2), "resnet18")


class Written(nn.Module):
    """One function, written in several ways."""

    def __init__(self, write):
        super().__init__()
        self.one, self.two, self.write = nn.Linear(6, 6), nn.Linear(6, 6), write

    def forward(self, x):
        return self.write(self, x)


def written(write, like=None):
    made = Written(write)
    if like is not None:
        made.load_state_dict(like.state_dict())
    return made


def first(model, x):
    return torch.cat([x, model.one(x)], 1)


def last(model, x):
    return torch.cat([model.one(x), x], 1)


def test_what_enters_from_elsewhere():
    one = written(first)
    found = verify(one, written(last, one))
    assert reasons(found) == {
        ("input", "the model's input", "linear of one"),
        ("input", "linear of one", "the model's input"),
    }


def test_another_layout_of_the_output():
    one = written(lambda model, x: model.one(x))
    other = written(lambda model, x: model.one(x).t(), one)
    found = verify(one, other)
    assert reasons(found) == {("function", None, "t")}
    assert found.outputs[0].shape_b == (6, 2)


def test_another_way_to_write_is_no_difference():
    """What is spelled otherwise and comes to the same is not blamed for what differs later."""

    def plain(model, x):
        return model.two(F.silu(model.one(x) * 2) + x).tanh()

    def spelled(model, x):
        y = model.one(x)
        y = y + y
        return model.two(x + y * torch.sigmoid(y)).tanh()

    one = written(plain)
    other = written(spelled, one)
    assert verify(one, other)
    with torch.no_grad():
        other.two.weight.mul_(1.1)
    found = verify(one, other)
    assert reasons(found) == {("weight", "two.weight", "two.weight")}


def test_a_factor_that_stands_elsewhere_is_no_difference():
    one = written(lambda model, x: model.two(F.linear(x * 2, model.one.weight)))
    other = written(lambda model, x: model.two(F.linear(x, model.one.weight) * 2), one)
    assert verify(one, other)
    found = verify(one, altered(other, two__bias=lambda s: s["two.bias"] + 1))
    assert reasons(found) == {("bias", "two.bias", "two.bias")}


def test_the_terms_of_a_sum_may_change_places():
    one = written(lambda model, x: x + model.two(model.one(x).relu()))
    other = written(lambda model, x: model.two(model.one(x).relu()) + x, one)
    assert verify(one, other)
    found = verify(one, altered(other, two__weight=lambda s: s["two.weight"] * 2))
    assert reasons(found) == {("weight", "two.weight", "two.weight")}


def test_models_that_have_nothing_in_common():
    one = written(lambda model, x: model.two(model.one(x).relu()))
    other = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    found = verify(one, other)
    assert not found
    assert found.divergence.agree == 0
    assert found.divergence.reasons
    assert not verify(nn.Identity(), nn.Linear(6, 6), torch.randn(2, 6))
    assert verify(nn.Identity(), nn.Flatten(), torch.randn(2, 6))
    assert verify(nn.Identity(), nn.Linear(6, 6), torch.randn(2, 6)).structure is None


def test_integers_are_compared_too():
    one = written(lambda model, x: model.one(x).argmax(1))
    other = written(lambda model, x: model.one(x).argmin(1), one)
    found = verify(one, other)
    assert reasons(found) == {("function", "argmax", "argmin")}
    table = written(lambda model, x: (model.one(x), model.two.bias * 2))
    assert reasons(verify(table, altered(table, two__bias=lambda s: s["two.bias"] + 1))) == {
        ("parameter", "two.bias", "two.bias")
    }
    empty = written(lambda model, x: model.one(x)[:0])
    assert verify(empty, empty)

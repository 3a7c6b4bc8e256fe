"""Units, pooling and regularisers: shapes as declared, neutral starts, the papers' arithmetic."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import densenet, efficientnet, mobilenetv2, resnet, resnet18
from torchvision.ops import Conv2dNormActivation, DropBlock2d
from torchvision.ops import stochastic_depth as reference_depth

from torchgraft import inject, pipe, replace, wrap
from torchgraft.blocks.branches import dense, inception, widths
from torchgraft.blocks.contract import grouped
from torchgraft.blocks.convolution import conv_norm_act, coord_conv, depthwise_separable
from torchgraft.blocks.inverted import fused_mbconv, mbconv
from torchgraft.blocks.pooling import gem
from torchgraft.blocks.regularise import drop_block, dropout, stochastic_depth
from torchgraft.blocks.residual import basic_residual, bottleneck_residual
from torchgraft.errors import LayoutError, OptionError, ShapeError
from torchgraft.spec import TensorSpec

NORMS = ("batch_norm", "group_norm", "none")
ACTS = ("relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "mish", "none")
SIZES = ((1, 1), (7, 5), (8, 8), (33, 17))

_WORDS = {"norm": st.sampled_from(NORMS), "act": st.sampled_from(ACTS)}
_UNIT = {
    "channels": st.sampled_from((None, 4, 6, 16)),
    "stride": st.sampled_from((None, 1, 2, 3)),
    **_WORDS,
}
_KERNEL = {"kernel": st.sampled_from((1, 3, 5))}
_NEUTRAL = {"neutral": st.booleans()}
_INVERTED = {"expand": st.sampled_from((1, 2, 3)), "reduction": st.sampled_from((None, 1, 4, 100))}
_SHARE = {"p": st.sampled_from((0.0, 0.3))}
OPTIONS = {
    conv_norm_act: {**_UNIT, **_KERNEL},
    depthwise_separable: {**_UNIT, **_KERNEL},
    coord_conv: {**_UNIT, **_KERNEL, "radius": st.booleans()},
    mbconv: {**_UNIT, **_KERNEL, **_NEUTRAL, **_INVERTED},
    fused_mbconv: {**_UNIT, **_KERNEL, **_NEUTRAL, **_INVERTED},
    basic_residual: {**_UNIT, **_KERNEL, **_NEUTRAL},
    bottleneck_residual: {**_UNIT, **_KERNEL, **_NEUTRAL, "reduction": st.sampled_from((1, 4, 100))},
    inception: _UNIT,
    dense: {**_WORDS, **_KERNEL, "growth": st.sampled_from((1, 6)), "layers": st.sampled_from((1, 3))},
    gem: {"p": st.sampled_from((1.0, 3.0)), "eps": st.just(1e-4)},
    dropout: _SHARE,
    drop_block: {**_SHARE, "size": st.sampled_from((1, 3, 7))},
    stochastic_depth: _SHARE,
}
UNITS = [made for made in OPTIONS if "stride" in OPTIONS[made]]
RESIDUAL = [made for made in OPTIONS if "neutral" in OPTIONS[made]]
REGULARISERS = [dropout, drop_block, stochastic_depth]
KEEP = [made for made in OPTIONS if made not in (dense, gem)]


def spec(channels: int, dtype: torch.dtype = torch.float32, device: str = "cpu", **wanted: int) -> TensorSpec:
    return TensorSpec(channels, 1, 4, dtype, torch.device(device), **wanted)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lively(module: nn.Module) -> nn.Module:
    """Give norms values and statistics that are not zero and one."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias, 0, 0.2)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module


def agree(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Two modules of the same weights give the same values and gradients in both modes."""
    for training in (False, True):
        ours.train(training), theirs.train(training)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        assert ours(mine).equal(theirs(other))
        ours(mine).square().sum().backward()
        theirs(other).square().sum().backward()
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def named(made: object) -> str:
    return made.__name__


# Shapes ------------------------------------------------------------------------------------


@functools.cache
def drawn(make) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=OPTIONS[make])


@pytest.mark.parametrize("make", OPTIONS, ids=named)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_contract_is_what_the_module_does(make, data):
    options = data.draw(drawn(make))
    width = data.draw(st.sampled_from((4, 5, 12, 32)))
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
    size, batch = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from((1, 3)))
    block, shape = make(**options), (batch, width, *size)
    declared = block.shape(shape)
    module = lively(block.build(spec(width, dtype))).eval()
    x = torch.randn(shape, dtype=dtype)
    output = module(x)
    assert output.shape == declared
    assert output.dtype == dtype
    assert {p.dtype for p in module.parameters()} <= {dtype}
    single = declared[2] * declared[3] == 1 or size == (1, 1)
    if batch > 1 or not single:  # torch wants more than one value per channel
        assert module.train()(x).shape == declared
    meta = block.build(spec(width, dtype, "meta")).eval()
    assert all(t.is_meta for t in meta.state_dict().values())
    assert meta(x.to("meta")).shape == declared


@pytest.mark.parametrize("make", UNITS, ids=named)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_wanted_at_a_place_counts_where_no_option_does(make, size, stride):
    module = make().build(spec(8, out_channels=12, stride=stride)).eval()
    sides = [-(-side // stride) for side in size]
    x = torch.randn(2, 8, *size)
    assert module(x).shape == (2, 12, *sides)
    asked = make(channels=16, stride=3).build(spec(8, out_channels=12, stride=stride)).eval()
    assert asked(x).shape == make(channels=16, stride=3).shape(x.shape)


@pytest.mark.parametrize("make", OPTIONS, ids=named)
@pytest.mark.parametrize("training", [False, True])
def test_units_can_be_traced_and_compiled(make, training):
    module = lively(make().build(spec(8))).train(training)
    traced = torch.fx.symbolic_trace(module)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for size in ((7, 5), (8, 8), (4, 4)):
        x, results = torch.randn(2, 8, *size), []
        for variant in (module, traced, compiled):
            torch.manual_seed(0)
            results.append(variant(x))
        assert results[0].equal(results[1])
        assert torch.allclose(results[0], results[2], atol=1e-6)


def test_parameters_of_256_channels():
    counts = {named(make): count(make().build(spec(256))) for make in OPTIONS}
    assert counts == {
        "conv_norm_act": 590_336,
        "depthwise_separable": 68_864,
        "coord_conv": 594_688,
        "mbconv": 1_005_120,
        "fused_mbconv": 2_624_000,
        "basic_residual": 1_180_672,
        "bottleneck_residual": 70_400,
        "inception": 177_376,
        "dense": 484_800,
        "gem": 1,
        "dropout": 0,
        "drop_block": 0,
        "stochastic_depth": 0,
    }


# Neutral starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", RESIDUAL, ids=named)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"act": "gelu"}, {"act": "relu", "expand": 1}], ids=str)
def test_residual_units_start_as_the_identity_and_train(make, norm, options):
    if make in (basic_residual, bottleneck_residual):
        options = {key: value for key, value in options.items() if key != "expand"}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        module = make(norm=norm, **options).build(spec(16, dtype))
        x = torch.randn(4, 16, 7, 5, dtype=dtype) * 10
        assert module.train()(x).equal(x)
        assert module.eval()(x).equal(x)
    module = make(norm=norm, **options).build(spec(16)).train()
    reached = set()
    x, goal = torch.randn(4, 16, 7, 5), torch.randn(4, 16, 7, 5)
    for _ in range(2):
        module.zero_grad()
        (module(x) - goal).square().mean().backward()
        reached |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert reached == {n for n, _ in module.named_parameters()}
    assert not module(x).equal(x)


@pytest.mark.parametrize("make", RESIDUAL, ids=named)
def test_neutral_has_no_effect_where_the_shape_changes(make):
    x = torch.randn(2, 16, 6, 6)
    for change in ({"channels": 8}, {"stride": 2}):
        results = []
        for neutral in (True, False):
            torch.manual_seed(3)
            results.append(make(neutral=neutral, **change).build(spec(16))(x))
        assert results[0].equal(results[1])
        assert results[0].any()
    assert not make(neutral=False).build(spec(16))(x).equal(x)


@pytest.mark.parametrize("make", [*RESIDUAL, dense], ids=named)
def test_convolutions_start_as_the_paper_says(make):
    options = {} if make is dense else {"neutral": False}
    for layer in make(**options, norm="none").build(spec(64)).modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
            assert not layer.bias.any()


# The papers' arithmetic --------------------------------------------------------------------


@pytest.mark.parametrize(("taken", "given_", "stride"), [(16, 16, 1), (16, 32, 1), (16, 16, 2), (16, 32, 2)])
def test_residual_units_are_torchvisions(taken, given_, stride):
    x = torch.randn(2, taken, 7, 5)
    kept = taken == given_ and stride == 1
    for make, unit, planes in (
        (basic_residual, resnet.BasicBlock, given_),
        (bottleneck_residual, resnet.Bottleneck, given_ // 4),
    ):
        projection = nn.Sequential(nn.Conv2d(taken, given_, 1, stride, bias=False), nn.BatchNorm2d(given_))
        theirs = lively(unit(taken, planes, stride, None if kept else projection))
        ours = make(channels=given_, stride=stride, neutral=False).build(spec(taken))
        ours.load_state_dict(theirs.state_dict())
        agree(ours, theirs, x)


@pytest.mark.parametrize(("given_", "stride"), [(16, 1), (24, 1), (16, 2)])
@pytest.mark.parametrize("expand", [1, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_inverted_residuals_are_torchvisions(given_, stride, expand, kernel):
    x = torch.randn(2, 16, 9, 7)
    asked = {"channels": given_, "stride": stride, "expand": expand, "kernel": kernel, "neutral": False}
    for make, unit, config in (
        (mbconv, efficientnet.MBConv, efficientnet.MBConvConfig),
        (fused_mbconv, efficientnet.FusedMBConv, efficientnet.FusedMBConvConfig),
    ):
        theirs = lively(unit(config(expand, kernel, stride, 16, given_, 1), 0.0, nn.BatchNorm2d))
        ours = make(**asked).build(spec(16))
        ours.load_state_dict(theirs.state_dict())
        agree(ours, theirs, x)
    if kernel == 3:
        theirs = lively(mobilenetv2.InvertedResidual(16, given_, stride, expand))
        ours = mbconv(**asked, reduction=None, act="relu6").build(spec(16))
        ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
        agree(ours, theirs, x)


def test_plain_units_are_compositions_of_torch():
    x = torch.randn(2, 8, 7, 5)
    theirs = lively(Conv2dNormActivation(8, 12, 5, 2, inplace=False))
    ours = conv_norm_act(channels=12, kernel=5, stride=2).build(spec(8))
    ours.load_state_dict(theirs.state_dict())
    agree(ours, theirs, x)

    theirs = lively(
        nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        )
    )  # fmt: skip
    ours = depthwise_separable(channels=12, stride=2).build(spec(8))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    agree(ours, theirs, x)


@pytest.mark.parametrize("radius", [False, True])
def test_coordinates_run_from_minus_one_to_one(radius):
    unit = coord_conv(channels=12, radius=radius).build(spec(8))
    for h, w in ((7, 5), (300, 2)):
        x = torch.randn(2, 8, h, w)
        rows = torch.linspace(-1, 1, h).reshape(1, 1, h, 1).expand(2, 1, h, w)
        columns = torch.linspace(-1, 1, w).reshape(1, 1, 1, w).expand(2, 1, h, w)
        added = [rows, columns, (rows**2 + columns**2).sqrt()] if radius else [rows, columns]
        conv = unit.conv[0]
        expected = F.conv2d(torch.cat([x, *added], 1), conv.weight, conv.bias, padding=1)
        assert torch.allclose(unit(x), expected, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        half = unit.coordinates(torch.zeros(1, 1, 5000, 1, dtype=dtype))  # places it cannot count
        assert half[0, 1, :, 0].equal(torch.linspace(-1, 1, 5000, dtype=torch.float64).to(dtype))
        assert not half[0, 2].any()  # one column is at the centre
    fine = unit.coordinates(torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    assert fine[0, 1, 1, 0].item() == -1 / 3


def test_inception_is_that_of_the_paper():
    assert widths(256) == (64, 128, 32, 32)
    module = inception(channels=256, norm="none").build(spec(192))
    assert count(module) == 163_696  # of unit 3a
    for width in (4, 5, 7, 8, 9, 100):
        assert sum(widths(width)) == width
        assert min(widths(width)) >= 1

    module = lively(inception(channels=12, stride=2).build(spec(8))).eval()
    x = torch.randn(2, 8, 7, 5)

    def seen(branch: nn.Sequential, value: torch.Tensor, stride: int) -> torch.Tensor:
        conv, norm = branch[0], branch[1]
        side = conv.weight.shape[-1]
        value = F.conv2d(value, conv.weight, stride=stride, padding=side // 2)
        value = F.batch_norm(value, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return value.relu()

    assert [b[1][0].weight.shape[-1] for b in (module.branch2, module.branch3)] == [3, 5]
    expected = [
        seen(module.branch1, x, 2),
        seen(module.branch2[1], seen(module.branch2[0], x, 1), 2),
        seen(module.branch3[1], seen(module.branch3[0], x, 1), 2),
        seen(module.branch4[1], F.max_pool2d(x, 3, 2, padding=1), 1),
    ]
    assert torch.allclose(module(x), torch.cat(expected, 1), atol=1e-6)
    with pytest.raises(OptionError, match="at least four channels"):
        inception().build(spec(3))


def test_dense_blocks_are_torchvisions():
    theirs = lively(densenet._DenseBlock(3, 16, bn_size=4, growth_rate=8, drop_rate=0.0))
    ours = dense(growth=8, layers=3).build(spec(16))
    ours.load_state_dict(theirs.state_dict())
    agree(ours, theirs, torch.randn(2, 16, 7, 5))


def test_groups_divide_every_width():
    for width in range(1, 300):
        groups = grouped(width).num_groups
        assert width % groups == 0
        assert width == 1 or (groups <= 32 and width // groups >= 2)
    assert [grouped(width).num_groups for width in (64, 256, 96, 32, 80)] == [32, 32, 32, 16, 20]


# Pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 8, 7), (2, 8, 7, 5), (2, 8, 3, 4, 5), (2, 8, 1, 1)])
def test_gem_is_its_formula(shape):
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    dims = tuple(range(2, x.ndim))
    for p in (1.0, 2.5, 3.0):
        expected = x.pow(p).mean(dims, keepdim=True).pow(1 / p)
        assert torch.allclose(gem(p=p).build(spec(8, torch.float64))(x), expected)
    assert torch.allclose(gem(p=1.0).build(spec(8, torch.float64))(x), x.mean(dims, keepdim=True))
    largest = gem(p=300.0).build(spec(8, torch.float64))(x)
    assert torch.allclose(largest, x.amax(dims, keepdim=True), rtol=0.02)


def test_gem_learns_its_exponent_and_takes_what_is_below_zero():
    module = gem().build(spec(8))
    x = torch.randn(2, 8, 7, 5, requires_grad=True)
    module(x).sum().backward()
    assert module.p.grad.isfinite().all()
    assert module.p.grad.abs().sum() > 0
    assert x.grad.isfinite().all()
    assert torch.allclose(module(-torch.ones(1, 8, 2, 2)), torch.tensor(1e-6))
    with torch.no_grad():
        module.p.fill_(1)
    assert torch.allclose(module(x), x.clamp(min=1e-6).mean((2, 3), keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_is_safe_in_half_precision(dtype):
    x = (torch.rand(2, 8, 30, 30) * 3e4).to(dtype).requires_grad_()  # whose cube is infinity
    module = gem().build(spec(8, dtype))
    output = module(x)
    assert output.dtype == dtype
    expected = x.detach().double().pow(3).mean((2, 3), keepdim=True).pow(1 / 3)
    assert torch.allclose(output.double(), expected, rtol=1e-2)
    output.sum().backward()
    assert x.grad.isfinite().all()
    empty = torch.zeros(2, 8, 3, 3, dtype=dtype, requires_grad=True)
    module = gem(eps=1e-9).build(spec(8, dtype))  # which is zero there
    module(empty).sum().backward()
    assert empty.grad.isfinite().all()
    assert module.p.grad.isfinite().all()
    module = gem().build(spec(8))
    with torch.autocast("cpu", dtype):
        mixed = module(x)
    assert torch.allclose(mixed.double(), expected, rtol=1e-2)


# Regularisers ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", REGULARISERS, ids=named)
def test_regularisers_are_the_identity_in_evaluation_and_keep_the_mean(make):
    module = make(0.3).build(spec(8))
    x = torch.ones(40, 8, 14, 14)
    assert module.eval()(x) is x
    output = module.train()(x)
    assert 0.15 < output.eq(0).float().mean() < 0.45
    assert output.mean().item() == pytest.approx(1, abs=0.25)
    assert make(0.0).build(spec(8)).train()(x).equal(x)


def test_regularisers_are_torchs():
    x = torch.randn(4, 8, 14, 14)
    for module, reference in (
        (dropout(0.3), lambda: F.dropout(x, 0.3)),
        (stochastic_depth(0.4), lambda: reference_depth(x, 0.4, "row")),
        (drop_block(0.2, 5), lambda: DropBlock2d(0.2, 5)(x)),
    ):
        torch.manual_seed(1)
        output = module.build(spec(8)).train()(x)
        torch.manual_seed(1)
        assert torch.allclose(output, reference())
    rows = stochastic_depth(0.5).build(spec(8)).train()(torch.ones(64, 8, 2, 2)).flatten(1)
    assert rows.eq(rows[:, :1]).all()
    assert set(rows[:, 0].tolist()) == {0.0, 2.0}


def test_drop_block_takes_small_maps_and_half_precision():
    module = drop_block(0.3, 7).build(spec(8)).train()
    for size in ((4, 4), (2, 6), (1, 1), (7, 7)):
        output = module(torch.ones(64, 8, *size))
        assert 0 < output.eq(0).float().mean() < 1
    with pytest.raises(ValueError, match="odd"):
        DropBlock2d(0.3, 7)(torch.ones(1, 8, 4, 4))  # which is why it is not used as it is
    half = module(torch.ones(2, 8, 80, 80, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert half.float().mean().item() == pytest.approx(1, abs=0.1)


# Options, text -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIONS, ids=named)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_written_read_and_pickled_they_are_equal(make, data):
    block = make(**data.draw(drawn(make)))
    read = eval(repr(block), {named(other): other for other in OPTIONS})
    assert read == block
    assert hash(read) == hash(block)
    assert repr(read) == repr(block)
    assert pickle.loads(pickle.dumps(block)) == block
    module = block.build(spec(8)).eval()
    x = torch.randn(2, 8, 7, 5)
    assert pickle.loads(pickle.dumps(module))(x).equal(module(x))


def test_options_are_checked():
    for call in (
        lambda: conv_norm_act(8),
        lambda: conv_norm_act(channels=0),
        lambda: conv_norm_act(kernel=2),
        lambda: conv_norm_act(norm="layer_norm"),
        lambda: mbconv(act="sigmoid"),
        lambda: mbconv(reduction=0),
        lambda: basic_residual(neutral=1),
        lambda: bottleneck_residual(stride=1.5),
        lambda: dense(growth=None),
        lambda: dense(neutral=False),
        lambda: conv_norm_act(neutral=True),
        lambda: gem(p=0),
        lambda: dropout(1.0),
        lambda: drop_block(0.1, 4),
        lambda: stochastic_depth(-0.1),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(OptionError) as caught:
        depthwise_separable(norm="batchnorm")
    assert caught.value.write == "depthwise_separable()"
    for make in OPTIONS:
        if make not in (gem, dropout, stochastic_depth):
            with pytest.raises(LayoutError):
                make().build(TensorSpec(8, -1, 3, torch.float32, torch.device("cpu")))


# In models ---------------------------------------------------------------------------------


class Last(nn.Module):
    """A map with the channels last, as swin has."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mix(self.norm(self.patch(x).permute(0, 2, 3, 1))).mean((1, 2)))


@pytest.mark.parametrize("make", KEEP, ids=named)
def test_maps_with_the_channels_last_are_turned(make):
    model, x = Last().eval(), torch.randn(2, 3, 14, 10)
    result = pipe(model, inject("norm", make(), name="added"), seed=0)
    lively(result.added)
    value = model.norm(model.patch(x).permute(0, 2, 3, 1))
    assert value.shape == (2, 7, 5, 8)
    turned = result.added(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(result(x), model.fc(model.mix(turned).mean((1, 2))), atol=1e-5)
    if make in RESIDUAL + REGULARISERS:
        assert pipe(model, wrap("norm", make()))(x).equal(model(x))


@pytest.mark.parametrize("make", UNITS, ids=named)
def test_a_layer_with_the_channels_last_is_replaced(make):
    # Needs a replace that turns maps around the new module and tells it the old one's width.
    model, x = Last().eval(), torch.randn(2, 3, 14, 10)
    result = pipe(model, replace("mix", make()), seed=0)
    assert result(x).shape == (2, 5)
    assert count(result.mix) == count(make().build(spec(8, out_channels=12)))


@pytest.mark.parametrize("make", UNITS, ids=named)
def test_units_take_the_place_of_a_convolution(make):
    # Needs a replace that tells the new module the width and the stride of the old one.
    model, x = resnet18().eval(), torch.randn(1, 3, 64, 64)
    result = pipe(model, replace("layer2.0.conv1", make()))
    assert result(x).shape == (1, 1000)
    assert result.layer2[0].conv1(torch.randn(1, 64, 16, 16)).shape == (1, 128, 8, 8)
    with torch.no_grad():
        assert not result(x).equal(model(x))


def test_units_are_found_by_name():
    model = resnet18()
    result = pipe(
        model,
        replace("layer2.0.conv2", "depthwise_separable"),
        replace("avgpool", "gem"),
        inject("layer3.*.bn2", "stochastic_depth"),
    ).eval()
    assert result.layer2[0].conv2.pointwise[0].out_channels == 128
    assert type(result.avgpool).__name__ == "GeM"
    assert result(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ShapeError, match="n 288"):
        pipe(model, inject("layer2", dense(growth=32, layers=5)))
    with pytest.raises(ShapeError):
        pipe(model, inject("layer2", conv_norm_act(stride=2)))


@pytest.mark.parametrize(("path", "make"), [("layer1.1", basic_residual), ("layer2.0", basic_residual)])
def test_a_unit_of_a_resnet_is_exchanged_with_its_weights(path, make):
    model, x = lively(resnet18()).eval(), torch.randn(1, 3, 64, 64)
    result = pipe(model, replace(path, make(neutral=False), keep_weights=True))
    assert type(result.get_submodule(path)).__name__ == "Residual"
    assert torch.allclose(result(x), model(x), atol=1e-4, rtol=1e-4)

"""Adapters, layer scale and residual gates: neutral, trainable, on the axis of the channels, refused where they do not fit."""

from __future__ import annotations

import pickle

import pytest
import torch
from fingerprint import changes, fingerprint
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

from torchgraft import freeze, inject, pipe, replace, set_adapters, wrap
from torchgraft.blocks.adapter import adapter, parallel_adapter
from torchgraft.blocks.lora import lora
from torchgraft.blocks.scale import layer_scale, residual_gate
from torchgraft.errors import GraftError, OptionError, ShapeError, TargetError
from torchgraft.spec import TensorSpec

BLOCKS = [adapter(4), parallel_adapter(4), parallel_adapter(4, scale=4), layer_scale(), residual_gate()]
VALUES = [(1, (2, 8)), (1, (2, 8, 5)), (1, (2, 8, 5, 3)), (1, (2, 8, 4, 5, 3)),
          (-1, (2, 8)), (-1, (2, 5, 8)), (-1, (2, 5, 3, 8)), (-1, (2, 4, 5, 3, 8))]  # fmt: skip


class Widening(nn.Module):
    """A unit that gives more channels than it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 14, stride=14)
        self.unit = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(self.stem(x))


def place(axis: int, layer: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(8, axis, None, dtype, torch.device("cpu"), layer)


def call(block: object, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return module(x, y) if block.takes_input else module(y)


def shaken(module: nn.Module) -> nn.Module:
    """Move all parameters away from where they start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return module


def new(result: nn.Module, model: nn.Module) -> list[str]:
    return [name for name in result.state_dict() if name not in model.state_dict()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_neutral_start_is_exact_and_every_parameter_trains(block, dtype):
    for axis, shape in VALUES:
        module = block.build(place(axis, dtype=dtype))
        x, y = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
        assert call(block, module, x, y).equal(y)
        reached = set()
        for _ in range(2):
            (call(block, module, x, y) ** 2).mean().backward()
            reached |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
            torch.optim.SGD(module.parameters(), lr=0.1).step()
            module.zero_grad()
        assert reached == {n for n, _ in module.named_parameters()}
        assert call(block, module, x, y).dtype == dtype


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_each_place_is_changed_on_its_own_and_layouts_agree(block):
    first, last = (shaken(block.build(place(axis))) for axis in (1, -1))
    x, y = torch.randn(2, 2, 8, 5, 3)
    with torch.no_grad():
        for one, other in zip(first.parameters(), last.parameters(), strict=True):
            one.copy_(other.reshape(one.shape))
        made = call(block, first, x, y)
        turned = call(block, last, x.movedim(1, -1), y.movedim(1, -1))
        assert torch.allclose(made, turned.movedim(-1, 1), atol=1e-6)
        assert not torch.allclose(made, y, atol=1e-2)
        order = torch.randperm(5)
        moved = call(block, first, x[:, :, order], y[:, :, order])
        assert torch.allclose(moved, made[:, :, order], atol=1e-6)


def test_the_arithmetic_is_that_of_the_papers():
    x, y = torch.randn(2, 3, 5, 8)
    module = shaken(adapter(4).build(place(-1)))
    inner = F.relu(y @ module.down.weight.T + module.down.bias)
    assert torch.allclose(module(y), y + inner @ module.up.weight.T + module.up.bias, atol=1e-6)
    module = shaken(parallel_adapter(4, scale=3).build(place(-1)))
    inner = F.relu(x @ module.down.weight.T + module.down.bias)
    assert torch.allclose(module(x, y), y + 3 * (inner @ module.up.weight.T + module.up.bias), atol=1e-5)
    module = shaken(layer_scale().build(place(-1)))
    assert module(y).equal(y * module.gamma)
    module = residual_gate().build(place(-1))
    with torch.no_grad():
        for share, expected in ((1.0, x), (0.25, y + (x - y) / 4)):
            module.share.fill_(share)
            assert torch.allclose(module(x, y), expected, atol=1e-6)


def test_starts_that_are_not_neutral():
    module = adapter(200, neutral=False).build(place(1))
    assert not module.down.bias.any()
    assert 0.015 < module.up.weight.abs().max() <= 0.02
    assert 0.008 < module.down.weight.std() < 0.01
    gamma = layer_scale(neutral=False).build(place(1)).gamma
    assert gamma.equal(torch.full((8,), 1e-4))
    gamma = layer_scale(neutral=False, init=1e-6).build(place(1)).gamma
    assert gamma.equal(torch.full((8,), 1e-6))


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_layouts_of_models(block, small):
    maps, tokens = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 32, 32)
    swin = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5)
    vit = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(vit.heads.head.weight)  # it starts at zero, behind which nothing shows
    for model, target, x in [
        (small, "stage.0", maps),
        (small, "stage.1.conv2", maps),
        (swin, "features.1", tokens),
        (vit, "encoder.layers.encoder_layer_1", tokens),
        (vit, "**.mlp", tokens),
    ]:
        model.eval()
        before = fingerprint(model)
        result = pipe(model, freeze("**"), wrap(target, block, name="added"))
        with torch.no_grad():  # attention has a faster path without gradients
            assert result(x).equal(model(x))
        named = {name: p for name, p in result.named_parameters() if p.requires_grad}
        assert list(named) == new(result, model)
        assert all(".added." in name for name in named)
        for _ in range(2):
            result(x).square().sum().backward()
            moved = [name for name, p in named.items() if p.grad.any()]
            torch.optim.SGD(named.values(), lr=1e-2).step()
        assert moved == list(named)
        assert not result(x).equal(model(x))
        assert not changes(before, fingerprint(model))
        assert not any(
            "movedim" in n.name for g in result.modules() if hasattr(g, "graph") for n in g.graph.nodes
        )


def test_a_layer_tells_what_a_parallel_adapter_takes():
    vit = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(vit.heads.head.weight)
    x = torch.randn(1, 3, 32, 32)
    result = pipe(vit, wrap("**.mlp.0", parallel_adapter(4)), wrap("**.mlp.3", parallel_adapter(4)))
    assert result(x).equal(vit(x))
    mlp = result.get_submodule("encoder.layers.encoder_layer_0.mlp")
    widths = [
        (part.down.in_features, part.up.out_features)
        for part in (mlp.get_submodule("0_parallel_adapter"), mlp.get_submodule("3_parallel_adapter"))
    ]
    assert widths == [(16, 32), (32, 16)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    result = pipe(model, wrap("0", parallel_adapter(4)))
    assert result.get_submodule("0_parallel_adapter").down.in_channels == 3


@pytest.mark.parametrize("block", [parallel_adapter, residual_gate])
@pytest.mark.parametrize(
    ("model", "target", "error"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), "0", ShapeError),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(2)), "1", ShapeError),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2)), "1", ShapeError),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Upsample((9, 9))), "2", ShapeError),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True)), "1", TargetError),
    ],
)
def test_what_does_not_fit_beside_its_target_is_refused(block, model, target, error):
    before = fingerprint(model)
    with pytest.raises(error) as caught:
        pipe(model, wrap(target, block))
    assert caught.value.found
    assert caught.value.write
    assert not changes(before, fingerprint(model))
    with pytest.raises(GraftError):
        pipe(model, inject(target, block, where="before"))


def test_the_line_that_an_error_tells_to_write_helps():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True)), torch.randn(1, 3, 4, 4)
    with pytest.raises(TargetError) as caught:
        pipe(model, wrap("1", residual_gate))
    assert caught.value.write.startswith("replace(nn.ReLU, nn.ReLU) before")
    assert pipe(model, replace(nn.ReLU, nn.ReLU), wrap("1", residual_gate))(x).equal(model(x))


def test_both_shapes_are_said():
    model = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(ShapeError) as caught:
        pipe(model, wrap("0", residual_gate), example=torch.randn(2, 4))
    assert "n 4 goes in and n 6 comes out" in caught.value.found
    with pytest.raises(ShapeError) as caught:
        pipe(Widening(), wrap("unit", parallel_adapter))
    assert "n 8 16 16 goes in and n 12 16 16 comes out" in caught.value.found


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_under_autocast_and_on_meta(block):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)), torch.randn(2, 3, 6, 6)
    result = pipe(model, wrap("1", block))
    with torch.autocast("cpu", torch.bfloat16):
        assert result(x).dtype == model(x).dtype == torch.bfloat16
        assert result(x).equal(model(x))
    meta = pipe(model.to("meta"), wrap("1", block))
    assert all(p.is_meta for p in meta.parameters())
    assert meta(x.to("meta")).shape == (2, 8, 6, 6)


def test_options_are_checked():
    for call in (
        lambda: adapter(0),
        lambda: adapter(width=2.5),
        lambda: adapter(neutral=1),
        lambda: parallel_adapter(scale=0),
        lambda: parallel_adapter(4, neutral=False),
        lambda: layer_scale(neutral=False, init=0),
        lambda: residual_gate(init=1),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(OptionError) as caught:
        layer_scale(init=1e-5)
    assert caught.value.found == "init=1e-05, neutral=True"
    assert caught.value.write == "layer_scale(neutral=False, init=1e-05)"


def test_steps_and_models_pickle_and_print():
    for block in (*BLOCKS, adapter(8, neutral=False), layer_scale(neutral=False, init=1e-6)):
        step = wrap("stage", block)
        assert eval(repr(step)) == step == pickle.loads(pickle.dumps(step))
    assert repr(wrap("stage", "parallel_adapter")) == 'wrap("stage", parallel_adapter(64))'
    model, x = nn.Sequential(nn.Conv2d(8, 8, 1)), torch.randn(2, 8, 4, 4)
    for block in BLOCKS:
        result = shaken(pipe(model, wrap("0", block)))
        for twin in (pickle.loads(pickle.dumps(result)), pipe(result)):
            assert twin(x).equal(result(x))


@pytest.mark.parametrize("block", [adapter(4), parallel_adapter(4), lora(4)], ids=repr)
def test_adapters_are_switched_off_and_on(block):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(3, 8)
    result = pipe(model, wrap("0", block))
    shaken(result[1])
    off = pipe(result, set_adapters(enabled=False))
    assert off(x).equal(model(x))
    assert not result(x).equal(model(x))
    assert pickle.loads(pickle.dumps(off))(x).equal(model(x))
    assert pipe(off, set_adapters(enabled=True))(x).equal(result(x))
    assert repr(set_adapters(enabled=False)) == "set_adapters(enabled=False)"


def test_a_model_without_adapters_has_none_to_switch(small):
    with pytest.raises(TargetError) as caught:
        pipe(small, set_adapters(enabled=True))
    assert caught.value.write
    with pytest.raises(OptionError):
        set_adapters(enabled=1)

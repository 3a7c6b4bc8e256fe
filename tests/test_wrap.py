"""Wrap and inject: where the block goes, what it is called, what it is built for."""

from __future__ import annotations

import pytest
import timm
import torch
from nets import Listed
from torch import nn
from torchvision.models import resnet18, swin_t, vit_b_16

from torchgraft import at, inject, pipe, wrap
from torchgraft.blocks import cbam, eca, se
from torchgraft.errors import (
    AnalysisError,
    GraftError,
    LayoutError,
    NameClashError,
    OptionError,
    ShapeError,
    TargetError,
)


def test_a_container_takes_the_block_inside(small, images):
    result = pipe(small, wrap("stage", se))
    assert [name for name, _ in result.stage.named_children()] == ["0", "1", "se"]
    assert result(images).equal(small(images))
    missing, unexpected = result.load_state_dict(small.state_dict(), strict=False)
    assert missing == [f"stage.se.{n}.{p}" for n in ("fc1", "fc2") for p in ("weight", "bias")]
    assert unexpected == []


def test_a_layer_gets_the_block_beside_it_for_all_its_calls(small, images):
    result = pipe(small, wrap("stage.0.relu", se), wrap("stem", eca))
    calls = [n.target for n in result.stage[0].graph.nodes if n.op == "call_module"]
    assert calls == ["conv1", "relu", "relu_se", "conv2", "bn", "relu", "relu_se"]
    assert list(result.stage[0]._modules) == ["conv1", "conv2", "bn", "relu", "relu_se"]
    assert list(result._modules)[:2] == ["stem", "stem_eca"]
    assert result(images).equal(small(images))


def test_one_call_of_many_by_node_name(small, images):
    result = pipe(small, inject("stage.0.relu_1", se), inject("stage.0.add", eca, where="before"))
    calls = [n.target for n in result.stage[0].graph.nodes if n.op == "call_module"]
    assert calls == ["conv1", "relu", "conv2", "bn", "add_eca", "relu", "relu_1_se"]
    assert result(images).equal(small(images))


def test_inject_leaves_the_target_and_names_the_step(small):
    result = pipe(small, inject("stage", se), inject("fc", nn.Dropout(0.5), where="before", name="drop"))
    assert [n.target for n in result.graph.nodes if n.op == "call_module"] == [
        "stem", "stage", "stage_se", "drop", "fc",
    ]  # fmt: skip
    assert type(result.stage) is nn.Sequential


def test_globs_classes_and_unions(small):
    assert len([k for k in pipe(small, wrap("stage.*", se)).state_dict() if "se.fc1.weight" in k]) == 2
    assert len([k for k in pipe(small, wrap(nn.Conv2d, eca)).state_dict() if "eca" in k]) == 5
    joined = pipe(small, wrap(at("stem") | "stage.*.conv2", eca)).state_dict()
    assert len([k for k in joined if "eca" in k]) == 3


def test_modules_classes_and_functions_are_blocks(small, images):
    for block, name in [
        (nn.Conv2d(8, 8, 1), "conv2d"),
        (nn.BatchNorm2d, "batch_norm2d"),
        (nn.SiLU, "si_lu"),
        (lambda channels: nn.Conv2d(channels, channels, 1), "block"),
    ]:
        result = pipe(small, wrap("stage", block))
        assert list(result.stage._modules)[-1] == name
        assert result.eval()(images).shape == (2, 5)
    module = nn.Conv2d(8, 8, 1)
    result = pipe(small, wrap("stage", module))
    assert result.stage.conv2d is not module
    assert result.stage.conv2d.weight.equal(module.weight)


def test_new_parameters_have_the_dtype_and_mode_of_their_place(small):
    result = pipe(small.double().eval(), wrap("stage", se))
    assert {p.dtype for p in result.parameters()} == {torch.float64}
    assert not result.stage.se.training
    with torch.device("meta"):
        meta = pipe(resnet18(), wrap("layer4", se))
    assert all(p.is_meta for p in meta.parameters())


@pytest.mark.parametrize(
    ("model", "path", "axis"),
    [
        (swin_t, "features.7", -1),
        (vit_b_16, "encoder", -1),
    ],
    ids=["swin", "vit"],
)
def test_channels_are_gated_and_not_columns(model, path, axis):
    model = model().eval()
    result = pipe(model, wrap(path, se(neutral=False)), seed=0)
    gate = result.get_submodule(path).se
    x = torch.randn(1, 3, 224, 224)
    seen = []
    gate.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        result(x)
        (given, output) = seen[0]
        channels = given.shape[1]
        assert channels == gate.fc1.in_channels
        order = torch.randperm(channels)
        scale = (output / given).flatten(2)
        assert torch.allclose(scale, scale[..., :1].expand_as(scale), atol=1e-4)  # one gate for all places
        gate.fc1.weight.copy_(gate.fc1.weight[:, order])
        gate.fc2.weight.copy_(gate.fc2.weight[order])
        gate.fc2.bias.copy_(gate.fc2.bias[order])
        assert torch.allclose(gate(given[:, order]), output[:, order], atol=1e-5)


def test_a_block_for_maps_refuses_tokens():
    with pytest.raises(LayoutError) as caught:
        pipe(vit_b_16(), wrap("encoder", cbam))
    assert caught.value.found == "n l 768 float32"
    assert "se()" in caught.value.write


def test_what_does_not_fit_is_refused_with_both_shapes_and_the_consumer(small):
    with pytest.raises(ShapeError) as caught:
        pipe(small, inject("stage", nn.Conv2d(4, 4, 1)))
    assert "n 8 8 8" in caught.value.summary or "n 8 112 112" in caught.value.summary
    with pytest.raises(ShapeError) as caught:
        pipe(small, inject("stage.0", lambda c: nn.Conv2d(c, c, 1, stride=2), name="down"))
    assert "stage.1" in caught.value.found


def test_name_clashes_are_refused(small):
    with pytest.raises(NameClashError) as caught:
        pipe(small, wrap("stage", se, name="gate"), wrap("stage", eca, name="gate"))
    assert caught.value.write == 'wrap("stage", eca(), name="gate_1")'
    with pytest.raises(OptionError):
        wrap("stage", se, name="a.b")


def test_bad_arguments_are_refused_before_there_is_a_model():
    for call in (
        lambda: wrap(3, se),
        lambda: wrap("", se),
        lambda: wrap("a..b", se),
        lambda: wrap("a", 3),
        lambda: wrap("a", nn.Conv2d),
        lambda: wrap("a"),
        lambda: wrap("a", se, nme="x"),
        lambda: inject("a", se, where="behind"),
        lambda: at("a") and at("b"),
        lambda: wrap(int, se),
    ):
        with pytest.raises(OptionError):
            call()


def test_uncalled_and_many_valued_targets_are_refused(small):
    with pytest.raises(TargetError, match="no forward calls 'unused'"):
        pipe(small, wrap("unused", se))
    with pytest.raises((TargetError, AnalysisError)):
        pipe(nn.Sequential(nn.LSTM(3, 4)), wrap("0", se))


def test_a_list_is_wrapped_where_its_last_unit_ends():
    x = torch.randn(2, 3, 8, 8)
    model = Listed().eval()
    result = pipe(model, wrap("units", se))
    assert [n.target for n in result.graph.nodes if n.op == "call_module"][:3] == [
        "units.0",
        "units.1",
        "units_se",
    ]
    assert result(x).equal(model(x))


@pytest.mark.parametrize(
    "step",
    [
        inject("blocks.1", "eca"),
        inject("blocks.0", "se"),
        wrap("blocks.1", "se"),
        wrap("blocks.0.mlp.fc1", "lora"),
    ],
)
def test_while_blocks_are_checkpointed(step):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    x = torch.rand(2, 3, 32, 32)
    plain = pipe(model, step, seed=1)
    model.set_grad_checkpointing(True)
    if isinstance(step, type(inject("0", "se"))):  # the checkpointed forward would run the new block bare
        with pytest.raises(GraftError) as caught:
            pipe(model, step, seed=1)
        assert caught.value.write == "model.set_grad_checkpointing(False) before"
        return
    new = pipe(model, step, seed=1)
    for one in (new, plain):
        torch.manual_seed(0)
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.02)
    assert torch.allclose(new(x), plain(x), atol=1e-6)

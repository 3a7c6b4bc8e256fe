"""Starts: what new modules begin with is a function of shape and seed, on every device."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from fingerprint import fingerprint
from nets import Small
from torch import nn
from torchvision import models

from torchgraft import (
    adapt_input,
    at,
    blocks,
    compose,
    drop_head,
    drop_path,
    edit,
    features,
    fpn,
    freeze,
    get_model,
    inject,
    materialize,
    pipe,
    remove,
    rename,
    replace,
    stage,
    swap_head,
    wrap,
)
from torchgraft.blocks import lora, se
from torchgraft.blocks.registry import factory
from torchgraft.errors import CheckpointError, CoverageError, ModelError, OptionError
from torchgraft.graph.history import history_of
from torchgraft.recipe import parse
from torchgraft.sources.skeleton import skeleton
from torchgraft.spec import TensorSpec

SITE = TensorSpec(16, 1, 4, torch.float32, torch.device("cpu"), layer=nn.Conv2d(16, 16, 3, padding=1))
NAMES = [name for name in blocks.__all__ if factory(name)]
PLAIN = [f"{name}(neutral=False)" for name in NAMES if "neutral" in factory(name).kind.signature.parameters]


def built(said):
    options = {"neutral": False} if said.endswith("(neutral=False)") else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return factory(said.partition("(")[0])(**options).build(SITE)


def spoil(module):
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(7)


def equal(one, other):
    held = dict(one.state_dict())
    return held.keys() == other.state_dict().keys() and all(
        held[k].equal(v) for k, v in other.state_dict().items()
    )


@pytest.mark.parametrize("said", NAMES + PLAIN)
def test_reset_parameters_gives_the_start(said):
    module, fresh = built(said), built(said)
    if not module.state_dict() or said in ("frozen_batch_norm", "layer_norm2d"):
        return  # nothing to start, or the class of another library
    for made in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        spoil(made)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            made.reset_parameters()
        assert equal(made, fresh)
    assert equal(module, fresh)


@pytest.mark.parametrize("said", NAMES)
def test_a_neutral_block_is_neutral_again_whoever_starts_it(said):
    """As sharded training does it: every module that can is started, from the root down."""
    module = built(said)
    zeros = {
        key for key, value in module.state_dict().items() if not value.any() and value.is_floating_point()
    }
    module.to_empty(device="meta").to_empty(device="cpu")
    spoil(module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    if said != "frozen_batch_norm":
        assert zeros == {k for k, v in module.state_dict().items() if not v.any() and v.is_floating_point()}


def test_an_edited_model_that_was_filled_on_meta_computes_what_its_base_does():
    def net():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    base = net().eval()
    with torch.device("meta"):
        model = net().eval()
    model = pipe(model, wrap("1", "se"), wrap("2", "cbam"), wrap("0", "layer_scale"))
    model.to_empty(device="cpu")
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    model.load_state_dict(base.state_dict(), strict=False)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), base(x))


# The same recipe on meta --------------------------------------------------------------------


def on_meta(build):
    with torch.device("meta"):
        return build()


def everything(model):
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def bits(one, other):
    here, there = everything(one), everything(other)
    assert list(here) == list(there)
    for key, tensor in here.items():
        assert (tensor.dtype, tensor.device, tensor.stride()) == (
            there[key].dtype,
            there[key].device,
            there[key].stride(),
        )
        assert tensor.requires_grad == there[key].requires_grad, key
        assert torch.equal(tensor, there[key]), key
    assert {n: m.training for n, m in one.named_modules()} == {
        n: m.training for n, m in other.named_modules()
    }
    assert list(one.state_dict()) == list(other.state_dict())


def halved(draft):
    with torch.no_grad():
        draft.get("conv1").weight.mul_(0.5)


def resnet():
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=6)


LAYER = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
STEPS = {
    "wrap": wrap("layer4", se),
    "blocks of all kinds": compose(
        wrap("layer1", "cbam"), wrap("layer2", "gather_excite"), inject("layer3", "self_attention")
    ),
    "two wraps and a head": compose(wrap("layer3", "se"), wrap("layer4", "coord_attention"), swap_head(4)),
    "not neutral": compose(wrap("layer3", se(neutral=False)), wrap("layer4", "inception")),
    "lora": wrap(nn.Conv2d, lora(2)),
    "adapter": wrap(stage(-1), "adapter"),
    "a head": swap_head(10, dropout=0.2),
    "no head": drop_head(),
    "channels by the mean": adapt_input(5),
    "channels at random": adapt_input(4, source="random"),
    "a pyramid": fpn(16, extra="p6p7"),
    "maps": features(strides=(8, 16)),
    "a layer": replace("conv1", LAYER, keep_shape=False),
    "a layer by its call": replace("conv1", "conv_norm_act"),
    "other norms": replace(nn.BatchNorm2d, "group_norm"),
    "norms with their values": replace(nn.BatchNorm2d, "frozen_batch_norm"),
    "by a lambda": replace("fc", lambda old: nn.Linear(old.in_features, 3), keep_shape=False),
    "an edit": edit(halved, name="halved"),
    "other names": rename({"layer4": "stage4"}) >> swap_head(3),
    "less": remove("layer1.0.relu") >> wrap("layer1", se),
    "held": freeze("layer1") >> wrap("layer2", se),
    "paths that drop": drop_path(0.1),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_on_meta_give_the_eager_edit_bit_for_bit(name):
    torch.manual_seed(7)
    base = resnet().eval()
    state = base.state_dict()
    eager = pipe(base, STEPS[name], seed=3)
    empty = pipe(on_meta(resnet).eval(), STEPS[name], seed=3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for model in (empty, copy.deepcopy(empty)):
        made = materialize(model, state)
        bits(eager, made)
        assert history_of(made).steps == history_of(eager).steps
    assert torch.equal(before, torch.get_rng_state())
    x = torch.randn(2, 5 if name == "channels by the mean" else 4 if "random" in name else 3, 64, 64)
    for one, other in zip(values(eager(x)), values(made(x)), strict=True):
        assert torch.equal(one, other)


def values(out):
    return list(out.values()) if isinstance(out, dict) else [out]


def test_several_pipes_without_a_seed():
    base = resnet()
    made = []
    for model in (base, on_meta(resnet)):
        torch.manual_seed(5)
        wider = pipe(model, wrap("layer4", se(neutral=False)))
        torch.manual_seed(6)
        made.append(pipe(wider, swap_head(3), freeze("layer1")))
    bits(made[0], materialize(made[1], base.state_dict()))


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("swinv2_cr_tiny_ns_224", img_size=64, depths=(1, 1, 1, 1)),
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2),
        lambda: timm.create_model("test_resnet"),
        models.swin_t,
        lambda: get_model("squeezenet1_1"),
    ],
    ids=["swinv2_cr", "vit", "timm resnet", "swin_t", "by name"],
)
def test_models_of_the_zoos(build):
    base = build()
    steps = (
        wrap(at(nn.Linear).nth(0), lora(2))
        if any(isinstance(m, nn.Linear) for m in base.modules())
        else swap_head(3)
    )
    eager = pipe(base, steps, seed=0)
    bits(eager, materialize(pipe(skeleton(build), steps, seed=0), base.state_dict()))
    bits(eager, materialize(pipe(on_meta(build), steps, seed=0), base))
    bits(base, materialize(on_meta(build), base))


def test_tables_come_from_the_source_of_the_base():
    def build():
        return timm.create_model("test_vit_relpos")

    base, step = build(), wrap("blocks.0.mlp", "adapter")
    bits(pipe(base, step, seed=0), materialize(pipe(on_meta(build), step, seed=0), base.state_dict()))


def test_layers_that_were_read_take_no_memory_on_meta():
    steps = (
        'wrap("conv1", nn.Conv2d(64, 64, 100001, padding=50000))',
        'replace("fc", nn.Linear(512, 100000000))',
    )
    model = pipe(on_meta(resnet), *map(parse, steps))
    assert all(parameter.is_meta for parameter in model.parameters())


class Tabled(Small):
    """A model with a table that no state dict holds, and a tie."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(5.0), persistent=False)
        self.stage[1].conv1.weight = self.stage[0].conv1.weight

    def forward(self, x):
        return super().forward(x) + self.table


def test_tables_and_ties():
    base, step = Tabled(), wrap("stage", se)
    eager = pipe(base, step, seed=0)
    for made in (
        materialize(pipe(on_meta(Tabled), step, seed=0), base),
        materialize(pipe(skeleton(Tabled), step, seed=0), base.state_dict()),
        materialize(
            pipe(skeleton(Tabled), step, seed=0),
            dict(list(base.named_parameters()) + list(base.named_buffers())),
        ),
    ):
        bits(eager, made)
        assert made.stage[1].conv1.weight is made.stage[0].conv1.weight
    with pytest.raises(CheckpointError) as caught:
        materialize(pipe(on_meta(Tabled), step), base.state_dict())
    assert caught.value.summary == "'table' is in no state dict, and was built without values"


def test_what_was_set_since_is_kept_and_nothing_leaks(tmp_path):
    base = resnet()
    model = pipe(on_meta(resnet), swap_head(3), seed=0).double().eval()
    model.fc.weight.requires_grad_(False)
    state = base.state_dict()
    seen = fingerprint(base)
    made = materialize(model, state)
    assert made.fc.weight.dtype == torch.float64
    assert not made.fc.weight.requires_grad
    assert not made.training
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert fingerprint(base) == seen
    assert all(p.is_meta for p in model.parameters())
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    assert materialize(model, tmp_path / "w.pth").conv1.weight.equal(base.conv1.weight.double())


def test_what_materialize_refuses():
    state, model = resnet().state_dict(), pipe(on_meta(resnet), swap_head(3))
    cases = (
        ({k: v for k, v in state.items() if k != "fc.bias"}, r"(?s)found +new fc\.bias"),
        ({**state, "more": torch.ones(1)}, "(?s)found +unexpected more"),
        ({**state, "fc.bias": torch.ones(2)}, r"(?s)found +differ fc\.bias 2 -> 6"),
        ({**state, "fc.bias": torch.ones(6, device="meta")}, r"(?s)'fc\.bias' cannot be loaded"),
    )
    for given, said in cases:
        with pytest.raises((CheckpointError, CoverageError), match=said) as caught:
            materialize(model, given)
        assert caught.value.write == "materialize(model, <the weights of its base>)"
    with pytest.raises(OptionError, match="a device is one"):
        materialize(model, state, device="nowhere")
    model.layer1[0].conv1.stride = (2, 2)
    with pytest.raises(
        ModelError, match=r"(?s)not what its steps make of its base.*layer1\.0\.conv1\.stride"
    ):
        materialize(model, state)


def test_a_pickled_model_forgets_its_steps_and_still_loads():
    model = pipe(on_meta(resnet), replace("fc", lambda old: nn.Linear(512, 3), keep_shape=False))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert history_of(torch.load(buffer, weights_only=False)).steps == history_of(model).steps

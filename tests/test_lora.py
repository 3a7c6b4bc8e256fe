"""LoRA: neutral, trainable, on the layers that were asked for, and folded into them to the same function."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from fingerprint import changes, fingerprint
from nets import ByData, ByMode
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision.models import SwinTransformer, VisionTransformer

from torchgraft import at, edit, freeze, inject, pipe, remove, replace, wrap
from torchgraft.blocks.lora import LoRA, lora
from torchgraft.blocks.se import se
from torchgraft.edits.merge_lora import merge_lora
from torchgraft.errors import OptionError, ShapeError, TargetError, TraceError
from torchgraft.spec import TensorSpec

LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 8)),
    "linear on tokens": (lambda: nn.Linear(8, 6, bias=False), (3, 5, 8)),
    "1x1": (lambda: nn.Conv2d(8, 6, 1), (2, 8, 7, 5)),
    "3x3 strided": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (2, 8, 9, 8)),
    "no square": (lambda: nn.Conv2d(8, 6, (3, 5), (2, 1), (0, 2), bias=False), (2, 8, 9, 8)),
    "dilated": (lambda: nn.Conv2d(8, 6, 3, dilation=2, padding=2), (2, 8, 9, 8)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 7, 5)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (2, 8, 7, 5)),
    "same": (lambda: nn.Conv2d(8, 6, (3, 5), padding="same", dilation=2), (2, 8, 7, 5)),
    "valid": (lambda: nn.Conv2d(8, 6, 3, padding="valid"), (2, 8, 7, 5)),
    "reflect": (lambda: nn.Conv2d(8, 6, (3, 5), padding=(1, 2), padding_mode="reflect"), (2, 8, 7, 5)),
    "same, circular, grouped": (
        lambda: nn.Conv2d(8, 6, 4, padding="same", padding_mode="circular", groups=2),
        (2, 8, 7, 5),
    ),
    "conv1d": (lambda: nn.Conv1d(8, 6, 5, stride=2, padding=2), (2, 8, 11)),
    "conv3d": (lambda: nn.Conv3d(8, 6, 3, padding=1, padding_mode="replicate"), (2, 8, 4, 5, 3)),
    "without a batch": (lambda: nn.Conv2d(8, 6, 3, padding=1), (8, 7, 5)),
}


class Shared(nn.Module):
    """A layer called twice in one level, and another under two names in two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.one = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.two = nn.Sequential(self.one[0], nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(self.fc(F.relu(self.fc(x)))))


class Tied(nn.Module):
    """Weights with two uses: two layers of one parameter, and a layer whose weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(8, 8)
        self.view = nn.Linear(8, 8)
        self.view.register_buffer("rows", self.view.weight.detach()[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.view(self.fc(self.b(self.a(x))))
        return F.linear(x, self.fc.weight.t())


class Hidden(nn.Module):
    """A layer that a forward which no graph can follow calls as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.two = ByData()
        self.two.fc = self.one[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x)[:, :3, None, None])


class Own(nn.Linear):
    """A linear layer whose forward is another one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / 2, self.bias)


def place(layer: nn.Module | None, channels: int = 6, axis: int = -1) -> TensorSpec:
    return TensorSpec(channels, axis, None, torch.float32, torch.device("cpu"), layer)


def loras(model: nn.Module) -> list[LoRA]:
    return [module for module in model.modules() if isinstance(module, LoRA)]


def shaken(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every LoRA weights as if it had been trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in loras(model):
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) / 3)
    return model


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, behind which nothing shows
    return model


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5).eval()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_starts_unchanged_trains_and_merges(kind):
    make, shape = LAYERS[kind]
    model = nn.Sequential(make()).eval()
    x, before = torch.randn(shape), fingerprint(model)
    result = pipe(model, wrap("0", lora(3, alpha=4.5)))
    assert [k for k in result.state_dict() if k not in model.state_dict()] == ["0_lora.down", "0_lora.up"]
    assert result(x).equal(model(x))
    reached = set()
    for _ in range(2):
        (result(x) ** 2).mean().backward()
        named = dict(result.named_modules())["0_lora"].named_parameters()
        reached |= {name for name, p in named if p.grad.abs().sum() > 0}
        torch.optim.SGD(result.parameters(), lr=1e-2).step()
        result.zero_grad()
    assert reached == {"down", "up"}
    assert not result(x).equal(model(x))
    kept = fingerprint(shaken(result))
    merged = merge_lora()(result)
    assert not (merged(x) - model(x)).abs().max() < 1e-2
    assert near(merged(x), result(x))
    assert list(merged.state_dict()) == list(model.state_dict())
    assert not loras(merged)
    assert [n.op for n in merged.graph.nodes].count("call_module") == 1
    assert not changes(before, fingerprint(model))
    assert not changes(kept, fingerprint(result))


@pytest.mark.parametrize("kind", ["linear", "3x3 strided", "depthwise"])
def test_what_is_added_is_the_product_of_the_two_matrices_times_alpha_over_rank(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    module = shaken(lora(2, alpha=8).build(place(layer)))
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.weight += 4 * (module.up @ module.down.flatten(1)).reshape(layer.weight.shape)
    assert torch.allclose(module(x, layer(x)), expected(x), atol=1e-5)


def test_the_scale_is_one_unless_alpha_is_given_and_the_first_matrix_starts_as_a_layer_does():
    module = lora(4).build(place(nn.Linear(300, 200)))
    assert module.scale == 1
    assert lora(4, alpha=1).build(place(nn.Linear(3, 2))).scale == 0.25
    bound = (1 / 300) ** 0.5  # of torch's own layers
    assert 0.9 * bound < module.down.abs().max() <= bound
    assert module.down.shape == (4, 300)
    assert module.up.shape == (200, 4)
    assert not module.up.any()
    assert "rank=4" in repr(module)


def test_layers_of_every_layout_are_adapted():
    x = torch.randn(2, 3, 32, 32)
    for model, target, count in [
        (vit(), "encoder.layers.*.mlp.*", None),
        (vit(), "encoder.layers.*.mlp.0", 2),
        (swin(), "features.*.*.mlp.3", 2),
        (swin(), "features.0.0", 1),
    ]:
        if count is None:
            with pytest.raises(TargetError):  # activations and dropout among them
                pipe(model, wrap(target, lora))
            continue
        result = pipe(model, wrap(target, lora(2)))
        assert len(loras(result)) == count
        assert result(x).equal(model(x))
        merged = merge_lora()(shaken(result))
        assert near(merged(x), result(x))
        assert list(merged.state_dict()) == list(model.state_dict())


def test_parts_of_a_fused_projection_have_matrices_of_their_own():
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    result = pipe(model, wrap("**.qkv", lora(4, fused=3, parts=(0, 2))))
    assert result(x).equal(model(x))
    module = result.blocks[0].attn.qkv_lora
    assert (module.down.shape, module.up.shape) == ((8, 192), (384, 4))
    shaken(result)
    layer, tokens = model.blocks[0].attn.qkv, torch.randn(2, 3, 192)
    added = module(tokens, layer(tokens)) - layer(tokens)
    query, key, value = added.chunk(3, -1)
    assert not key.any()
    first, last = (tokens @ a.T @ b.T for a, b in zip(module.down.chunk(2), module.up.chunk(2), strict=True))
    assert torch.allclose(query, first, atol=1e-4)
    assert torch.allclose(value, last, atol=1e-4)
    merged = merge_lora()(result)
    assert near(merged(x), result(x))
    assert merged.blocks[1].attn.qkv.weight[192:384].equal(model.blocks[1].attn.qkv.weight[192:384])
    assert list(merged.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("parts", [None, (1,)])
def test_parts_of_convolutions(groups, parts):
    model, x = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=groups)), torch.randn(2, 8, 5, 4)
    result = shaken(pipe(model, wrap("0", lora(2, fused=3, parts=parts))))
    changed = (result(x) - model(x)).abs().amax((0, 2, 3)).reshape(3, 4) > 0
    assert changed.all(1).tolist() == [parts is None or part in parts for part in range(3)]
    assert near(merge_lora()(result)(x), result(x))


def test_options_are_checked_before_there_is_a_model():
    for call in (
        lambda: lora(0),
        lambda: lora(2.0),
        lambda: lora(True),
        lambda: lora(8, alpha=0),
        lambda: lora(8, fused=0),
        lambda: lora(8, alfa=3),
    ):
        with pytest.raises(OptionError):
            call()
    for call, write in (
        (lambda: lora(8, fused=3, parts=(0, 3)), "lora(8, fused=4, parts=(0, 3))"),
        (lambda: lora(8, parts=(0, 2)), "lora(8, fused=3, parts=(0, 2))"),
        (lambda: lora(8, fused=3, parts=(2, 0)), "lora(8, fused=3, parts=(0, 2))"),
        (lambda: lora(8, fused=3, parts=[0, 2]), "lora(8, fused=3, parts=(0, 2))"),
        (lambda: lora(8, fused=3, parts=(0, 0)), "lora(8, fused=3, parts=(0,))"),
        (lambda: lora(8, parts=2), "lora(8, fused=3, parts=(2,))"),
        (lambda: lora(8, fused=3, parts=(-1,)), "lora(8, fused=3)"),
        (lambda: lora(8, fused=3, parts=()), "lora(8, fused=3)"),
    ):
        with pytest.raises(OptionError) as caught:
            call()
        assert caught.value.write == write
    with pytest.raises(ShapeError) as caught:
        lora(8, fused=4).build(place(nn.Linear(3, 6)))
    assert caught.value.write == "a number that divides 6: fused=2"


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.ConvTranspose2d(3, 6, 2), "a ConvTranspose2d with a forward of its own"),
        (nn.LayerNorm(6), "a LayerNorm"),
        (Own(3, 6), "an Own with a forward of its own"),
        (timm.layers.StdConv2d(3, 6, 1), "a StdConv2d with a forward of its own"),
        (nn.MultiheadAttention(6, 2), "a MultiheadAttention"),
        (None, "an operation, or a container with its own forward"),
    ],
)  # fmt: skip
def test_what_is_no_such_layer_is_refused(layer, found):
    with pytest.raises(TargetError) as caught:
        lora().build(place(layer))
    assert caught.value.found == found
    assert caught.value.write


def test_a_transposed_convolution_and_an_operation_are_refused_in_a_model(small):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2))
    with pytest.raises(TargetError, match="lora adapts"):
        pipe(model, wrap("1", lora))
    with pytest.raises(TargetError) as caught:
        pipe(small, inject("stage.0", lora))
    assert caught.value.near == ("conv1", "conv2")
    assert caught.value.asked == 'inject("stage.0", lora(8))'
    with pytest.raises(TargetError):
        pipe(small, wrap("stage.0.add", lora))


def test_one_lora_for_all_calls_of_a_layer():
    model, x = Shared().eval(), torch.randn(3, 8)
    result = shaken(pipe(model, wrap("fc", lora(2))))
    assert len(loras(result)) == 1
    merged = merge_lora()(result)
    assert near(merged(x), result(x))
    assert list(merged.state_dict()) == list(model.state_dict())


def test_two_around_one_layer_are_both_merged():
    model, x = Shared().eval(), torch.randn(3, 8)
    result = shaken(pipe(model, wrap("fc", lora(2)), wrap("fc", lora(3, alpha=1)), freeze("fc_lora")))
    assert len(loras(result)) == 2
    merged = merge_lora()(result)
    assert near(merged(x), result(x))
    assert list(merged.state_dict()) == list(model.state_dict())


def test_both_modes_are_merged():
    model, x = ByMode(), torch.randn(2, 3, 6, 6)
    result = shaken(pipe(model, wrap("fc", lora(2)), wrap("body", lora(2))))
    merged = merge_lora()(result)
    for mode in (True, False):
        seen = []
        for net in (merged, result):
            torch.manual_seed(5)
            seen.append(net.train(mode)(x))
        one, other = seen
        assert near(one[0], other[0]) if mode else near(one, other)
    assert merged.train()(x)[1].shape == (2, 5)


@pytest.mark.parametrize(
    ("edits", "summary"),
    [
        ([wrap("one.0", lora)], "'one.0' is also called without 'one.0_lora'"),
        ([inject("fc_1", lora)], "'fc' is also called without 'fc_1_lora'"),
        ([wrap("fc", lora), inject("fc", nn.Tanh)], "'fc_lora' does not stand right behind"),
        ([wrap("fc", lora), inject("fc", nn.Tanh, where="before")], "'fc_lora' takes another value"),
        ([wrap("fc", lora), replace("fc", nn.Linear(8, 8)), replace("fc", Own(8, 8))], "'fc_lora' does not stand"),
    ],
)  # fmt: skip
def test_a_layer_that_is_used_otherwise_too_is_not_merged(edits, summary):
    result = shaken(pipe(Shared(), *edits))
    before = fingerprint(result)
    with pytest.raises(TargetError) as caught:
        merge_lora()(result)
    assert caught.value.summary.startswith(summary)
    assert caught.value.found
    assert caught.value.write
    assert not changes(before, fingerprint(result))


def test_a_layer_that_an_unknown_forward_may_call_is_not_adapted_at_one_of_its_places():
    with pytest.raises(TraceError) as caught:
        pipe(Hidden(), wrap("one.0", lora))
    assert caught.value.module == "two"


def test_a_value_that_goes_past_the_lora_is_not_merged():
    def split(draft):
        for graph in draft.open("").graphs:
            layer, lora_call, last = (n for n in graph.nodes if n.op == "call_module")
            last.replace_input_with(lora_call, layer)
            end = next(n for n in graph.nodes if n.op == "output")
            with graph.inserting_before(end):
                end.args = (graph.call_function(torch.add, (last, lora_call)),)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(TargetError) as caught:
        pipe(model, wrap("0", lora), edit(split, name="split"), merge_lora())
    assert caught.value.summary == "'_0' goes to '0_lora' and elsewhere, where it would change"


def test_another_layer_of_the_same_shape_is_merged_but_not_one_of_another_geometry():
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 4, 6, 6)
    result = shaken(pipe(model, wrap("0", lora(2)), replace("0", nn.Conv2d(4, 4, 3, padding=1))))
    assert near(merge_lora()(result)(x), result(x))
    result = pipe(model, wrap("0", lora(2)), replace("0", nn.Conv2d(4, 4, 3, padding=2, dilation=2)))
    with pytest.raises(TargetError, match="made for another layer"):
        merge_lora()(result)


@pytest.mark.parametrize(
    ("target", "found"),
    [("a", "b.weight"), ("b", "a.weight"), ("fc", "fc_weight in the root"), ("view", "view.rows")],
)
def test_a_weight_with_another_use_is_not_merged(target, found):
    with pytest.raises(TargetError) as caught:
        pipe(Tied(), wrap(target, lora), merge_lora())
    assert caught.value.summary.startswith(f"the weight of {target!r} is used elsewhere too")
    assert caught.value.found == found


def test_computed_weights_and_hooks_are_not_merged():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    result = pipe(model, wrap("0", lora(2)))
    assert result(x).equal(model(x))
    with pytest.raises(TargetError, match="computed from other tensors"):
        merge_lora()(result)
    result = pipe(model, wrap("1", lora))
    result.get_submodule("1_lora").register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(TargetError, match="'1_lora' has hooks"):
        merge_lora()(result)
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(TargetError, match="'1' has hooks"):
        pipe(model, wrap("1", lora), merge_lora())


def test_a_model_without_lora_has_nothing_to_merge(small):
    with pytest.raises(TargetError) as caught:
        merge_lora()(small)
    assert caught.value.write


def test_frozen_base_leaves_exactly_lora_to_train_and_stays_frozen(images, small):
    result = pipe(small, freeze("**"), wrap(nn.Conv2d, lora(2)))
    trained = {name for name, p in result.named_parameters() if p.requires_grad}
    assert trained == {name for name in result.state_dict() if "lora" in name}
    assert len(trained) == 10
    optimizer = torch.optim.SGD([p for p in result.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        result(images).square().mean().backward()
        optimizer.step()
    assert not result(images).equal(small(images))
    merged = merge_lora()(result)
    assert near(merged(images), result(images))
    assert not any(p.requires_grad for p in merged.parameters())
    assert all(p.requires_grad for p in merge_lora()(pipe(small, wrap("stem", lora(2)))).parameters())


def test_every_linear_layer_that_is_called():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    result = pipe(model, wrap(at(nn.Linear) - nn.MultiheadAttention, lora(2)), freeze("conv_proj"))
    assert len(loras(result)) == 5
    assert result(x).equal(model(x))
    merged = merge_lora()(shaken(result))
    assert near(merged(x), result(x))
    assert list(merged.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    result = pipe(model, wrap("0", lora(2)), wrap("2", lora(2)))
    assert result(x).equal(model(x))
    assert {p.dtype for p in result.parameters()} == {dtype}
    merged = merge_lora()(shaken(result))
    assert torch.allclose(merged(x), result(x), rtol=0.1, atol=0.3 if dtype is torch.bfloat16 else 1e-9)
    assert merged[0].weight.dtype == dtype


def test_under_autocast_and_on_meta():
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.Flatten(), nn.Linear(64, 5)),
        torch.randn(2, 3, 6, 6),
    )
    result = pipe(model, wrap("0", lora(2)), wrap("2", lora(2, fused=5, parts=(1,))))
    with torch.autocast("cpu", torch.bfloat16):
        assert result(x).dtype == torch.bfloat16
        assert result(x).equal(model(x))
        result(x).sum().backward()
        shaken(result)
        merged = merge_lora()(result)
    assert near(merged(x), result(x))
    meta = pipe(model.to("meta"), wrap("0", lora(2)), wrap("2", lora(2)))
    assert meta(x.to("meta")).shape == (2, 5)
    assert all(p.is_meta for p in merge_lora()(meta).parameters())


def test_models_and_steps_with_lora_pickle_and_print():
    step = wrap("**.qkv", lora(8, alpha=16, fused=3, parts=(0, 2)))
    assert repr(step) == 'wrap("**.qkv", lora(8, alpha=16, fused=3, parts=(0, 2)))'
    assert eval(repr(step)) == step == pickle.loads(pickle.dumps(step))
    assert hash(step) == hash(eval(repr(step)))
    assert repr(wrap("fc", "lora")) == 'wrap("fc", lora(8))'
    assert repr(merge_lora()) == "merge_lora()"
    assert merge_lora() == pickle.loads(pickle.dumps(merge_lora()))
    x = torch.randn(3, 8)
    result = shaken(pipe(Shared(), wrap("fc", lora(2))))
    for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), pipe(result)):
        assert twin(x).equal(result(x))
        assert near(merge_lora()(twin)(x), result(x))


def test_what_stands_behind_a_lora_stays(images, small):
    result = shaken(pipe(small, wrap("stem", lora(2)), inject("stem_lora", se(neutral=False))))
    merged = merge_lora()(result)
    assert near(merged(images), result(images))
    assert [n.target for n in merged.graph.nodes if n.op == "call_module"][:2] == ["stem", "stem_lora_se"]


def test_it_compiles_whole():
    torch.compiler.reset()
    model = shaken(
        pipe(nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1)), wrap("0", lora(2)))
    )
    x = torch.randn(2, 3, 6, 6)
    assert near(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_what_stands_beside_a_target_is_taken_out_again():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    there = pipe(model, wrap(nn.Linear, lora(2)))
    back = pipe(there, remove("0_lora"), remove("2_lora"))
    assert list(back.state_dict()) == list(model.state_dict())
    x = torch.randn(3, 8)
    assert back(x).equal(model(x))


def test_a_container_is_no_layer():
    with pytest.raises(TargetError):
        pipe(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))), wrap("0", lora))


def test_dropout_is_of_what_goes_into_the_low_rank_weight_and_in_training_alone():
    model, x = nn.Sequential(nn.Linear(64, 6)), torch.randn(3, 64)
    result = shaken(pipe(model, wrap("0", lora(3, dropout=0.5))))
    still = shaken(pipe(model, wrap("0", lora(3))))
    assert result.eval()(x).equal(still(x))
    result.train()
    torch.manual_seed(4)
    first = result(x)
    torch.manual_seed(4)
    module = result.get_submodule("0_lora")
    assert torch.allclose(first, model(x) + F.dropout(x, 0.5) @ module.down.T @ module.up.T, atol=1e-5)
    assert near(merge_lora()(result)(x), still(x))
    assert repr(lora(3, dropout=0.5)) == "lora(3, dropout=0.5)"
    assert list(result.state_dict()) == list(still.state_dict())
    with pytest.raises(OptionError):
        lora(3, dropout=1.0)

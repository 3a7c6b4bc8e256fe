"""LoRA on weights that are used without a call of their layer: attention of torch.nn, and forwards that read a weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from fingerprint import changes, fingerprint
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from torchgraft import at, freeze, inject, load, pipe, remove, save, set_adapters, swap_head, wrap
from torchgraft.blocks import lora, se
from torchgraft.blocks.lora import LoRA, WeightLoRA
from torchgraft.edits.merge_lora import merge_lora
from torchgraft.errors import GraftError, HeadError, TargetError


class Reading(nn.Module):
    """Layers whose weights are read: once, twice, and beside a call."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8, bias=False)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.called = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(x, self.once.weight, bias=self.once.bias)
        x = F.linear(F.relu(F.linear(x, weight=self.twice.weight)), self.twice.weight.t())
        return self.called(F.linear(x, self.inner[0].weight))


class Dead(nn.Module):
    """A layer that nothing uses, beside numbered ones that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(8, 8), "old": nn.Linear(8, 8)}) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit["fc"](x)
        return x


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, behind which nothing shows
    return model


def beit() -> nn.Module:
    return timm.create_model("beit_base_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=2).eval()


def eva() -> nn.Module:
    return timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2).eval()


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 2)).eval()


MODELS = {
    "vit": (vit, (2, 3, 32, 32), 2),
    "beit": (beit, (2, 3, 32, 32), 2),
    "eva": (eva, (2, 3, 28, 28), 2),
    "encoder": (encoder, (2, 5, 8), 6),
    "reading": (Reading, (3, 8), 3),
}


def shaken(model: nn.Module) -> nn.Module:
    """Give every LoRA weights as if it had been trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoRA):
                for parameter in module.parameters():
                    parameter.copy_(torch.randn_like(parameter) / 3)
    return model


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def on_weights(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, WeightLoRA)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
def test_every_linear_layer_is_adapted_trains_and_merges(kind):
    make, shape, count = MODELS[kind]
    model, x = make(), torch.randn(shape)
    before = fingerprint(model)
    result = pipe(model, freeze("**"), wrap(nn.Linear, lora(2, alpha=3)))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(on_weights(result)) == count
    assert sum(isinstance(m, LoRA) for m in result.modules()) == len(layers)
    assert [key for key in result.state_dict() if "lora" not in key] == list(model.state_dict())
    with torch.no_grad():  # attention has a faster path without gradients
        assert result(x).equal(model(x))
    for _ in range(2):
        result(x).square().sum().backward()
        moved = {name for name, p in result.named_parameters() if p.grad is not None and p.grad.any()}
        torch.optim.SGD([p for p in result.parameters() if p.requires_grad], lr=1e-3).step()
    assert moved == {name for name in result.state_dict() if "lora" in name}
    shaken(result)
    with torch.no_grad():
        merged = merge_lora()(result)
        assert near(merged(x), result(x))
        assert not near(merged(x), model(x))
    assert list(merged.state_dict()) == list(model.state_dict())
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
            assert type(merged.get_submodule(path)) is type(layer)
    assert not changes(before, fingerprint(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
def test_it_lives_on(kind, tmp_path):
    make, shape, _ = MODELS[kind]
    model, x = make(), torch.randn(shape)
    result = shaken(pipe(model, wrap(nn.Linear, lora(2))))
    path = save(result, tmp_path / "m.safetensors")
    for twin in (
        copy.deepcopy(result),
        pickle.loads(pickle.dumps(result)),
        pipe(result),
        load(path, base=make),
        torch.export.export(result, (x,)).module(),
        torch.compile(result, fullgraph=True, backend="eager"),
    ):
        assert near(twin(x), result(x))
    assert near(merge_lora()(pickle.loads(pickle.dumps(result)))(x), result(x))
    torch.compiler.reset()
    with torch.no_grad():
        result.get_parameter(f"{on_weights(result)[0]}.up").zero_()
        assert not near(result(x), load(path, base=make)(x))


@pytest.mark.parametrize("kind", ["vit", "beit", "reading"])
def test_plain_tracers_see_it(kind):
    make, shape, _ = MODELS[kind]
    model, x = make(), torch.randn(shape)
    result = shaken(pipe(model, wrap(nn.Linear, lora(2))))
    traced = fx.symbolic_trace(result)
    assert near(traced(x), result(x))
    assert {name for name, _ in traced.named_parameters() if "lora" in name} == {
        name for name, _ in result.named_parameters() if "lora" in name
    }


@pytest.mark.parametrize("kind", MODELS)
def test_two_on_one_weight_and_one_that_is_taken_out_again(kind):
    make, shape, _ = MODELS[kind]
    model, x = make(), torch.randn(shape)
    result = shaken(pipe(model, wrap(nn.Linear, lora(2)), wrap(nn.Linear, lora(3, alpha=1))))
    assert near(merge_lora()(result)(x), result(x))
    back = pipe(result, *(remove(path) for path, m in result.named_modules() if isinstance(m, LoRA)))
    assert list(back.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert back(x).equal(model(x))


def test_attention_as_the_target_means_its_own_weight_and_parts_of_it():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    result = pipe(model, wrap(nn.MultiheadAttention, lora(2, fused=3, parts=(0, 2))))
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert result.get_submodule(f"{attention}.lora").up.shape == (32, 2)
    assert type(result.get_submodule(attention)).__name__ == "MultiheadAttention"
    shaken(result)
    weight, was = (
        result.get_submodule(attention).in_proj_weight,
        model.get_submodule(attention).in_proj_weight,
    )
    changed = (weight != was).any(1).reshape(3, 16).all(1)
    assert changed.tolist() == [True, False, True]
    assert near(merge_lora()(result)(x), result(x))
    with pytest.raises(GraftError):
        pipe(model, inject(nn.MultiheadAttention, lora))


@pytest.mark.parametrize(
    ("make", "block", "count"),
    [(vit, lora(2, dropout=0.1), 5), (beit, lora(2, dropout=0.1), 7), (Dead, lora(2), 3)],
)
def test_what_cannot_be_adapted_is_left_out_by_one_line_for_all_of_it(make, block, count):
    with pytest.raises(TargetError) as caught:
        pipe(make(), wrap(nn.Linear, block))
    assert caught.value.write.startswith("wrap(at(nn.Linear) - ")
    result = pipe(make(), eval(caught.value.write))
    assert sum(isinstance(m, LoRA) for m in result.modules()) == count


def test_other_blocks_are_not_put_on_weights():
    with pytest.raises(TargetError):
        pipe(vit(), wrap("encoder.layers.encoder_layer_0.self_attention.out_proj", se))


def test_a_weight_that_is_read_and_tied_is_not_merged():
    model = Reading()
    model.once.weight = model.called.weight
    result = pipe(model, wrap("once", lora))
    with pytest.raises(TargetError) as caught:
        merge_lora()(result)
    assert caught.value.found == "called.weight"


def test_what_is_switched_off_adds_nothing_and_keeps_its_weights():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    result = shaken(pipe(model, freeze("**"), wrap(at(nn.Linear), lora(2))))
    off = set_adapters(enabled=False)(result)
    with torch.no_grad():
        assert off(x).equal(model(x))
        assert merge_lora()(off)(x).equal(model(x))
        assert set_adapters(enabled=True)(off)(x).equal(result(x))
        assert not result(x).equal(model(x))


class Ways(nn.Module):
    """A forward that reads a weight in two ways of being called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        if extra is not None:
            x = x + extra
        y = F.linear(x, self.fc.weight, self.fc.bias)
        return y if extra is None else 2 * y


def test_a_weight_is_adapted_in_every_way_of_calling():
    model, x, extra = Ways(), torch.randn(3, 8), torch.randn(3, 8)
    result = shaken(pipe(model, wrap("fc", lora(2))))
    with torch.no_grad():
        model.fc.weight += result.fc_lora.weight()
    assert near(result(x), model(x))
    assert near(result(x, extra), model(x, extra))


def test_attention_over_keys_of_another_width_names_what_can_be_adapted():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

        def forward(self, x, y):
            return self.attend(x, y, y)[0]

    given = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    with pytest.raises(TargetError) as info:
        pipe(Crossed(), wrap("attend", lora(2)), example=given)
    assert info.value.write == 'wrap("attend.out_proj", lora(2))'
    model = Crossed()
    result = pipe(model, wrap("attend.out_proj", lora(2)), example=given)
    assert torch.equal(result(*given), model(*given))
    assert any("lora" in name for name, _ in result.named_parameters())


def test_a_head_under_adapters_says_what_to_do_before():
    model = pipe(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), wrap("3", lora(2))
    )
    with pytest.raises(HeadError, match="merge_lora"):
        swap_head(5)(model)
    assert pipe(model, merge_lora(), swap_head(5))(torch.zeros(1, 3, 2, 2)).shape == (1, 5)

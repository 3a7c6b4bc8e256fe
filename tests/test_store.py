"""Saving and loading: one file from which the same model comes again, in any process."""

from __future__ import annotations

import functools
import gc
import json
import struct
import subprocess
import sys
import warnings

import attrs
import pytest
import torch
from checks import flat, run, same
from fingerprint import fingerprint
from forged import parts
from loaded import outputs
from nets import ByMode, Small
from safetensors.torch import load_file
from torch import nn
from zoo import enliven

from torchgraft import adapt_input, edit, explain, freeze, pipe, replace, swap_head, unfreeze, where, wrap
from torchgraft.blocks import se
from torchgraft.errors import GraftError, OptionError, StoreError, TraceError
from torchgraft.graph.draft import EXAMPLE
from torchgraft.graph.history import history_of, set_history
from torchgraft.recipe import Recipe, build, parse, recipe_of
from torchgraft.sources import registry
from torchgraft.sources.get import get_model
from torchgraft.store.load import load
from torchgraft.store.reading import read_record
from torchgraft.store.save import save
from torchgraft.text import shown

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def edited(model=None, *steps):
    torch.manual_seed(0)
    return enliven(
        pipe(model if model is not None else Small(), *(steps or (wrap("stage", se), swap_head(3))), seed=1)
    )


def there_and_back(tmp_path, model, **options):
    return load(save(model, tmp_path / "m.safetensors"), **options)


def alike(one, other, x=X) -> None:
    """Assert equal tensors, ties, flags, modes, strides, and outputs in both modes."""
    here, there = one.state_dict(), other.state_dict()
    assert list(here) == list(there)
    for key, tensor in here.items():
        assert tensor.dtype == there[key].dtype
        assert torch.equal(tensor, there[key])
        assert tensor.stride() == there[key].stride()
    flags = [
        {n: p.requires_grad for n, p in m.named_parameters(remove_duplicate=False)} for m in (one, other)
    ]
    assert flags[0] == flags[1]
    modes = [{n: m.training for n, m in model.named_modules()} for model in (one, other)]
    assert modes[0] == modes[1]
    assert history_of(one).steps == history_of(other).steps
    assert history_of(one).origin == history_of(other).origin
    if x is not None:
        for mode in (False, True):
            assert same(run(one, x, mode=mode), run(other, x, mode=mode))


# Round trips ---------------------------------------------------------------------------------


def test_a_model_of_a_source_comes_back_without_more(tmp_path):
    model = edited(get_model("resnet18"), wrap("layer4", se), swap_head(10), freeze("layer1"))
    again = there_and_back(tmp_path, model)
    assert type(again).__name__ == "ResNet"
    assert explain(again).steps == explain(model).steps
    alike(model, again, torch.randn(2, 3, 64, 64))


def test_one_without_any_step_keeps_its_class(tmp_path):
    model = get_model("resnet18", num_classes=7)
    again = there_and_back(tmp_path, model)
    assert type(again) is type(model)
    alike(model, again, None)


def test_one_that_was_only_traced(tmp_path):
    model = pipe(get_model("resnet18"))
    again = there_and_back(tmp_path, model)
    assert isinstance(again, torch.fx.GraphModule)
    alike(model, again, None)


def test_one_that_was_not_built_by_name_is_recognised(tmp_path):
    from torchvision.models import resnet18

    model = edited(resnet18(num_classes=7), wrap("layer4", se))
    path = save(model, tmp_path / "m.safetensors")
    assert read_record(path).recipe.base == "torchvision/resnet18"
    again = load(path)
    assert history_of(again).origin.options == (("num_classes", 7),)
    history = history_of(again)
    set_history(again, attrs.evolve(history, origin=None))
    alike(model, again, torch.randn(2, 3, 64, 64))


def test_the_file_is_for_any_reader(tmp_path):
    model = edited()
    path = save(model, tmp_path / "m.safetensors")
    held = load_file(path)
    assert set(held) == set(model.state_dict())
    assert all(held[key].equal(tensor) for key, tensor in model.state_dict().items())
    edited().load_state_dict(held, strict=True)


def test_a_base_that_no_source_knows_is_given(tmp_path):
    model = edited()
    path = save(model, tmp_path / "m.safetensors")
    given = Small()
    before = fingerprint(given)
    for base in (Small, given, pipe(given), edited()):
        again = load(path, base=base)
        alike(edited(), again)
    assert fingerprint(given) == before
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        "the file was made from a Small that no source knows\n"
        '  asked  load("DIR/m.safetensors")\n'
        "  found  no base in the record\n"
        "  write  load(path, base=<a function that builds the Small>)"
    )


def test_a_base_may_be_given_where_a_source_knows_one(tmp_path):
    model = edited(get_model("resnet18"), swap_head(10))
    alike(model, there_and_back(tmp_path, model, base=lambda: get_model("resnet18")), None)


def test_another_base_is_refused(tmp_path):
    path = save(edited(), tmp_path / "m.safetensors")

    def strided():
        model = Small()
        model.stem.stride = (1, 1)
        return model

    with pytest.raises(StoreError) as caught:
        load(path, base=strided)
    assert str(caught.value) == (
        "the base is not the one that the file was made from: a Small that no source knows, 2 steps\n"
        f"  asked  load({shown(path)}, base={shown(strided)})\n"
        "  found  other parts, settings or forwards in stem\n"
        "  write  load(path, base=<what built the model that was saved>)"
    )
    with pytest.raises(StoreError, match="has no extra"):
        load(path, base=_without)
    with pytest.raises(StoreError, match=r"has in another shape: unused\.weight 3 3, not 4 3"):
        load(path, base=_wide)


def _without():
    model = Small()
    model.extra = nn.Linear(2, 2)
    model.unused = nn.Linear(3, 3, bias=False)
    return model


def _wide():
    model = Small()
    model.unused = nn.Linear(3, 4)
    return model


def test_what_is_no_base(tmp_path):
    path = save(edited(), tmp_path / "m.safetensors")
    for base, found in ((3, "an int"), (lambda: 3, "an int"), (lambda: None, "a NoneType")):
        with pytest.raises(GraftError, match=f"(?s)a base is a model.*{found}"):
            load(path, base=base)

    def failing():
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        load(path, base=failing)


def test_a_model_changed_by_hand_needs_its_base(tmp_path):
    model = edited(get_model("resnet18"), swap_head(10))
    model.conv1.stride = (1, 1)
    path = save(model, tmp_path / "m.safetensors")
    assert read_record(path).recipe.base == ""

    def by_hand():
        base = get_model("resnet18")
        base.conv1.stride = (1, 1)
        return base

    with pytest.raises(StoreError, match="made from a ResNet that no source knows"):
        load(path)
    with pytest.raises(StoreError, match="is not the one that the file was made from"):
        load(path, base=lambda: get_model("resnet18"))
    assert load(path, base=by_hand).conv1.stride == (1, 1)


@pytest.mark.parametrize("train", [True, False])
def test_a_forward_of_two_modes(tmp_path, train):
    model = pipe(ByMode(), swap_head(4)).train(train)
    again = there_and_back(tmp_path, model, base=ByMode)
    alike(model, again)


def test_a_forward_that_no_graph_can_hold(tmp_path):
    class Odd(Small):
        def forward(self, x):
            return super().forward(x * 2 if float(x.sum()) > 0 else x)

    model = pipe(Odd(), freeze("stem"))
    with pytest.raises(TraceError):
        model.graph  # noqa: B018
    again = there_and_back(tmp_path, model, base=Odd)
    assert isinstance(again, Odd)
    alike(model, again)


# How a model stands --------------------------------------------------------------------------


def test_modes_flags_and_waiting_modes(tmp_path):
    model = edited(Small(), freeze("stage.0"), swap_head(3))
    model.eval()
    model.fc.train()
    model.stem.bias.requires_grad_(False)
    again = there_and_back(tmp_path, model, base=Small)
    alike(model, again, None)
    thawed = [pipe(m, unfreeze("stage")) for m in (model, again)]
    alike(*thawed)
    model.train()
    again = there_and_back(tmp_path, model, base=Small)
    again.train()
    assert not again.stage[0].bn.training
    assert again.stage[1].bn.training
    alike(pipe(model, unfreeze("stage")), pipe(again, unfreeze("stage")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype(tmp_path, dtype):
    for model, base in ((edited().to(dtype), Small), (get_model("resnet18").to(dtype), None)):
        again = there_and_back(tmp_path, model, base=base)
        alike(model, again, None)
        assert {p.dtype for p in again.parameters()} == {dtype}


def test_every_dtype_of_the_format(tmp_path):
    from torchgraft.store.stock import DTYPES

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            for number, dtype in enumerate(DTYPES):
                raw = torch.arange(24, dtype=torch.uint8) % 2
                self.register_buffer(f"b{number}", raw.repeat(2).view(dtype))
            self.register_buffer("none", torch.zeros(0, 3))
            self.register_buffer("one", torch.tensor(3.0))

        def forward(self, x):
            return x

    model = Many()
    again = there_and_back(tmp_path, model, base=Many)
    assert len(model.state_dict()) == len(DTYPES) + 2
    for key, value in model.state_dict().items():
        found = again.state_dict()[key]
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), key


def test_every_tensor_is_aligned_in_the_file(tmp_path):
    model = edited()
    model.register_buffer("mask", torch.tensor([True, False, True]))
    model.register_buffer("count", torch.tensor(3))
    path = save(model, tmp_path / "m.safetensors")
    header, _, _ = parts(path.read_bytes())
    sizes = {"BOOL": 1, "F32": 4, "I64": 8}
    del header["__metadata__"]
    assert {item["dtype"] for item in header.values()} == set(sizes)
    assert all(item["data_offsets"][0] % sizes[item["dtype"]] == 0 for item in header.values())


def test_the_order_of_axes_in_memory(tmp_path):
    model = edited().to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(model.fc.weight.detach().t().contiguous().t())
    model.unused.weight = nn.Parameter(torch.randn(3, 6)[:, ::2])
    turned = nn.Parameter(torch.randn(3, 8, 3, 3).permute(1, 0, 3, 2))
    model.stem.weight = turned
    again = there_and_back(tmp_path, model, base=Small)
    assert again.stem.weight.stride() == turned.stride()
    assert again.fc.weight.stride() == (1, 3)
    assert again.unused.weight.is_contiguous()
    assert again.unused.weight.equal(model.unused.weight)
    model.unused.weight = again.unused.weight
    alike(model, again)


def test_large_tensors_of_another_order(tmp_path):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.empty(3000, 2000))
            self.b = nn.Parameter(torch.empty(2, 3, 900, 700))

        def forward(self, x):
            return x

    model = Large()
    model.a = nn.Parameter(torch.randn(2000, 3000).t())
    model.b = nn.Parameter(torch.randn(2, 3, 900, 700).to(memory_format=torch.channels_last))
    alike(model, there_and_back(tmp_path, model, base=Large), None)


def test_ties_stay_and_new_ones_too(tmp_path):
    class Tied(Small):
        def __init__(self):
            super().__init__()
            self.stage[1].conv1.weight = self.stage[0].conv1.weight

    model = edited(Tied())
    model.stage[1].conv2.weight = model.stage[0].conv2.weight  # known to the record alone
    path = save(model, tmp_path / "m.safetensors")
    assert "stage.1.conv1.weight" not in load_file(path)
    again = load(path, base=Tied)
    assert again.stage[1].conv1.weight is again.stage[0].conv1.weight
    assert again.stage[1].conv2.weight is again.stage[0].conv2.weight
    assert again.stage[1].conv1.bias is not again.stage[0].conv1.bias
    alike(model, again)


def test_ties_that_were_undone_stay_undone(tmp_path):
    class Tied(Small):
        def __init__(self):
            super().__init__()
            self.stage[1].conv1.weight = self.stage[0].conv1.weight

    model = edited(Tied())
    model.stage[1].conv1.weight = nn.Parameter(model.stage[1].conv1.weight.detach() + 1)
    again = there_and_back(tmp_path, model, base=Tied)
    assert again.stage[1].conv1.weight is not again.stage[0].conv1.weight
    alike(model, again)


def test_one_module_at_two_places(tmp_path):
    class Shared(Small):
        def __init__(self):
            super().__init__()
            self.stage[1] = self.stage[0]

    model = edited(Shared())
    again = there_and_back(tmp_path, model, base=Shared)
    assert again.stage[1] is again.stage[0]
    alike(model, again)


def test_what_is_one_tensor_in_the_base_cannot_be_two_in_the_file(tmp_path):
    class Shared(Small):
        def __init__(self):
            super().__init__()
            self.stage[1] = self.stage[0]

    path = save(pipe(Small()), tmp_path / "m.safetensors")
    with pytest.raises(
        StoreError, match=r"has twice what is one tensor in the model: stage\.1\.conv1\.weight"
    ):
        load(path, base=Shared)


def test_a_weight_that_a_hook_computes(tmp_path):
    class Hooked(Small):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nn.utils.weight_norm(self.fc)
                nn.utils.spectral_norm(self.unused)
            self.register_buffer("none", None)

        def forward(self, x):
            return super().forward(x) + self.unused(x.mean((2, 3))).sum()

    model = pipe(Hooked())
    with torch.no_grad():
        model.fc.weight_g.mul_(2)
    alike(model, there_and_back(tmp_path, model, base=Hooked))
    model = Hooked()
    run(model, X, mode=True)
    alike(model, there_and_back(tmp_path, model, base=Hooked))


def test_what_hangs_on_parameters_and_hooks_of_the_base(tmp_path):
    class Marked(Small):
        def __init__(self):
            super().__init__()
            self.stem.weight.no_decay = True
            self.fc.register_forward_hook(double)

    again = there_and_back(tmp_path, edited(Marked()), base=Marked)
    assert again.stem.weight.no_decay
    alike(edited(Marked()), again)


def double(module, args, output):
    return output * 2


def test_a_second_way_to_a_parameter(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 5, num_layers=2)
            self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))

        def forward(self, x):
            return self.head(self.lstm(x)[0][-1])

    torch.manual_seed(0)
    model = pipe(Words(), example=torch.randn(6, 2, 4))
    again = there_and_back(tmp_path, model, base=Words)
    assert all(any(p is q for q in again.lstm._flat_weights) for p in again.lstm.parameters())
    x = torch.randn(6, 2, 4)
    alike(model, again, x)
    again(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_an_example_comes_back(tmp_path):
    class Two(Small):
        def forward(self, x, scale=1.0, more=None):
            return super().forward(x) * scale + (0 if more is None else more["by"][0])

    for example in (
        torch.zeros(1, 3, 32, 32),
        (torch.zeros(1, 3, 32, 32), 2.0),
        {"x": torch.zeros(1, 3, 32, 32), "more": {"by": [torch.zeros(1, 5)]}},
    ):
        model = pipe(Two(), freeze("stem"), example=example)
        again = there_and_back(tmp_path, model, base=Two)
        alike(model, again, None)
        pipe(again, unfreeze("stem"))
        path = tmp_path / "m.safetensors"
        assert path.read_bytes() == save(again, tmp_path / "n.safetensors").read_bytes()


def test_an_example_that_no_file_can_tell(tmp_path):
    class Two(Small):
        def forward(self, x, more=None):
            return super().forward(x)

    model = pipe(Two(), example=(torch.zeros(1, 3, 32, 32), object()))
    with pytest.raises(StoreError, match="the example of the model holds an object"):
        save(model, tmp_path / "m.safetensors")


def test_the_input_that_edits_changed_is_remembered(tmp_path):
    model = pipe(Small(), adapt_input(5), example=torch.zeros(1, 3, 32, 32))
    again = there_and_back(tmp_path, model, base=Small)
    alike(model, again, torch.randn(2, 5, 16, 16))
    held = [pipe(m, swap_head(2), seed=0) for m in (model, again)]
    alike(*held, torch.randn(2, 5, 16, 16))
    later = pipe(model, freeze("stem"), example=torch.zeros(4, 5, 64, 64))
    again = there_and_back(tmp_path, later, base=Small)
    assert [vars(m)[EXAMPLE].shape for m in (later, again)] == [(4, 5, 64, 64)] * 2
    assert [history_of(m).example.shape for m in (later, again)] == [(1, 3, 32, 32)] * 2


def test_constants_that_the_base_does_not_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", {})

    @registry.register_model("tabled")
    class Table(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(5.0), persistent=False)
            self.register_buffer("mask", torch.ones(2, dtype=torch.complex64), persistent=False)
            self.more = [torch.ones(3).to_sparse(), torch.tensor(2)]

        def forward(self, x):
            return super().forward(x) + self.table

    model = pipe(get_model("tabled"), swap_head(5))
    alike(model, there_and_back(tmp_path, model))
    model.table.add_(1)
    model.mask = torch.zeros(4, dtype=torch.complex64)
    again = there_and_back(tmp_path, model)
    alike(model, again)
    assert again.mask.equal(model.mask)
    assert "table" in load_file(tmp_path / "m.safetensors")
    assert "table" not in again.state_dict()
    model.mask = torch.zeros(4, dtype=torch.complex128)
    model.more[1].add_(1)
    with pytest.raises(StoreError) as caught:
        save(model, tmp_path / "m.safetensors")
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        "'registered/tabled' gives other constants than the model has: more.1, mask\n"
        '  asked  save(model, "DIR/m.safetensors")\n'
        "  found  2 tensors that no state dict holds\n"
        "  write  register_buffer(...) for them, so that a file holds them"
    )


def test_a_builder_that_fails_where_a_file_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", {})
    broken = []

    @registry.register_model("breaking")
    def breaking():
        if broken:
            raise KeyError("gone")
        return Small()

    path = save(pipe(get_model("breaking"), swap_head(4)), tmp_path / "m.safetensors")
    assert read_record(path).recipe.base == "registered/breaking"
    broken.append(True)
    with pytest.raises(StoreError, match="the base of the file, 'registered/breaking', cannot be built"):
        load(path)
    monkeypatch.setattr("torchgraft.store.rebuilding.skeleton_of", lambda origin, **_: {}[origin.base])
    with pytest.raises(StoreError, match=r"(?s)cannot be built.*KeyError: 'registered/breaking'"):
        load(path)


def test_steps_inside_what_was_put_in_by_hand(tmp_path):
    def by_hand():
        model = get_model("resnet18")
        model.layer4 = nn.Sequential(nn.Conv2d(256, 512, 1), nn.ReLU(), nn.Identity())
        return model

    model = pipe(by_hand(), wrap("layer4.2", se))
    path = save(model, tmp_path / "m.safetensors")
    assert read_record(path).recipe.base == ""
    alike(pipe(load(path, base=by_hand)), pipe(load(path, base=by_hand)), None)
    with pytest.raises(StoreError, match=r"(?s)the steps of the file cannot be done on its base.*layer4.2"):
        load(path, base=lambda: nn.Sequential(nn.Linear(2, 2)))


def test_a_base_with_other_steps_gets_all_of_them(tmp_path):
    model = edited()
    again = there_and_back(tmp_path, model, base=lambda: pipe(Small(), freeze("fc")))
    assert history_of(again).steps == ('freeze("fc")', *history_of(model).steps)
    assert again.fc.weight.requires_grad


def test_constants_have_to_be_computed_alike(tmp_path):
    class Table(Small):
        def __init__(self, scale=1.0, shape=(5,)):
            super().__init__()
            table = (torch.arange(5.0) * scale).view(shape)
            self.register_buffer("table", table, persistent=False)
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]), persistent=False)

        def forward(self, x):
            return super().forward(x) + self.table

    model = pipe(Table()).half()
    again = there_and_back(tmp_path, model, base=Table)
    assert again.table.dtype == torch.float16
    assert again.table.equal(model.table)
    assert again.mask.equal(model.mask)
    assert load(tmp_path / "m.safetensors", base=lambda: Table(2.0, (1, 5))).table.equal(model.table)


def test_constants_that_are_no_buffers_have_to_be_computed_alike(tmp_path):
    class Table(Small):
        def __init__(self, scale=1.0, shape=(5,)):
            super().__init__()
            self.table = [(torch.arange(5.0) * scale).view(shape)]

        def forward(self, x):
            return super().forward(x) + self.table[0]

    there_and_back(tmp_path, pipe(Table()), base=Table)
    with pytest.raises(StoreError, match=r"other constants than when the file was made: table\.0"):
        load(tmp_path / "m.safetensors", base=lambda: Table(shape=(1, 5)))
    path = tmp_path / "m.safetensors"

    def doubled():
        return Table(2.0)

    with pytest.raises(StoreError) as caught:
        load(path, base=doubled)
    assert str(caught.value) == (
        "the base computes other constants than when the file was made: table.0\n"
        f"  asked  load({shown(path)}, base={shown(doubled)})\n"
        "  found  1 tensor that no state dict holds\n"
        "  write  register_buffer(...) for them, so that a file holds them"
    )


def test_saving_again_gives_the_same_bytes(tmp_path):
    model = edited(get_model("resnet18"), wrap("layer4", se), freeze("layer1"), swap_head(10))
    path = save(model, tmp_path / "m.safetensors")
    first = path.read_bytes()
    assert save(model, tmp_path / "n.safetensors").read_bytes() == first
    assert save(load(path), tmp_path / "n.safetensors").read_bytes() == first
    assert (len(first) - 8 - struct.unpack("<Q", first[:8])[0]) % 8 == 0


def test_a_loaded_model_is_edited_on(tmp_path):
    model = edited()
    again = there_and_back(tmp_path, model, base=Small)
    more = [pipe(m, swap_head(2, dropout=0.1), seed=0) for m in (model, again)]
    alike(*more)
    alike(more[0], there_and_back(tmp_path, more[1], base=Small))
    gc.collect()


def test_saving_reads_only_and_keeps_lazy_clones_lazy(tmp_path):
    base = Small()
    model = edited(base)
    assert torch._C._is_cow_tensor(model.unused.weight)
    save(model, tmp_path / "m.safetensors", max_shard_size=1000)
    assert torch._C._is_cow_tensor(model.unused.weight)
    assert torch._C._is_cow_tensor(base.unused.weight)
    before = fingerprint(model)
    save(model, tmp_path / "m.safetensors")
    assert fingerprint(model) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_device(tmp_path):
    model = edited().cuda()
    again = there_and_back(tmp_path, model, base=Small, device="cuda")
    assert {p.device.type for p in again.parameters()} == {"cuda"}
    alike(model, again, X.cuda())
    assert load(tmp_path / "m.safetensors", base=Small).fc.weight.equal(model.fc.weight.cpu())


def test_what_is_no_device(tmp_path):
    path = save(edited(), tmp_path / "m.safetensors")
    for device in ("gpu", "cuda:99", 1.5):
        with pytest.raises(OptionError, match="a device is one that torch has here"):
            load(path, base=Small, device=device)


# What cannot be saved ------------------------------------------------------------------------


class State(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}


def _shared(model):
    model.stage[1].conv1.weight = nn.Parameter(model.stage[0].conv1.weight.data)
    return model


def _meeting(model):
    whole = torch.randn(40)
    model.stem.bias, model.fc.bias = nn.Parameter(whole[:8]), nn.Parameter(whole[6:11])
    return model


def _between(model):
    whole = torch.randn(40)
    model.stem.bias = nn.Parameter(whole[0:16:2])
    model.stage[0].conv1.bias = nn.Parameter(whole[1:17:2])
    model.unused.bias = nn.Parameter(whole[10:13])
    return model


def _of_another_kind(model):
    model.fc.bias = nn.Parameter(torch.zeros(3))
    model.register_buffer("raw", model.fc.bias.detach().view(torch.int16))
    return model


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self._weight = [torch.zeros(3, 3)]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}weight"] = self._weight[0]


class Own(torch.Tensor):
    pass


def _with(name, value):
    def change(model):
        setattr(model, name, value() if callable(value) else value)
        return model

    return change


CANNOT = {
    "extra state": (
        _with("unused", lambda: State(3, 3)),
        (
            "State at 'unused' keeps state that is no tensor\n"
            "  found  get_extra_state\n"
            "  write  its state in register_buffer(...)"
        ),
    ),
    "memory of another one": (
        _shared,
        (
            "'stage.0.conv1.weight' and 'stage.1.conv1.weight' share memory without being one tensor\n"
            "  found  2 tensors in one storage\n"
            "  write  one parameter under both names, or a .clone() under one of them"
        ),
    ),
    "some memory of another one": (
        _meeting,
        (
            "'stem.bias' and 'fc.bias' share memory without being one tensor\n"
            "  found  2 tensors in one storage\n"
            "  write  one parameter under both names, or a .clone() under one of them"
        ),
    ),
    "memory of one that lies between": (
        _between,
        (
            "'stem.bias' and 'unused.bias' share memory without being one tensor\n"
            "  found  3 tensors in one storage\n"
            "  write  one parameter under both names, or a .clone() under one of them"
        ),
    ),
    "memory of another kind": (
        _of_another_kind,
        (
            "'raw' and 'fc.bias' share memory without being one tensor\n"
            "  found  2 tensors in one storage\n"
            "  write  one parameter under both names, or a .clone() under one of them"
        ),
    ),
    "weights that are kept elsewhere": (
        _with("unused", Packed),
        (
            "the state dict of the model is not that of its parameters and buffers: unused.weight\n"
            "  found  1 key of layers or hooks that make their own\n"
            "  write  save(<the model before it was quantised or wrapped>, ...)"
        ),
    ),
    "a class of its own": (
        lambda model: model.register_buffer("more", torch.zeros(2).as_subclass(Own)) or model,
        (
            "'more' is of a kind that a file cannot hold\n"
            "  found  a tests.test_store.Own\n"
            "  write  a dense tensor of a usual dtype: .to_dense(), .dequantize(), .to(torch.float32)"
        ),
    ),
    "meta": (
        _with("unused", lambda: nn.Linear(3, 3, device="meta")),
        (
            "'unused.weight' is of a kind that a file cannot hold\n"
            "  found  a tensor on the meta device, which has no values\n"
            "  write  values first: load_weights(...)"
        ),
    ),
    "dtype": (
        _with("unused", lambda: nn.Linear(3, 3, dtype=torch.complex128)),
        (
            "'unused.weight' is of a kind that a file cannot hold\n"
            "  found  complex128 values\n"
            "  write  a dense tensor of a usual dtype: .to_dense(), .dequantize(), .to(torch.float32)"
        ),
    ),
    "sparse": (
        lambda model: model.unused.register_buffer("more", torch.eye(3).to_sparse()) or model,
        (
            "'unused.more' is of a kind that a file cannot hold\n"
            "  found  sparse_coo values\n"
            "  write  a dense tensor of a usual dtype: .to_dense(), .dequantize(), .to(torch.float32)"
        ),
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_tensors_that_no_file_can_hold(tmp_path, case):
    change, text = CANNOT[case]
    with pytest.raises(StoreError) as caught:
        save(change(edited()), tmp_path / "m.safetensors")
    said = str(caught.value).replace(str(tmp_path), "DIR").removeprefix(f"{__name__}.")
    assert said.replace('\n  asked  save(model, "DIR/m.safetensors")', "") == text
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_storage_that_do_not_meet_are_saved(tmp_path):
    model = edited()
    whole = torch.randn(8, 3, 3, 6)
    model.stem.weight = nn.Parameter(whole[..., ::2])
    model.unused.weight = nn.Parameter(whole[0, 0, :, 1::2])
    again = there_and_back(tmp_path, model, base=Small)
    assert again.stem.weight.equal(model.stem.weight)
    assert again.unused.weight.equal(model.unused.weight)


def shortened(draft):
    draft.exchange("unused", nn.Identity())


UNWRITTEN = {
    "an edit": edit(shortened, name="short"),
    "a lambda": replace("unused", lambda old: nn.Linear(4, 3), keep_shape=False),
    "a module of a class of one's own": replace("unused", ByMode(), keep_shape=False),
    "a layer with a hook": replace("unused", nn.Linear(4, 3), keep_shape=False),
    "a predicate": freeze(where(lambda site: site.path == "stem")),
}
UNWRITTEN["a layer with a hook"].new.module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("case", UNWRITTEN)
def test_a_step_that_no_text_holds_is_a_remark_in_the_file(tmp_path, case):
    def edited_model():
        return pipe(Small(), swap_head(3), UNWRITTEN[case], seed=1)

    model = enliven(edited_model())
    path = save(model, tmp_path / "m.safetensors")
    first, second = read_record(path).recipe.steps
    assert first == swap_head(3)
    assert repr(second).startswith("# ")
    for base in (edited_model, edited_model()):
        again = load(path, base=base)
        alike(model, again, None)
    assert save(again, tmp_path / "n.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        "a step of the file was not written, so it cannot be done again\n"
        '  asked  load("DIR/m.safetensors")\n'
        f"  found  {second!r}\n"
        "  write  load(path, base=<a function that builds the edited Small>)"
    )


def test_a_remark_of_a_step_on_a_base_that_a_source_has(tmp_path):
    def edited_model():
        return pipe(
            get_model("resnet18"), edit(lambda draft: draft.exchange("fc", nn.Identity()), name="bare")
        )

    path = save(edited_model(), tmp_path / "m.safetensors")
    alike(load(path, base=edited_model), load(path, base=edited_model), None)
    assert history_of(load(path, base=edited_model)).origin.base == "torchvision/resnet18"
    with pytest.raises(StoreError, match="builds the edited ResNet"):
        load(path)
    with pytest.raises(StoreError, match=r"no place for, fc\.|has no fc"):
        load(path, base=lambda: get_model("resnet18"))


def test_a_file_with_a_remark_is_checked_against_what_fills_it(tmp_path):
    def edited_model(width=4, **options):
        return pipe(Small(), replace("unused", lambda old: nn.Linear(width, 3, **options), keep_shape=False))

    path = save(edited_model(), tmp_path / "m.safetensors")
    for base, said in (
        (functools.partial(edited_model, 5), r"in another shape: unused\.weight 3 4, not 3 5"),
        (functools.partial(edited_model, bias=False), "no place for, unused.bias"),
        (Small, "in another shape"),
        (lambda: pipe(Small(), swap_head(3)), "in another shape"),
    ):
        with pytest.raises(StoreError, match=said):
            load(path, base=base)


LAYERS = [
    nn.Conv2d(3, 8, 3, 1, 1, bias=False),
    nn.ConvTranspose2d(3, 8, 2, stride=2, groups=1),
    nn.LeakyReLU(0.1),
    nn.Identity(),
    nn.Tanh(),
    nn.ReLU(inplace=True),
    nn.BatchNorm2d(3, momentum=None),
    nn.GroupNorm(1, 3),
    nn.LayerNorm((3, 4), bias=False),
    nn.Linear(4, 3),
    nn.MultiheadAttention(8, 2, batch_first=True),
    nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Flatten(),
    nn.AdaptiveAvgPool2d((1, None)),
    nn.PReLU(3),
    nn.Softmax(1),
    nn.Dropout(0.3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_layer_of_torch_is_written_as_its_call(layer):
    step = replace("a", layer, keep_shape=False)
    read = parse(repr(step))
    assert read == step
    assert hash(read) == hash(step)
    assert repr(read) == repr(step)
    assert Recipe.from_yaml(Recipe("x", steps=[step]).to_yaml()).steps == (step,)


def test_a_layer_that_its_call_does_not_make_is_not_written():
    odd = nn.Conv2d(3, 8, 3), nn.Linear(3, 4).double(), nn.Linear(3, 4), nn.Tanh()
    odd[0].weight.requires_grad_(False)
    odd[2].register_buffer("more", torch.zeros(2))
    odd[3].forward = torch.sigmoid
    for layer in odd:
        assert "<a " in repr(wrap("a", layer))


def test_layers_by_their_calls_are_saved_and_built(tmp_path):
    convolution = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model = pipe(
        get_model("resnet18"), replace("conv1", convolution, keep_shape=False), wrap("layer4", nn.Tanh())
    )
    again = there_and_back(tmp_path, model)
    alike(model, again, None)
    assert again.conv1.weight.equal(convolution.weight)
    recipe = recipe_of(model)
    one, other = build(recipe, seed=0), build(recipe, seed=0)
    assert one.conv1.weight.equal(other.conv1.weight)
    assert not one.conv1.weight.equal(build(recipe, seed=1).conv1.weight)


def test_where_nothing_can_be_saved(tmp_path):
    model = edited()
    (tmp_path / "d.safetensors").mkdir()
    for path, text in (
        (
            tmp_path / "m.pth",
            'named as something else\n  asked  save(model, "DIR/m.pth")\n  write  "DIR/m.safetensors"',
        ),
        (tmp_path, "is a folder"),
        (tmp_path / "d.safetensors", "is a folder"),
        (tmp_path / "no" / "m.safetensors", "there is no folder 'DIR/no'"),
    ):
        with pytest.raises(StoreError) as caught:
            save(model, path)
        assert text in str(caught.value).replace(str(tmp_path), "DIR")
    with pytest.raises(GraftError, match="must be an instance of"):
        save(Small, tmp_path / "m.safetensors")


# Shards --------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_shards_and_their_index(tmp_path):
    model = edited()
    index = save(model, tmp_path / "m.safetensors", max_shard_size="2KB")
    assert index.name == "m.safetensors.index.json"
    held = json.loads(index.read_text())
    assert held["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    shards = dict.fromkeys(held["weight_map"].values())
    assert names(tmp_path) == sorted([index.name, *shards])
    assert len(shards) > 3
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert sum(t.nbytes for t in tensors.values()) <= 2000 or len(tensors) == 1
        assert all(tensors[key].equal(model.state_dict()[key]) for key in tensors)
    for path in (index, tmp_path / "m.safetensors"):
        alike(edited(), load(path, base=Small))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    save(load(index, base=Small), index.with_suffix("").with_suffix(""), max_shard_size="2KB")
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_forms_take_the_place_of_each_other(tmp_path):
    path = tmp_path / "m.safetensors"
    other = tmp_path / "m-other-00001-of-00002.safetensors"
    other.write_bytes(b"of someone else")
    first, second = edited(), edited(Small(), swap_head(7))
    for model, size in (
        (first, "5GB"),
        (second, 2000),
        (first, 2000),
        (second, 1500),
        (first, "1GiB"),
        (second, "5GB"),
    ):
        written = save(model, path, max_shard_size=size)
        assert load(path, base=Small).fc.out_features == model.fc.out_features
        index = path.with_name(path.name + ".index.json")
        assert written == (index if isinstance(size, int) else path)
        kept = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
        assert set(names(tmp_path)) == {other.name, written.name, *kept}


@pytest.mark.parametrize(
    ("size", "count"),
    [(5, 5), ("7B", 7), ("5KB", 5000), ("1.5 mb", 1_500_000), ("2GiB", 2 << 30), ("1TB", 10**12)],
)
def test_sizes(size, count):
    from torchgraft.store.writing import byte_count

    assert byte_count(size) == count


@pytest.mark.parametrize("size", [0, -1, "", "GB", "5", "5XB", "-5GB", True, 1.5, None, "0.1B"])
def test_what_is_no_size(tmp_path, size):
    with pytest.raises(OptionError, match="the size of a shard is a number of bytes"):
        save(edited(), tmp_path / "m.safetensors", max_shard_size=size)


# Another process -----------------------------------------------------------------------------


def test_every_row_in_a_fresh_process(tmp_path):
    from strategies import inputs
    from strategies.net import built
    from strategies.rows import ROWS

    source = "Net(nn.Sequential(Skip(conv()), norm(), Tied()), aux=True, seed=3)"
    wanted = {}
    chosen = [row for row in ROWS.values() if row.parsed]
    for number, row in enumerate(chosen):
        model = pipe(built(source), row.make(), seed=number)
        name = f"row{number}"
        size = 200 if number % 5 == 0 else "5GB"
        save(model, tmp_path / f"{name}.safetensors", max_shard_size=size)
        x = inputs(channels=row.takes)
        torch.save({"base": source, "input": x}, tmp_path / f"{name}.pt")
        wanted[name] = [flat(run(model, x, mode=mode)) for mode in (False, True)]
    found = outputs(tmp_path)
    assert len(chosen) > 50
    assert not [
        repr(chosen[int(name[3:])])
        for name in wanted
        if name not in found or not _equal(found[name], wanted[name])
    ]


def _equal(one, other) -> bool:
    return all(same(a, b) for a, b in zip(one, other, strict=True))


def test_models_of_sources_in_a_fresh_process(tmp_path):
    wanted = {}
    x = torch.randn(2, 3, 64, 64)
    for name in ("resnet18", "shufflenet_v2_x0_5", "googlenet", "timm/test_vit", "timm/test_resnet"):
        torch.manual_seed(0)
        try:
            model = enliven(pipe(get_model(name), swap_head(4)))
        except GraftError:
            continue
        given = torch.randn(2, 3, 160, 160) if name.startswith("timm") else x
        key = name.replace("/", "_")
        save(model, tmp_path / f"{key}.safetensors")
        torch.save({"base": "", "input": given}, tmp_path / f"{key}.pt")
        wanted[key] = [flat(run(model, given, mode=mode)) for mode in (False, True)]
    found = outputs(tmp_path)
    assert wanted
    assert not [name for name in wanted if not _equal(found[name], wanted[name])]


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from torchgraft.store.load import load
from torch import nn

class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(1000, 1000) for _ in range({count}))

    def forward(self, x):
        return x

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

if sys.argv[1] == "save":
    from torchgraft.store.save import save
    model = Large()
    save(nn.Linear(3, 3), sys.argv[3])  # imports and caches
    before = peak()
    save(model, sys.argv[2])
else:
    load(sys.argv[3], base=lambda: nn.Linear(3, 3))  # imports and caches
    before = peak()
    load(sys.argv[2], base=Large)
print(peak() - before)
"""


def test_memory(tmp_path):
    def growth(what):
        script = MEMORY.replace("{count}", "30")
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                script,
                what,
                str(tmp_path / "m.safetensors"),
                str(tmp_path / "s.safetensors"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert growth("save") < 40e6

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(1000, 1000, device="meta") for _ in range(30))

        def forward(self, x):
            return x

    size = (tmp_path / "m.safetensors").stat().st_size
    assert size > 110e6
    assert growth("load") < 1.1 * size


def test_a_model_that_was_changed_by_hand_says_so_when_it_is_loaded(tmp_path):
    model = pipe(get_model("squeezenet1_1"), swap_head(3))
    model.features[0].stride = (1, 1)
    path = save(model, tmp_path / "m.safetensors")
    with pytest.raises(StoreError) as caught:
        load(path)
    assert caught.value.found == (
        "torchvision/squeezenet1_1 and its steps differ in features, which the recipe does not tell of"
    )

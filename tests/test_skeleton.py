"""Skeletons keep constants and nothing else; portraits tell two structures apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model, resnet18

from torchgraft import freeze, inject, load_weights, pipe, swap_head
from torchgraft.errors import SourceError
from torchgraft.graph.history import Origin, history_of, set_history
from torchgraft.graph.portrait import portrait
from torchgraft.sources.skeleton import constants, emptied, skeleton
from torchgraft.transform import replayed


class Constant(nn.Module):
    """Holds tensors in every way that a state dict does not see."""

    def __init__(self, fill=torch.empty):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.tied = self.linear
        self.register_buffer("table", fill(3).fill_(7.0), persistent=False)
        self.register_buffer("kept", torch.arange(2.0))
        self.register_buffer("nothing", None, persistent=False)
        self.scale = torch.tensor(2.0)
        self.many = {"a": [torch.ones(1), torch.zeros(2)]}
        self._weights = [self.linear.weight]


def test_constants_have_values_and_parameters_have_none():
    model = skeleton(lambda: Constant(torch.zeros))
    assert [(path, tensor.is_meta) for path, tensor in constants(model)] == [
        ("scale", False),
        ("many.a.0", False),
        ("many.a.1", False),
        ("table", False),
    ]
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.table.tolist() == [7, 7, 7]
    assert model.tied is model.linear


def test_constants_that_are_filled_in_place_are_built_with_values():
    model = skeleton(Constant)
    assert model.table.tolist() == [7, 7, 7]
    assert model.linear.weight.is_meta


def test_a_constructor_that_reads_its_values_is_given_some():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.size = float(self.linear.weight.sum())

    assert skeleton(Reads).linear.weight.is_meta
    with pytest.raises(ZeroDivisionError):
        skeleton(lambda: nn.Linear(1, 1 // 0))


def test_the_global_generator_stays():
    state = torch.random.get_rng_state()
    skeleton(lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(2, 2)))
    skeleton(lambda: nn.ParameterList([torch.randn(3)]))
    assert torch.random.get_rng_state().equal(state)


def test_integers_and_devices_that_were_asked_for_are_made_as_asked():
    made = skeleton(lambda: Held(torch.empty(2, dtype=torch.long), torch.empty(2, device="cpu")))
    assert [tensor.is_meta for _, tensor in constants(made)] == [False, False]


class Held(nn.Module):
    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors


def test_ties_and_flags_survive_the_emptying():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    first.bias.requires_grad_(requires_grad=False)
    model = emptied(nn.Sequential(first, second))
    assert model[0].weight is model[1].weight
    assert isinstance(model[0].weight, nn.Parameter)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True]


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "vit_b_16", "googlenet", "convnext_tiny"])
def test_what_was_done_can_be_done_to_a_skeleton(name):
    def build():
        return get_model(name, weights=None, **({"init_weights": True} if name == "googlenet" else {}))

    model = build() if name == "resnet18" else skeleton(build)
    steps = (swap_head(7), freeze("**"), load_weights("nowhere.pth"))
    again = replayed(skeleton(build), steps)
    assert portrait(again) == portrait(pipe(model, *steps[:2]))
    assert history_of(again).steps == tuple(map(repr, steps))
    assert all(tensor.is_meta for tensor in again.state_dict().values())


def test_where_a_model_comes_from_survives_surgery():
    model = resnet18()
    set_history(model, (history := history_of(model)).__class__(Origin("torchvision/resnet18")))
    assert history_of(copy.deepcopy(pipe(model, swap_head(2)))).origin == Origin("torchvision/resnet18")
    assert history.origin is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = F.relu
        self.sizes = [1, (2, "x")]
        self.register_buffer("table", torch.zeros(()))

    def forward(self, x):
        return self.act(self.conv(x))


CHANGES = {
    "a stride": lambda net: setattr(net.conv, "stride", (2, 2)),
    "a class": lambda net: setattr(net, "conv", nn.ConvTranspose2d(3, 4, 3)),
    "a function": lambda net: setattr(net, "act", F.gelu),
    "a list": lambda net: net.sizes.append(None),
    "a layer more": lambda net: net.add_module("more", nn.ReLU()),
    "a shape": lambda net: setattr(net.conv, "weight", nn.Parameter(torch.zeros(4, 3, 1, 1))),
    "a bias less": lambda net: setattr(net.conv, "bias", None),
    "a buffer that is kept": lambda net: net._non_persistent_buffers_set.add("table"),
    "a hook": lambda net: net.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_portraits_see_what_was_changed(change):
    net, other = Net(), Net()
    assert portrait(net) == portrait(other)
    change(other)
    assert portrait(net) != portrait(other)
    assert portrait(pipe(net)) != portrait(pipe(other))


def test_portraits_see_the_graph_and_neither_values_nor_modes_nor_flags():
    net = Net()
    for steps in [(), (inject("conv", nn.Tanh()),)]:
        result = pipe(net, *steps)
        assert (portrait(result) == portrait(net)) == (not steps)
        result.eval().requires_grad_(requires_grad=False).double()
        nn.init.ones_(result.conv.weight)
        assert portrait(result) == portrait(pipe(net, *steps))
        result.graph.call_function(torch.neg, (next(iter(result.graph.nodes)),))
        result.recompile()
        assert portrait(result) != portrait(pipe(net, *steps))


class Table(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", make(), persistent=False)


LARGE = {
    "made at once": lambda: torch.zeros(10**11),
    "made where it was asked for": lambda: torch.ones(10**11, device="cpu"),
    "grown out of small ones": lambda: torch.arange(1e6)[:, None] - torch.arange(1e6)[None],
    "made by and by": lambda: [torch.zeros(10**5) for _ in range(30)][0],
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_a_constructor_that_asks_for_more_than_the_limit_is_stopped(make):
    with pytest.raises(SourceError) as caught:
        skeleton(lambda: Table(make), limit=10**7)
    assert caught.value.summary == "the model is larger than there is reason for"
    assert skeleton(lambda: Table(lambda: torch.zeros(10, 10)), limit=10**7).table.shape == (10, 10)


def test_parameters_do_not_count_but_where_they_need_values():
    assert skeleton(lambda: nn.Linear(10**6, 10**6), limit=10**3).weight.is_meta
    with pytest.raises(SourceError):
        skeleton(lambda: Table(lambda: torch.empty(10**6).fill_(1.0)), limit=10**5)

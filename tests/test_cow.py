"""Clones: no memory until a write, no leak in either direction, what was one stays one."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from fingerprint import changes, fingerprint
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from torchgraft.graph import cow as cow_module
from torchgraft.graph.clone import clone

MEASURE = """
import torch
from torch import nn
from torchgraft.graph.clone import clone
import psutil

def resident():
    return psutil.Process().memory_info().rss

model = nn.Linear(4096, 4096)
before = resident()
twin = clone(model)
shared = resident()
with torch.no_grad():
    twin.weight.add_(1)
print(shared - before, resident() - before, torch.equal(twin.weight, model.weight))
"""


def test_a_clone_costs_no_memory_until_one_side_is_written():
    """In a process of its own: in an old one a block that was freed is taken again."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    shared, written, equal = done.stdout.split()
    assert int(shared) < 8e6
    assert int(written) > 60e6
    assert equal == "False"


@pytest.mark.parametrize("write", ["add_", "data", "optimizer", "to", "copy_", "view", "state"])
@pytest.mark.parametrize("side", [0, 1])
def test_no_write_shows_on_the_other_side(write, side):
    sides = [nn.Linear(3, 3), None]
    sides[1] = clone(sides[0])
    written, other = sides[side], sides[1 - side]
    before = fingerprint(other)
    if write == "add_":
        with torch.no_grad():
            written.weight.add_(1)
    elif write == "data":
        written.weight.data[0, 0] = 9
    elif write == "optimizer":
        written(torch.ones(1, 3)).sum().backward()
        torch.optim.Adam(written.parameters()).step()
    elif write == "to":
        written.to(torch.float64)
    elif write == "copy_":
        written.load_state_dict(nn.Linear(3, 3).state_dict())
    elif write == "view":
        written.weight.detach().view(-1)[2] = 5
    else:
        written.state_dict()["weight"].zero_()
    assert not changes(before, fingerprint(other))


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "fallback"])
def test_what_cannot_be_shared_lazily_is_copied(lazy, tmp_path, monkeypatch):
    if not lazy:
        monkeypatch.setattr(cow_module, "_lazy", None)
    save_file({"weight": torch.ones(4, 4), "bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    model = nn.Linear(4, 4)
    model.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    borrowed = torch.from_numpy(torch.zeros(4).numpy().copy())
    model.register_buffer("borrowed", borrowed)
    twin = clone(model)
    with torch.no_grad():
        twin.weight.zero_()
        twin.borrowed.add_(1)
    assert model.weight.sum() == 16
    assert model.borrowed.sum() == 0


def test_ties_views_and_shared_modules_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.arange(12.0).reshape(3, 4)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.register_buffer("whole", whole)
            self.register_buffer("row", whole[1])
            self.both = nn.ModuleList([self.a, self.a])

    twin = clone(Net())
    assert twin.a.weight is twin.b.weight
    assert twin.both[0] is twin.both[1] is twin.a
    twin.whole.zero_()
    assert twin.row.sum() == 0
    assert twin.row.stride() == (1,)


def test_hooks_parametrisations_and_private_state_are_cloned():
    x = torch.randn(2, 3)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    twin = clone(normed)
    assert twin.eval()(x).equal(normed.eval()(x))
    parametrize.remove_parametrizations(twin, "weight")
    assert parametrize.is_parametrized(normed)
    assert normed(x).equal(twin(x))
    weighted = parametrizations.weight_norm(nn.Linear(3, 3))
    assert clone(weighted)(x).equal(weighted(x))
    lstm = nn.LSTM(3, 4, 2, batch_first=True)
    y = torch.randn(2, 5, 3)
    assert clone(lstm)(y)[0].equal(lstm(y)[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_norms_by_hook_are_cloned():
    x = torch.randn(2, 3)
    for norm in (nn.utils.weight_norm, nn.utils.spectral_norm):
        old = norm(nn.Linear(3, 3))
        old(x)
        twin = clone(old)
        old.eval(), twin.eval()
        assert twin(x).equal(old(x))
        twin.train()(x).sum().backward()
        assert all(p.grad is None for p in old.parameters())


def test_a_hook_that_is_bound_to_a_module_is_bound_to_its_clone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.count = 0
            self.fc.register_forward_hook(self.seen)

        def seen(self, module, args, output):
            self.count += 1

        def forward(self, x):
            return self.fc(x)

    model = Counting()
    twin = clone(model)
    twin(torch.ones(1, 2))
    assert (model.count, twin.count) == (0, 1)


def test_strides_flags_gradients_and_parameter_attributes():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    conv.bias.requires_grad_(False)
    conv.weight.no_decay = True
    conv(torch.randn(1, 3, 5, 5)).sum().backward()
    twin = clone(conv)
    assert twin.weight.is_contiguous(memory_format=torch.channels_last)
    assert not twin.bias.requires_grad
    assert twin.weight.no_decay
    assert twin.weight.grad is None
    assert conv.weight.grad is not None


def test_clones_of_meta_models_and_pickles():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert clone(model)[0].weight.is_meta
    real = clone(nn.Linear(2, 2))
    assert pickle.loads(pickle.dumps(real)).weight.equal(real.weight)
    assert copy.deepcopy(real).weight.equal(real.weight)


def test_a_buffer_stays_of_its_class_and_a_tensor_of_its():
    model = nn.Module()
    model.marked = nn.Buffer(torch.ones(2), persistent=False)
    model.register_buffer("plain", torch.ones(2))
    copied = clone(model)
    assert isinstance(copied.marked, nn.Buffer)
    assert not copied.marked.persistent
    assert not isinstance(copied.plain, nn.Buffer)
    assert "marked" not in copied.state_dict()

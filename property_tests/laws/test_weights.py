"""Weights: an alignment finds what does the same, says what it cannot tell, and moves bits."""

from __future__ import annotations

import math

import pytest
import torch
from fingerprint import bits, changes, fingerprint
from hypothesis import example, given
from hypothesis import strategies as st
from renamed import renamed
from strategies import CHANNELS, ROWS, built, inputs, nets, rows
from strategies.nets import bodies
from torch import nn

from torchgraft import pipe, swap_head, wrap
from torchgraft.alignment.align import align
from torchgraft.blocks import se

EVIDENCE = ("behaviour", "structure")
modes = st.sampled_from(EVIDENCE)


def redrawn(net) -> nn.Module:
    """Draw all parameters and statistics of a net anew, in place: it holds what no other holds."""
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
    return net


def taken_by(row) -> torch.Tensor | None:
    """Return an input that a net takes before and after an edit; one is made up for each where none does."""
    return inputs() if row.takes == CHANNELS else None


def reconciled(alignment) -> bool:
    """Tell whether every tensor of both sides stands in exactly one place."""
    targets = [entry.target for entry in alignment.entries]
    targets += [one.target for one in (*alignment.mismatched, *alignment.ambiguous)]
    taken = {key for entry in alignment.entries for key in entry.keys}
    taken |= {one.source for one in alignment.mismatched}
    taken |= {key for one in alignment.ambiguous for key in one.candidates}
    return (
        sorted([*targets, *alignment.missing]) == sorted(alignment.target)
        and sorted([*taken, *alignment.unused]) == sorted(alignment.source)
        and len(set(alignment.unused)) == len(alignment.unused)
    )


def plain(alignment) -> dict[str, tuple]:
    """Say of each entry what it takes and how, and not why."""
    return {entry.target: (entry.parts, entry.view, entry.axes) for entry in alignment.entries}


@given(nets(), modes)
@example(built("Net(SkipOfSkip(Shared(norm()), Tied()), seed=5)"), "behaviour")
def test_law_24_a_model_is_itself(net, evidence):
    """Law 24: aligned with itself, every tensor of a model comes from itself, under each of its names."""
    found = align(net, net, example=inputs(), evidence=evidence)
    assert {entry.target: entry.keys for entry in found.entries} == {key: (key,) for key in net.state_dict()}
    assert all(found.operation(entry) == "identity" for entry in found.entries)
    assert found.coverage == 1
    assert reconciled(found)


@given(nets(), st.integers(0, 9), modes)
def test_law_24_a_renaming_is_found(net, seed, evidence):
    """Law 24: under other names, in another order and with other bits, every tensor that a run reaches is found."""
    other, olds = renamed(net, seed=seed)
    found = align(net, redrawn(other), example=inputs(), evidence=evidence)
    state, made = net.state_dict(), found.apply(net.state_dict())
    assert all(made[key].equal(state[olds[key]]) for key in made)
    assert all(olds[one.target] in one.candidates for one in found.ambiguous)
    left = {olds[one.target] for one in found.ambiguous}
    assert all(key.split(".")[0] in ("spare", "aux") or ".aside." in key for key in left)
    assert not found.missing
    assert not found.mismatched
    assert reconciled(found)


def called_otherwise(net, way, seed) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the state dict of a net under other names, and the new name of each tensor."""
    if way == "nothing":  # flat, in another order, under names that tell nothing
        other, olds = renamed(net, seed=seed)
        return dict(other.state_dict()), {old: new for new, old in olds.items()}
    names = {
        key: {"own": key, "prefix": f"module.{key}", "words": f"net.{key.replace('body', 'trunk')}"}.get(
            way, key
        )
        for key in net.state_dict()
    }
    state = {names[key]: value for key, value in net.state_dict().items()}
    return dict(sorted(state.items())) if way == "alphabet" else state, names


@given(nets(), st.sampled_from(("own", "prefix", "words", "alphabet", "nothing")), st.integers(0, 9))
@example(built("Net(SkipOfSkip(Shared(norm()), Tied()), seed=5)"), "nothing", 3)
def test_law_24_a_state_dict_is_never_mistaken(net, way, seed):
    """Law 24: of its bare state dict under any names, every tensor of a model takes its own values or none."""
    state, names = called_otherwise(redrawn(net), way, seed)
    found = align(state, net, example=inputs())
    made = found.apply(state)
    assert all(made[key].equal(state[names[key]]) for key in made)
    if way in ("own", "prefix"):
        reached = [key for key in names if key.split(".")[0] not in ("spare", "aux") and ".aside." not in key]
        assert made.keys() >= {
            key for key in reached if isinstance(net.state_dict(keep_vars=True)[key], nn.Parameter)
        }
    assert reconciled(found)


@given(nets(), st.integers(0, 9), modes)
def test_law_24_the_other_way_is_the_inverse(net, seed, evidence):
    """Law 24: the alignment of the second with the first is the inverse of that of the first with the second."""
    other, _ = renamed(net, seed=seed)
    redrawn(other)
    there = align(net, other, example=inputs(), evidence=evidence)
    back = align(other, net, example=inputs(), evidence=evidence)
    turned, straight = plain(there.inverse()), plain(back)
    assert {key: turned[key] for key in straight if key in turned} == {
        key: straight[key] for key in turned if key in straight
    }
    state = net.state_dict()
    again = there.inverse().apply(there.apply(state))
    assert all(again[key].equal(state[key]) for key in again)


class Symmetric(nn.Module):
    """Add what two parts make of one thing: nothing tells them apart but their names."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.one, self.other = one, other
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.one(x) + self.other(x))


@given(bodies(without=("Functional", "Moded")), st.integers(0, 9), modes)
def test_law_24_what_is_symmetric_is_reported(body, seed, evidence):
    """Law 24: of two parts that are alike in everything and renamed, both are named for each tensor, and none taken."""
    net = redrawn(Symmetric(built(f"Net({body})").body, built(f"Net({body})").body).double().eval())
    other, olds = renamed(net, seed=seed)
    found = align(net, redrawn(other), example=inputs(), evidence=evidence)
    taken = {(olds[entry.target], *entry.keys) for entry in found.entries}
    ends = [f"{layer}.{name}" for layer in ("stem", "head") for name in ("weight", "bias")]
    assert taken == {(key, key) for key in ends}
    for one in found.ambiguous:
        inside = olds[one.target].partition(".")[2]
        assert {f"one.{inside}", f"other.{inside}"} <= set(one.candidates)
    assert not found.missing
    assert reconciled(found)


@given(nets(), rows(), modes)
@example(built("Net(conv())"), ROWS["dilate"], "behaviour")  # what follows sees what was taken out
@example(built("Net(conv())"), ROWS["block mbconv"], "structure")
@example(
    built("Net(SkipOfSkip(Shared(norm()), SkipOfSkip(Tokens(), Twice())), seed=5)"), ROWS["fpn"], "structure"
)
@example(built("Net(conv())"), ROWS["adapt_input"], "behaviour")
def test_law_24_an_edit_leaves_the_rest_where_it_is(net, row, evidence):
    """Law 24: aligned with what a transform made of it, what it left alone comes from itself, or from what stood there."""
    result = pipe(net, row.make(), seed=0)
    found = align(net, result, example=taken_by(row), evidence=evidence)
    old, new = net.state_dict(), result.state_dict()
    kept = [key for key in old if key in new and not row.touched(key) and old[key].shape == new[key].shape]
    known = {entry.target: entry.keys for entry in found.entries}
    unsure = {one.target: one.candidates for one in found.ambiguous}
    for key in kept:
        if key in known and known[key] != (key,):  # it stands where one of its like was taken out
            assert all(row.touched(other) and other not in new for other in known[key])
        else:
            assert key in known or key in unsure.get(key, ())
    assert reconciled(found)


@given(nets(), modes)
def test_law_24_what_is_added_changes_no_other_pair(net, evidence):
    """Law 24: another head, or a gate behind the body, leaves the pairs of all other tensors as they were."""
    before = plain(align(net, net, example=inputs(), evidence=evidence))
    for added in (swap_head(5), wrap("body", se(neutral=False), name="gate"), wrap("branch.0", se)):
        found = align(net, pipe(net, added, seed=0), example=inputs(), evidence=evidence)
        after = plain(found)
        kept = [key for key in before if key in found.target and not key.startswith(("head", "aux"))]
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


@given(nets(), rows(), modes)
def test_law_25_bits_are_moved(net, row, evidence):
    """Law 25: every value that an alignment makes is bit for bit one of the source, or zero where it says so."""
    result = pipe(redrawn(net), row.make(), seed=0)
    found = align(net, result, example=taken_by(row), evidence=evidence)
    state = net.state_dict()
    for key, made in found.apply(state).items():
        entry = found.of(key)
        assert tuple(made.shape) == found.target[key]
        held = torch.cat([state[name].reshape(-1) for name in entry.keys] or [torch.zeros(0)])
        if not all(part.key for part in entry.parts):
            held = torch.cat([held, torch.zeros(1, dtype=held.dtype)])
        assert torch.isin(made.reshape(-1), held).all()
        if found.operation(entry) == "identity":
            assert bits(made) == bits(state[entry.keys[0]])
    total = sum(math.prod(shape) for shape in found.target.values())
    filled = sum(tensor.numel() for tensor in found.apply(state).values())
    assert found.coverage == pytest.approx(filled / total)


@given(nets(), rows(), modes)
@example(built("Net(nn.Sequential(norm()), flipped=(2,))"), ROWS["freeze"], "behaviour")  # it holds its mode
def test_law_25_both_models_are_untouched(net, row, evidence):
    """Law 25: bits, flags, modes, hooks and gradients of both models, and the random numbers, are as they were."""
    result = pipe(net, row.make(), seed=0)
    before, drawn = (fingerprint(net), fingerprint(result)), torch.get_rng_state()
    align(net, result, example=taken_by(row), evidence=evidence)
    assert not changes(before[0], fingerprint(net))
    assert not changes(before[1], fingerprint(result))
    assert torch.equal(drawn, torch.get_rng_state())

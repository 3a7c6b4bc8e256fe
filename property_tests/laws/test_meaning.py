"""Round trips and meaning: what is undone, kept, neutral and frozen."""

from __future__ import annotations

import copy
import pickle

import torch
from checks import run, same, step
from fingerprint import bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import inputs, nets, rows
from torch import nn

from torchgraft import freeze, inject, pipe, remove, wrap
from torchgraft.blocks import cbam, eca, se


@given(nets(), st.sampled_from([se, eca, cbam]), st.sampled_from(["body", "head", "sum"]))
def test_law_12_remove_undoes_inject_and_wrap(net, block, target):
    """``remove(new)`` after ``inject`` or ``wrap`` gives back keys, bits and outputs."""
    if target != "body" and block is cbam:
        return
    for make in (inject, wrap):
        there = pipe(net, make(target, block, name="new"))
        new = next(path for path, _ in there.named_modules() if path.split(".")[-1] == "new")
        back = pipe(there, remove(new))
        assert list(back.state_dict()) == list(net.state_dict())
        for mode in (False, True):
            assert same(run(back, inputs(), mode=mode), run(pipe(net), inputs(), mode=mode))


@given(nets(), rows())
def test_law_16_old_keys_stay_and_own_state_loads(net, row):
    """A result loads its own state strictly, and keys of untouched parameters are the old ones."""
    transform = row.make()
    result = pipe(net, transform, seed=0)
    pipe(net, transform, seed=1).load_state_dict(result.state_dict(), strict=True)
    kept = {key for key in net.state_dict() if not key.startswith("head.")}
    assert kept <= set(result.state_dict())


@given(nets(), rows())
def test_law_18_a_neutral_start_is_bit_equal(net, row):
    """Neutral edits leave the outputs of evaluation bit-equal."""
    if row.neutral:
        result = pipe(net, row.make(), seed=0)
        assert same(run(result, inputs(), mode=False), run(pipe(net), inputs(), mode=False))


@given(nets(), rows())
def test_law_19_modes_follow_the_switch(net, row):
    """A result of the model in training, switched, is the result of the model in evaluation."""
    transform = row.make()
    one = pipe(net.train(), transform, seed=0).eval()
    other = pipe(net.eval(), transform, seed=0)
    for mode in (False, True, False):
        assert same(run(one, inputs(), mode=mode), run(other, inputs(), mode=mode))


@given(nets())
def test_law_20_sharing_is_kept(net):
    """Names over one tensor, and modules under two paths, are shared as before."""
    result = pipe(net)
    for named in ("named_parameters", "named_modules"):
        ours, theirs = (list(getattr(m, named)(remove_duplicate=False)) for m in (result, net))
        assert [n for n, _ in ours] == [n for n, _ in theirs]
        groups = [{n: [m for m, b in held if b is a] for n, a in held} for held in (ours, theirs)]
        assert groups[0] == groups[1]


@given(nets())
def test_law_21_frozen_parts_hold_and_others_get_the_same_gradients(net):
    """What is frozen does not move; all others get the gradients they would have had."""
    net.requires_grad_(requires_grad=True)
    frozen, free = pipe(net, freeze("body", norm_stats=False)), pipe(net)
    for model in (frozen, free):
        torch.manual_seed(0)
        model.train()(inputs()).sum().backward()
    assert all(p.grad is None for p in frozen.body.parameters())
    assert frozen.head.weight.grad.equal(free.head.weight.grad)
    held = pipe(net, freeze("body"))
    before = {k: bits(v) for k, v in held.state_dict().items() if k.startswith("body") and "shift" not in k}
    step(held, inputs())
    assert before == {k: bits(v) for k, v in held.state_dict().items() if k in before}


@given(nets(), rows())
def test_law_22_results_are_well_formed(net, row):
    """Graphs lint; results are transformed again, copied and pickled without a difference."""
    result = pipe(net, row.make(), seed=0)
    for module in result.modules():
        if isinstance(module, torch.fx.GraphModule):
            for graph in module.graphs:
                graph.lint()
    others = pipe(result), copy.deepcopy(result), _pickled(result)
    expected = [run(result, inputs(), mode=mode) for mode in (False, True)]
    for other in others:
        assert list(other.state_dict()) == list(result.state_dict())
        assert all(same(run(other, inputs(), mode=bool(i)), e) for i, e in enumerate(expected))


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))

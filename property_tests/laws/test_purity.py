"""Purity: what was given is as it was."""

from __future__ import annotations

import pytest
import torch
from checks import run, same, step
from fingerprint import changes, fingerprint
from hypothesis import given
from hypothesis import strategies as st
from strategies import FAILING, inputs, nets, rows

from torchgraft import GraftError, pipe


@given(nets(), rows())
def test_law_1_the_model_is_untouched(net, row):
    """After ``t(m)`` bits, keys, flags, gradients, modes, hooks and outputs of ``m`` are as before."""
    net.head.register_forward_hook(lambda module, args, output: None)
    before, answer = fingerprint(net), run(pipe(net), inputs(), mode=False)
    pipe(net, row.make(), seed=0)
    assert not changes(before, fingerprint(net))
    modes = {m: m.training for m in net.modules()}
    assert same(run(net, inputs(), mode=False), answer)
    for module, mode in modes.items():
        module.training = mode


@given(nets(), st.sampled_from(FAILING))
def test_law_2_the_model_is_untouched_when_a_step_raises(net, make):
    """The same when ``t(m)`` raises at any point."""
    before = fingerprint(net)
    with pytest.raises(GraftError) as caught:
        pipe(net, make())
    assert caught.value.asked
    assert caught.value.found
    assert not changes(before, fingerprint(net))


@given(nets(), rows(), st.sampled_from(["step", "train", "to", "zero"]))
def test_law_4_nothing_leaks_in_either_direction(net, row, write):
    """A step, a switch of mode, a move or an in-place edit on one side leaves the other as it was."""
    result = pipe(net, row.make(), seed=0)
    for written, other in ((result, net), (net, result)):
        before = fingerprint(other)
        if write == "step" and any(p.requires_grad for p in written.parameters()):
            step(written, inputs())
        elif write == "train":
            written.train(not written.training)
            written.requires_grad_(requires_grad=False)
        elif write == "to":
            written.to(torch.float32)
        else:
            with torch.no_grad():
                for tensor in (*written.parameters(), *written.buffers()):
                    tensor.zero_()
        assert not changes(before, fingerprint(other))


@given(nets(), rows())
def test_law_5_a_seed_decides_everything(net, row):
    """``t(m)`` twice under one seed is the same, and the global generator does not move."""
    transform = row.make()
    state = torch.get_rng_state()
    one, other = pipe(net, transform, seed=3), pipe(net, transform, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    assert all(a[key].equal(b[key]) for key in a)

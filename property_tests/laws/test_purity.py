"""Purity: what was given is as it was."""

from __future__ import annotations

import contextlib
import copy
import random

import pytest
import torch
from checks import flat, run, same, step
from equivalence import graphs, shares, tensors
from fingerprint import bits, changes, fingerprint
from hypothesis import given
from hypothesis import strategies as st
from strategies import ARGUMENTS, edits, failing, inputs, nets, rows, summed

from torchgraft import GraftError, inject, pipe
from torchgraft.blocks import se

LATE = inject("branch", se, name="late")


def with_gradients(net) -> None:
    """Leave gradients behind, as a model has that is in the middle of a training."""
    net.requires_grad_(requires_grad=True)
    sum(t.sum() for t in flat(net(inputs()))).backward()


@given(nets(), rows())
def test_law_1_the_model_is_untouched(net, row):
    """Law 1: a transform leaves bits, keys, flags, gradients, modes, hooks and outputs of the model as they were."""
    with_gradients(net)
    expected = run(copy.deepcopy(net), inputs(), mode=False)
    before = fingerprint(net)
    pipe(net, row.make(), seed=0)
    assert not changes(before, fingerprint(net))
    assert same(run(net, inputs(), mode=False), expected)


@given(nets(), st.data())
def test_law_1_also_at_drawn_targets(net, data):
    """Law 1: the same for an edit at any module of the model, whether it can be done or not."""
    edit = data.draw(edits(net))
    with_gradients(net)
    before = fingerprint(net)
    with contextlib.suppress(GraftError):
        pipe(net, edit.transform, seed=0)
    assert not changes(before, fingerprint(net))


@given(nets(), failing(), st.sampled_from(["alone", "last", "first"]))
def test_law_2_the_model_is_untouched_when_a_step_raises(net, failing, place):
    """Law 2: the model is as it was when a transform raises, at any point of its work, whatever it raises."""
    before, shared = fingerprint(net), shares(net)
    transform = failing.make()
    steps = {"alone": [transform], "last": [LATE, transform], "first": [transform, LATE]}[place]
    with pytest.raises(failing.raises) as caught:
        pipe(net, *steps)
    if isinstance(caught.value, GraftError):
        assert caught.value.asked
        assert caught.value.found
    assert not changes(before, fingerprint(net))
    assert shares(net) == shared


@given(nets(), st.sampled_from(list(ARGUMENTS.values())))
def test_law_3_the_arguments_are_untouched(net, make):
    """Law 3: modules, dictionaries, examples and transforms that are given are as they were, also after training."""
    argument, transform, options = make()
    before, said, number = summed(argument), repr(transform), hash(transform)
    result = pipe(net, transform, **options, seed=0)
    again = pipe(net, transform, **options, seed=0)
    state = {key: bits(tensor) for key, tensor in tensors(again).items()}
    assert summed(argument) == before
    step(result.requires_grad_(requires_grad=True), inputs())
    with torch.no_grad():
        for tensor in tensors(again).values():
            tensor.zero_()
    assert summed(argument) == before
    assert (repr(transform), hash(transform)) == (said, number)
    third = pipe(net, transform, **options, seed=0)
    assert {key: bits(tensor) for key, tensor in tensors(third).items()} == state


@given(nets(), rows(), st.sampled_from(["step", "train", "to", "zero", "hook", "flag"]))
def test_law_4_nothing_leaks_in_either_direction(net, row, write):
    """Law 4: a step, a switch of mode, a move, a hook or an edit in place on one side leaves the other as it was."""
    result = pipe(net, row.make(), seed=0)
    for written, other in ((result, net), (net, result)):
        before = fingerprint(other)
        WRITES[write](written, inputs(channels=row.takes if written is result else 3))
        assert not changes(before, fingerprint(other))


def _step(model, x) -> None:
    step(model.requires_grad_(requires_grad=True), x)


def _zero(model, x) -> None:
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.zero_()


def _hook(model, x) -> None:
    for module in model.modules():
        module.register_forward_hook(print)


def _flag(model, x) -> None:
    model.requires_grad_(requires_grad=not next(model.parameters()).requires_grad)
    model.config["mean"].append(0.25)


WRITES = {
    "step": _step,
    "train": lambda model, x: model.train(not model.training),
    "to": lambda model, x: model.to(torch.float32),
    "zero": _zero,
    "hook": _hook,
    "flag": _flag,
}


@given(nets(), rows())
def test_law_5_a_seed_decides_everything(net, row):
    """Law 5: one seed gives one result, graph, bits and all, and no global generator moves."""
    transform = row.make()
    states = torch.get_rng_state(), random.getstate()
    one, other = pipe(net, transform, seed=3), pipe(net, transform, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        third = pipe(net, transform)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    for again in (other, third):
        assert {k: bits(t) for k, t in tensors(one).items()} == {
            k: bits(t) for k, t in tensors(again).items()
        }
        assert graphs(one) == graphs(again)

"""Transforms as values: print, compare, hash, pickle, compose."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fingerprint import changes, fingerprint
from torch import nn

import torchgraft
from torchgraft import (
    at,
    compose,
    drop_head,
    edit,
    freeze,
    identity,
    inject,
    pipe,
    remove,
    replace,
    swap_head,
    trace,
    unfreeze,
    wrap,
)
from torchgraft.blocks import cbam, eca, se
from torchgraft.errors import ModelError, OptionError, TargetError, TraceError

VALUES = [
    wrap("layer4", se),
    wrap("layer4", se(reduction=8), name="gate"),
    wrap(at("a") | "b.*" | nn.Conv2d, cbam(kernel=3)),
    inject("layer1.0.add", eca(kernel=5), where="before"),
    replace(nn.ReLU, nn.SiLU),
    replace(nn.ReLU | nn.GELU, nn.SiLU, keep_shape=False, keep_weights=True),
    remove("layer4.se"),
    freeze("**", norm_stats=False),
    unfreeze("fc"),
    swap_head(10),
    swap_head(10, dropout=0.5),
    drop_head(),
    identity(),
    wrap("a", se) >> swap_head(3) >> freeze("b"),
]
NAMESPACE = {
    **{name: getattr(torchgraft, name) for name in torchgraft.__all__},
    "se": se, "eca": eca, "cbam": cbam, "nn": nn,
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_prints_as_the_call_that_made_it(value):
    assert eval(repr(value), NAMESPACE) == value
    assert "0x" not in repr(value)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_is_equal_by_content_hashes_and_copies(value):
    twin = pickle.loads(pickle.dumps(value))
    assert twin == value
    assert hash(twin) == hash(value)
    assert copy.deepcopy(value) == value
    with pytest.raises(AttributeError):
        value.target = "other"


def test_repr_is_what_one_would_write():
    assert repr(wrap("layer4", se)) == 'wrap("layer4", se())'
    assert repr(freeze(at("a") | "b")) == 'freeze(at("a") | "b")'
    assert repr(wrap("a", nn.ReLU, name="x")) == 'wrap("a", nn.ReLU, name="x")'


def test_composition_is_associative_and_identity_is_its_unit():
    a, b, c = wrap("a", se), swap_head(3), freeze("b")
    assert (a >> b) >> c == a >> (b >> c) == compose(a, b, c)
    assert identity() >> a == a == a >> identity()
    assert compose() == identity()


def test_pipe_is_application(small, images):
    a, b = wrap("stage", se), swap_head(3)
    piped = pipe(small, a, b, seed=1)
    applied = b(a(small, seed=1), seed=1)
    assert list(piped.state_dict()) == list(applied.state_dict())
    assert (a >> b)(small, seed=1)(images).equal(piped(images))


def test_a_seed_leaves_the_global_generator_alone(small):
    state = torch.get_rng_state()
    one, other = pipe(small, swap_head(3), seed=7), pipe(small, swap_head(3), seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.fc.weight, other.fc.weight)


def test_a_failing_step_is_named_and_leaves_nothing(small):
    before = fingerprint(small)
    with pytest.raises(TargetError) as caught:
        pipe(small, wrap("stage", se), swap_head(3), freeze("stag"))
    assert caught.value.__notes__ == ['while applying step 3 of 3: freeze("stag")']
    assert caught.value.near == ("stage",) or "stage" in caught.value.near
    assert caught.value.write == 'freeze("stage")'
    assert not changes(before, fingerprint(small))


@pytest.mark.parametrize("step", [None, se, "wrap", wrap, lambda model: model])
def test_a_step_must_be_a_transform(small, step):
    with pytest.raises(OptionError, match="must be a transform"):
        pipe(small, step)


def test_wrappers_and_other_things_are_refused(small):
    scripted = torch.jit.script(nn.ReLU())
    for model, line in [
        (None, ""),
        (Small := type(small), f"pipe({Small.__module__}.{Small.__name__}(<arguments>), swap_head(3))"),
        (scripted, "pipe(<the module that was scripted>, ...)"),
        (nn.DataParallel(small), "pipe(model.module, ...), and wrap the result again"),
        (torch.compile(small, backend="eager"), "torch.compile(pipe(model._orig_mod, ...))"),
    ]:
        with pytest.raises(ModelError) as caught:
            pipe(model, swap_head(3))
        assert caught.value.write == line
    with pytest.raises(ModelError, match="shape is not known yet"):
        pipe(nn.Sequential(nn.LazyLinear(3)), freeze("*"))


def test_edit_gets_the_draft(small, images):
    def double(draft):
        draft.get("fc").weight.data.mul_(2)

    step = edit(double, name="double")
    assert "double" in repr(step)
    edited = pipe(small, step)
    assert torch.equal(edited.fc.weight, small.fc.weight * 2)
    with pytest.raises(OptionError):
        edit(3, name="three")


def test_trace_returns_a_graph_or_says_why_not(small, images):
    traced = trace(small)
    assert isinstance(traced, torch.fx.GraphModule)
    assert traced(images).equal(small(images))
    from nets import ByData

    with pytest.raises(TraceError) as caught:
        trace(ByData())
    assert caught.value.filename.endswith("nets.py")
    assert "x.sum() > 0" in caught.value.found
    assert caught.value.lineno > 0

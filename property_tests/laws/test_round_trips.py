"""Round trips: what is done is undone, and what is printed is read back."""

from __future__ import annotations

import operator
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from checks import run, same
from equivalence import equivalent
from hypothesis import given
from hypothesis import strategies as st
from strategies import functions, inputs, modules, net, nets, parts, paths_of, rows, selectors
from strategies.net import built
from torch import nn
from torch.nn import functional as F

import torchgraft
from torchgraft import GraftError, blocks, freeze, inject, merge_lora, pipe, remove, rename, unfreeze, wrap
from torchgraft.blocks import eca, layer_scale, lora, parallel_adapter, residual_gate, se
from torchgraft.graph.history import history_of
from torchgraft.store.load import load
from torchgraft.store.save import save

NAMES = {
    **{name: getattr(blocks, name) for name in blocks.__all__},
    **{name: getattr(torchgraft, name) for name in torchgraft.__all__},
    "nn": nn,
    "F": F,
    "torch": torch,
    "operator": operator,
    "strategies": SimpleNamespace(parts=parts, functions=functions, net=net),
}


@given(
    nets(),
    st.data(),
    st.sampled_from([wrap, inject]),
    st.sampled_from([se, eca, layer_scale, residual_gate, nn.Tanh]),
)
def test_law_12_remove_undoes_inject_and_wrap(net, data, make, block):
    """Law 12: removing what was wrapped or injected, wherever it was, gives the model again."""
    undone(net, data.draw(st.sampled_from(paths_of(net))), block, make)


BESIDE = [("stem", lora(2)), ("head", parallel_adapter(2)), ("norm", residual_gate())]


@given(nets(), st.sampled_from(BESIDE), st.sampled_from([wrap, inject]))
def test_law_12_also_of_blocks_that_take_the_input_of_their_target(net, place, make):
    """Law 12: the same of blocks that are given what their target takes as well."""
    assert undone(net, *place, make=make)


def undone(net, target, block, make) -> bool:
    """Assert that what is added, where it can be, is taken out again by ``remove``."""
    try:
        there = pipe(net, make(target, block, name="new"), seed=0)
    except GraftError:
        return False
    added = [path for path, _ in there.named_modules() if path.split(".")[-1] == "new"]
    assert added
    back = there
    for path in added:
        back = pipe(back, remove(path))
    equivalent(back, pipe(net))
    return True


@given(nets(), st.data())
def test_law_12_unfreeze_undoes_freeze(net, data):
    """Law 12: unfreezing what was frozen gives the model again, where all of it was trainable."""
    net.requires_grad_(requires_grad=True)
    target = data.draw(st.sampled_from(["**", "body", "body.**", *paths_of(net)]))
    try:
        frozen = pipe(net, freeze(target))
    except GraftError:
        return
    equivalent(pipe(frozen, unfreeze(target)), pipe(net))


@given(nets())
def test_law_12_merging_undoes_an_adapter_at_its_start(net):
    """Law 12: merging a LoRA that is as it started gives the model again."""
    equivalent(pipe(net, wrap("stem", lora(2)), merge_lora(), seed=0), pipe(net))


@given(nets(), st.data())
def test_law_12_renaming_back_undoes_a_renaming(net, data):
    """Law 12: renaming a module, and then back, gives the model again."""
    path = data.draw(st.sampled_from(paths_of(net)))
    new = f"{path.rpartition('.')[0]}.other".lstrip(".")
    try:
        there = pipe(net, rename({path: new}))
    except GraftError:
        return
    equivalent(pipe(there, rename({new: path})), pipe(net))


@given(rows())
def test_law_13_what_is_printed_is_parsed_back(row):
    """Law 13: a transform that can be written is parsed back from its print; what cannot be is refused."""
    parse = pytest.importorskip("torchgraft.recipe").parse
    transform = row.make()
    if row.parsed:
        assert parse(repr(transform)) == transform
        return
    with pytest.raises(GraftError):
        parse(repr(transform))


@given(nets(), st.data())
def test_law_13_selectors_too(net, data):
    """Law 13: the same of a step with any selector; one that names a function of a user is refused."""
    parse = pytest.importorskip("torchgraft.recipe").parse
    for step in (freeze(data.draw(selectors(net))), freeze(data.draw(modules(net, 2)))):
        if "strategies.functions." in repr(step):
            with pytest.raises(GraftError):
                parse(repr(step))
        else:
            assert parse(repr(step)) == step


@given(nets(), rows(lambda row: row.parsed), st.sampled_from(["5GB", 300]))
def test_law_14_what_is_saved_is_loaded_back(net, row, size):
    """Law 14: a saved model, loaded again, is equivalent to it, and is saved to the same bytes."""
    model = pipe(net, row.make(), seed=0)
    with TemporaryDirectory() as folder:
        path = save(model, f"{folder}/m.safetensors", max_shard_size=size)
        first = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        again = load(path, base=lambda: built(net.source))
        save(again, f"{folder}/m.safetensors", max_shard_size=size)
        assert {file.name: file.read_bytes() for file in Path(folder).iterdir()} == first
    assert history_of(again) == history_of(model)
    equivalent(again, model, channels=row.takes)


@given(nets())
def test_law_14_also_of_a_model_to_which_nothing_was_done(net):
    """Law 14: the same of a model as it was built, which keeps its class."""
    with TemporaryDirectory() as folder:
        again = load(save(net, f"{folder}/m.safetensors"), base=net)
    assert type(again) is type(net)
    equivalent(again, pipe(net))


@given(rows())
def test_law_15_what_is_printed_is_the_call(row):
    """Law 15: Python evaluates the print of a transform to the transform; no print holds an address."""
    transform = row.make()
    said = repr(transform)
    assert not re.search("0x[0-9a-f]{4,}", said)
    if row.written:
        again = eval(said, dict(NAMES))
        assert again == transform
        assert hash(again) == hash(transform)
        assert repr(again) == said


@given(nets(), st.data())
def test_law_15_selectors_too(net, data):
    """Law 15: the same of selectors, whatever they are made from."""
    for selector in (data.draw(selectors(net)), data.draw(modules(net, 2))):
        said = repr(selector)
        assert not re.search("0x[0-9a-f]{4,}", said)
        again = eval(said, dict(NAMES))
        assert again == selector
        assert hash(again) == hash(selector)
        assert repr(again) == said
        inside = freeze(selector)
        assert eval(repr(inside), dict(NAMES)) == inside


@given(nets(), rows())
def test_law_16_a_result_loads_its_own_state(net, row):
    """Law 16: a result loads its own state strictly, also one made under another seed, and then computes the same."""
    transform = row.make()
    result, other = pipe(net, transform, seed=0), pipe(net, transform, seed=1)
    other.load_state_dict(result.state_dict(), strict=True)
    x = inputs(channels=row.takes)
    assert same(run(other, x, mode=False), run(result, x, mode=False))


@given(nets(), rows())
def test_law_16_an_old_checkpoint_loads_into_a_result(net, row):
    """Law 16: untouched keys are the old ones in the old order, so an old checkpoint loads all but what was touched."""
    result, old = pipe(net, row.make(), seed=0), net.state_dict()
    kept = [key for key in old if not row.touched(key)]
    assert [key for key in result.state_dict() if key in kept] == kept
    missing, unexpected = result.load_state_dict({key: old[key] * 0 + 1 for key in kept}, strict=False)
    assert not unexpected
    assert all(row.touched(key) for key in missing)
    assert all((result.state_dict()[key] == 1).all() for key in kept)

"""Meaning: a result is what it says, computes what it should, and is a model like any other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from checks import flat, run, same, step
from equivalence import equivalent, graphs, modes, shares, tensors
from fingerprint import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ALWAYS, BLOCK_ROWS, additions, built, edits, functions, inputs, nets, paths_of, rows
from torch import nn

from torchgraft import GraftError, at, blocks, dilate, freeze, inject, node, op, pipe, remove, replace, wrap
from torchgraft.blocks import eca, layer_scale, se
from torchgraft.spec import TensorSpec

Shapes = tuple[torch.Size, ...]


@given(nets(), rows())
def test_law_17_predicted_shapes_of_modules_are_those_of_a_run(net, row):
    """Law 17: the shapes that a selection tells of modules, before and after an edit, are those that a run has."""
    x = inputs(channels=row.takes)
    for model, given_ in ((net, inputs()), (pipe(net, row.make(), seed=0), x)):
        had = shapes_of_run(model, given_)
        for site in at("**").on(model, example=given_):
            if site.path in had:
                assert (site.inputs, site.outputs) == had[site.path], site.path


def shapes_of_run(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[Shapes, Shapes]]:
    """Run a model in evaluation; return what the first call of each module took and gave, under all its names."""
    had: dict[int, tuple[Shapes, Shapes]] = {}

    def note(module, args, kwargs, output) -> None:
        sides = (flat([*args, *kwargs.values()]), flat(output))
        had.setdefault(id(module), tuple(tuple(t.shape for t in side) for side in sides))

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    run(model, x, mode=False)
    for hook in hooks:
        hook.remove()
    named = model.named_modules(remove_duplicate=False)
    return {path: had[id(module)] for path, module in named if id(module) in had}


@given(nets(), st.data())
def test_law_17_predicted_shapes_of_operations_are_those_of_a_run(net, data):
    """Law 17: the shape that a selection tells of an operation is the one that a run has there."""
    site = data.draw(st.sampled_from(op("*").on(net, example=inputs()).sites), label="site")
    try:
        result = pipe(net, inject(node(site.path), nn.Identity(), name="spy"), example=inputs())
    except GraftError:
        return
    seen = [
        shapes
        for path, (_, shapes) in shapes_of_run(result, inputs()).items()
        if path.split(".")[-1] == "spy"
    ]
    assert all(shapes == site.outputs for shapes in seen)


@given(st.sampled_from(list(BLOCK_ROWS.values())), st.data())
def test_law_17_a_block_keeps_its_contract(row, data):
    """Law 17: the shape that a block promises is the one that its module gives."""
    block, channels = row.block, data.draw(st.sampled_from([4, 6, 8]))
    if "channels" in block.kind.signature.parameters:
        asked = {"channels": st.sampled_from([None, 4, 12]), "stride": st.sampled_from([None, 1, 2])}
        block = getattr(blocks, block.label())(**data.draw(st.fixed_dictionaries(asked)))
    sides = data.draw(st.lists(st.integers(2, 9), min_size=2 if block.needs_rank else 1, max_size=2))
    shape = (2, channels, *sides)
    kind = (nn.Conv1d, nn.Conv2d)[len(sides) - 1]
    layer = kind(channels, channels, 1).double()
    site = TensorSpec(channels, 1, len(shape), torch.float64, torch.device("cpu"), layer=layer)
    module = block.build(site).eval()
    x = torch.rand(shape, dtype=torch.float64)
    given_ = (x, layer(x)) if block.takes_input else (x,)
    assert tuple(module(*given_).shape) == block.shape(shape)


def test_law_17_a_result_of_another_shape_runs_in_training_too():
    """Law 17: a result that is shaped anew on purpose runs in both modes, or is refused."""
    wider = replace("down", blocks.dense(growth=2, layers=2), keep_shape=False)
    with pytest.raises(GraftError):
        pipe(built("Net(conv(), aux=True)"), wider, replace("head", functions.takes_eight, keep_shape=False))


@given(nets(), rows(lambda row: row.neutral))
def test_law_18_a_neutral_start_is_bit_equal(net, row):
    """Law 18: an edit that starts neutral leaves the outputs bit-equal, in each mode that it is neutral in."""
    result = pipe(net, row.make(), seed=0)
    for mode in (False, True) if row.neutral == ALWAYS else (False,):
        assert same(run(result, inputs(), mode=mode), run(copy.deepcopy(net), inputs(), mode=mode))


@given(nets(), st.data(), st.booleans())
def test_law_18_also_at_drawn_targets(net, data, mode):
    """Law 18: a neutral block leaves the outputs bit-equal wherever it is put."""
    try:
        result = pipe(net, data.draw(additions(net)).transform, seed=0)
    except GraftError:
        return
    assert same(run(result, inputs(), mode=mode), run(net, inputs(), mode=mode))


@given(
    nets(),
    st.lists(
        st.sampled_from([row.block for row in BLOCK_ROWS.values() if row.stacks]), min_size=2, max_size=3
    ),
)
def test_law_18_neutral_blocks_stack(net, blocks):
    """Law 18: neutral blocks, one behind the other at one place, leave the outputs bit-equal."""
    result = pipe(net, *(wrap("body", block, name=f"added_{i}") for i, block in enumerate(blocks)), seed=0)
    for mode in (False, True):
        assert same(run(result, inputs(), mode=mode), run(copy.deepcopy(net), inputs(), mode=mode))


def test_law_18_also_behind_a_gate_of_the_model():
    """Law 18: the same behind a part of the model that multiplies all channels by one map."""
    net = built("Net(Gated())")
    for block in (se(), eca(), layer_scale()):
        result = pipe(net, wrap("body", block, name="added"), seed=0)
        assert result.body.added.state_dict().keys() != {"gamma"} or len(result.body.added.gamma) == 4
        assert same(run(result, inputs(), mode=False), run(net, inputs(), mode=False))


@given(nets(without=("Tokens", "Halved")))  # which mix places, so that their maps cannot be dilated
def test_law_18_a_dilated_model_computes_the_same(net):
    """Law 18: larger maps leave the outputs as they were in evaluation."""
    assert same(run(pipe(net, dilate(2)), inputs(), mode=False), run(net, inputs(), mode=False))


@given(nets(), rows())
def test_law_19_modes_follow_the_switch(net, row):
    """Law 19: an edit and a switch of mode commute, and a result switches as the model does."""
    transform = row.make()
    one = pipe(copy.deepcopy(net).train(), transform, seed=0).eval()
    other = pipe(copy.deepcopy(net).eval(), transform, seed=0)
    assert not any(modes(other).values())
    x = inputs(channels=row.takes)
    for mode in (False, True, False):
        assert same(run(one, x, mode=mode), run(other, x, mode=mode))
        switched = modes(net.train(mode))
        assert not [p for p, m in modes(one).items() if not row.held(p) and m is not switched[p]]


@given(nets(), rows())
def test_law_20_sharing_is_kept(net, row):
    """Law 20: names of one tensor, and of one module, stay names of one; nothing else becomes shared."""
    assert shares(pipe(net)) == shares(net)
    before = {frozenset(name for name in group if not row.touched(name)) for group in shares(net)}
    after = {
        frozenset(name for name in group if not row.touched(name))
        for group in shares(pipe(net, row.make(), seed=0))
    }
    assert {group for group in after if len(group) > 1} == {group for group in before if len(group) > 1}


@given(nets(), st.data())
def test_law_21_frozen_parts_get_no_gradients_and_others_the_same(net, data):
    """Law 21: frozen parameters get no gradient, and all others the one that they would have had."""
    net.requires_grad_(requires_grad=True)
    path = data.draw(st.sampled_from(paths_of(net)))
    frozen, free = pipe(net, freeze(path, norm_stats=False)), pipe(net)
    for model in (frozen, free):
        sum(t.sum() for t in flat(model.eval()(inputs()))).backward()
    held = {id(p) for p in frozen.get_submodule(path).parameters()}
    for (name, one), other in zip(frozen.named_parameters(), free.parameters(), strict=True):
        if id(one) in held or other.grad is None:
            assert one.grad is None, name
        else:
            assert one.grad is not None, name
            assert one.grad.equal(other.grad), name


@given(nets(), st.data())
def test_law_21_frozen_parts_hold_still(net, data):
    """Law 21: parameters and statistics of a frozen part are bit-equal after training, however often modes switch."""
    net.requires_grad_(requires_grad=True)
    path = data.draw(st.sampled_from(paths_of(net)))
    model = pipe(net, freeze(path))
    part = model.get_submodule(path)
    before = {name: bits(tensor) for name, tensor in tensors(part).items()}
    step(model.eval(), inputs(1))
    step(model, inputs(2))
    assert before == {name: bits(tensor) for name, tensor in tensors(part).items()}


def held(model: nn.Module) -> list[torch.fx.Graph]:
    """Return the graphs of the levels of a model; the one in use is that of the level's mode."""
    levels = [module for module in model.modules() if isinstance(module, torch.fx.GraphModule)]
    assert all(level.graph is level.graphs[-1 if level.training else 0] for level in levels)
    return [graph for level in levels for graph in level.graphs]


@given(nets(), rows())
def test_law_22_results_are_well_formed(net, row):
    """Law 22: graphs lint, and a result is transformed again and copied without a difference."""
    result = pipe(net, row.make(), seed=0)
    for graph in held(result):
        graph.lint()
    own = {id(graph) for graph in held(result)}
    for other in (pipe(result), copy.deepcopy(result)):
        assert graphs(other) == graphs(result)
        assert not own & {id(graph) for graph in held(other)}
        equivalent(other, copy.deepcopy(result), graph=False, channels=row.takes)


@given(nets(), st.data())
def test_law_22_also_at_drawn_targets(net, data):
    """Law 22: the same of an edit at any module: what can be done gives a model that runs in both modes."""
    try:
        result = pipe(net, data.draw(edits(net)).transform, seed=0)
    except GraftError:
        return
    for graph in held(result):
        graph.lint()
    equivalent(copy.deepcopy(result), result)


def test_law_22_also_of_a_module_called_twice_in_a_row():
    """Law 22: the same where a module that is taken out is called with what it gave."""
    for source in ("Net(Again(relu()))", "Net(Shared(relu()))"):
        result = pipe(built(source), remove("body.part" if "Again" in source else "body.0"))
        assert same(
            run(result, inputs(), mode=False), run(built("Net(nn.Sequential())"), inputs(), mode=False)
        )


@given(nets(), rows())
def test_law_22_results_pickle(net, row):
    """Law 22: a result is pickled and unpickled without a difference."""
    result = pipe(net, row.make(), seed=0)
    other = pickle.loads(pickle.dumps(result))
    assert graphs(other) == graphs(result)
    equivalent(other, result, graph=False, channels=row.takes)


def test_law_22_results_pickle_whatever_their_forward_calls():
    """Law 22: the same where a forward calls a function of torch that is made at run time."""
    result = pipe(built("Net(Halved(conv()))"), inject("body.part", nn.Identity()))
    assert graphs(pickle.loads(pickle.dumps(result))) == graphs(result)


@settings(max_examples=3)
@given(nets(), rows())
def test_law_22_results_compile(net, row):
    """Law 22: a result compiles as one graph and then computes the same."""
    result = pipe(net, row.make(), seed=0).eval()
    x = inputs(channels=row.takes)
    torch._dynamo.reset()
    compiled = torch.compile(result, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert same(compiled(x), result(x))

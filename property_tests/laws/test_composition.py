"""Composition: the parts decide, however they are put together."""

from __future__ import annotations

import pickle

import torch
from checks import flat, run, same
from equivalence import equivalent, graphs, tensors
from fingerprint import bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import additions, aliases, apart, built, covered, edits, inputs, nets, rows
from torch import nn

from torchgraft import GraftError, compose, identity, inject, node, pipe, remove, replace, wrap
from torchgraft.blocks import layer_scale, se


def attempt(net, *steps, **options):
    """Apply steps; return the result, or the class of the error of the library."""
    try:
        return pipe(net, *steps, **options)
    except GraftError as error:
        return type(error)


@given(nets())
def test_law_6_identity_computes_what_the_model_computes(net):
    """Law 6: a pipe of nothing and the identity give the model again: one graph, one state, one function."""
    equivalent(pipe(net), identity()(net))
    equivalent(pipe(pipe(net)), pipe(net))
    equivalent(pipe(net), net)


@given(rows(), rows(), rows())
def test_law_7_composition_is_a_monoid(one, two, three):
    """Law 7: as values, the identity is the unit and joining is associative; equal values hash and pickle alike."""
    a, b, c = one.make(), two.make(), three.make()
    assert identity() >> a == a == a >> identity()
    assert compose() == identity()
    assert compose(a) == a
    assert (a >> b) >> c == a >> (b >> c) == compose(a, b, c) == compose(compose(a, b), identity(), c)
    assert hash((a >> b) >> c) == hash(a >> (b >> c))
    assert [*a.steps(), *b.steps()] == list((a >> b).steps())
    for row, transform in ((one, a), (two, b), (three, c)):
        assert not row.written or pickle.loads(pickle.dumps(transform)) == transform == row.make()
    assert (a == b) is (repr(a) == repr(b)) or not (one.written and two.written)


@given(nets(), rows(), rows())
def test_law_8_pipe_is_application(net, first, second):
    """Law 8: a pipe of two transforms is the second applied to what the first gives."""
    a, b = first.make(), second.make()
    middle = attempt(net, a, seed=0)
    expected = middle if isinstance(middle, type) else attempt(middle, b, seed=0)
    result, joined = attempt(net, a, b, seed=0), attempt(net, a >> b, seed=0)
    if isinstance(expected, type) or isinstance(result, type):
        assert expected is result is joined
        return
    # The second draws its parameters from the start of the seed in one, and from where the first stopped in the other.
    equivalent(result, expected, fresh=changed_keys(net, result), channels=takes(first, second))
    assert graphs(joined) == graphs(pipe(net, a, b, seed=0))


def takes(*applied) -> int:
    """Return the channels that a result of rows takes."""
    return next((row.takes for row in reversed(applied) if row.takes != 3), 3)


def changed_keys(net, result) -> list[str]:
    """Return the keys of the tensors that are new or hold something else."""
    old = net.state_dict()
    return [k for k, t in result.state_dict().items() if k not in old or bits(t) != bits(old[k])]


@given(nets(), st.data())
def test_law_9_disjoint_edits_commute(net, data):
    """Law 9: edits at places of which none holds anything of the other give one result in either order."""
    one, other = data.draw(apart(net))
    there = attempt(net, one.transform, other.transform, seed=0)
    back = attempt(net, other.transform, one.transform, seed=0)
    if isinstance(there, type) or isinstance(back, type):
        assert isinstance(there, type)
        assert isinstance(back, type)
        return
    equivalent(there, back)


@given(nets(), st.data())
def test_law_9_also_of_all_transforms(net, data):
    """Law 9: two transforms at different parts give one result in either order, up to what is drawn at random."""
    one = data.draw(rows(lambda row: not row.wide))
    other = data.draw(rows(lambda row: not row.wide and not meet(row, one)))
    a, b = one.make(), other.make()
    there, back = attempt(net, a, b, seed=0), attempt(net, b, a, seed=0)
    assert not isinstance(there, type)
    assert not isinstance(back, type)
    equivalent(there, back, fresh=changed_keys(net, there), channels=takes(one, other))


def test_law_9_also_of_a_replaced_operation_before_a_block():
    """Law 9: the same where an operation is exchanged for a module, and a block is put behind it."""
    net, a, b = built("Net(conv())"), inject("head", se, where="before"), replace(node("flatten"), nn.Flatten)
    equivalent(pipe(net, a, b, seed=0), pipe(net, b, a, seed=0))


def test_law_9_also_of_a_step_that_is_taken_out():
    """Law 9: the same where a step is taken out of a container, and a block is put behind it."""
    net, a, b = built("Net(Skip(conv()))"), remove("body.part"), wrap("drop", layer_scale())
    equivalent(pipe(net, a, b), pipe(net, b, a))


def meet(one, other) -> bool:
    """Tell whether two rows work at the same place: what is put beside ``body`` is named ``body_...``."""
    places = [{path.split(".")[0].split("_")[0] for path in row.touches + row.holds} for row in (one, other)]
    return bool(places[0] & places[1])


def unchanged_outside(net, result, edit) -> None:
    """Assert that tensors, modules, modes, flags, attributes and hooks are as they were where an edit has no part."""
    old, new = tensors(net), tensors(result)
    assert [k for k in new if k in old or edit.touched(k)] == list(new), "new tensors outside"
    for key, tensor in old.items():
        if not edit.touched(key):
            assert key in new, f"{key} is gone"
            assert bits(new[key]) == bits(tensor), f"{key} has other bits"
            assert edit.held(key) or new[key].requires_grad is tensor.requires_grad, f"{key}: requires_grad"
    kept = [k for k in net.state_dict() if not edit.touched(k)]
    assert [k for k in result.state_dict() if k in kept] == kept, "order of the keys"
    before, after = (dict(m.named_modules(remove_duplicate=False)) for m in (net, result))
    assert all(path in before or edit.touched(path) for path in after), "new modules outside"
    for path, module in before.items():
        if not edit.touched(path):
            assert path in after, f"{path} is gone"
            _same_module(path, module, after[path], edit)


def _same_module(path, module, other, edit) -> None:
    assert isinstance(other, type(module)), f"{path} is a {type(other)}"
    opened = isinstance(other, torch.fx.GraphModule)
    assert opened or type(other) is type(module)
    if edit.held(path):
        return
    assert other.training is module.training, f"{path}: mode"
    assert len(other._forward_hooks) == len(module._forward_hooks), f"{path}: hooks"
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, dict)) and k[0] != "_"}
    changed = [k for k, v in plain.items() if vars(other).get(k) != v and not edit.touched(f"{path}:{k}")]
    assert not changed, f"{path}: {changed}"


@given(nets(), rows())
def test_law_10_outside_the_footprint_nothing_changes(net, row):
    """Law 10: outside of what a transform declares to touch, tensors, modules, modes and attributes stay."""
    unchanged_outside(net, pipe(net, row.make(), seed=0), row)


@given(nets(), st.data())
def test_law_10_also_at_drawn_targets(net, data):
    """Law 10: an edit at a module changes nothing elsewhere, and opens no level but those around it."""
    edit = data.draw(edits(net))
    result = attempt(net, edit.transform, seed=0)
    if isinstance(result, type):
        return
    unchanged_outside(net, result, edit)
    around = {name[:i] for name in aliases(net, edit.path) for i, c in enumerate(f"{name}.") if c == "."} | {
        ""
    }
    levels = [p for p, m in result.named_modules() if isinstance(m, torch.fx.GraphModule)]
    assert set(levels) <= around


@given(nets(), st.data())
def test_law_10_values_elsewhere_are_the_same_behind_a_neutral_edit(net, data):
    """Law 10: what flows through every other module is bit-equal behind an edit that starts neutral."""
    edit = data.draw(additions(net))
    result = attempt(net, edit.transform, seed=0)
    if isinstance(result, type):
        return
    mode = data.draw(st.booleans())
    ours, theirs = seen(net, mode), seen(result, mode)
    inner = {path for path in ours if not covered(path, aliases(net, edit.path))}
    assert not [path for path in inner if not same(ours[path], theirs[path])]
    assert same(run(net, inputs(), mode=mode), run(result, inputs(), mode=mode))


def seen(model, mode: bool) -> dict[str, list[torch.Tensor]]:
    """Run a model and return what every module gave, call by call."""
    values: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for path, module in model.named_modules():
        values[path] = []
        note = lambda m, args, output, path=path: values[path].extend(t.clone() for t in flat(output))  # noqa: E731
        hooks.append(module.register_forward_hook(note))
    run(model, inputs(), mode=mode)
    for hook in hooks:
        hook.remove()
    return values


@given(nets(), rows(lambda row: row.idempotent))
def test_law_11_declared_idempotence(net, row):
    """Law 11: a transform that is declared idempotent does once what it does twice."""
    transform = row.make()
    once = transform(net, seed=0)
    equivalent(once, transform(once, seed=0), channels=row.takes)

"""Targets: selectors are sets of leaves, in the order of execution."""

from __future__ import annotations

import pytest
from checks import run
from hypothesis import given
from hypothesis import strategies as st
from strategies import built, inputs, modules, nets, paths_of, selectors

from torchgraft import GraftError, at, pipe
from torchgraft.errors import TargetError


def found(net, selector) -> tuple[str, ...]:
    """Return the paths that a selector finds; none where nothing matches."""
    return selector.maybe().on(net).paths


def cover(net, selector) -> set[int]:
    """Return the leaves under what a selector finds: modules without children, each once."""
    return {
        id(leaf)
        for path in found(net, selector)
        for leaf in net.get_submodule(path).modules()
        if not leaf._modules
    }


def leaves(net) -> set[int]:
    """Return all leaves of a net."""
    return {id(module) for module in net.modules() if not module._modules}


@given(nets(), st.data())
def test_law_23_union_meet_and_difference_are_those_of_sets(net, data):
    """Law 23: joining, meeting and taking away are those of the sets of leaves that are covered."""
    a, b = data.draw(modules(net)), data.draw(modules(net))
    one, other = cover(net, a), cover(net, b)
    assert cover(net, a | b) == one | other
    assert cover(net, a & b) == one & other
    assert cover(net, a - b) == one - other
    assert cover(net, a - b) == cover(net, a & ~b)


@given(nets(), st.data())
def test_law_23_complement_is_that_of_sets(net, data):
    """Law 23: a complement covers all other leaves, and twice it covers the same ones."""
    a, b = data.draw(modules(net)), data.draw(modules(net))
    assert cover(net, ~a) == leaves(net) - cover(net, a)
    assert cover(net, ~(~a).maybe()) == cover(net, a)
    assert cover(net, ~(a | b).maybe()) == cover(net, (~a).maybe() & (~b).maybe())
    assert cover(net, ~(a & b).maybe()) == cover(net, (~a).maybe() | (~b).maybe())
    assert not cover(net, a & ~a)
    assert cover(net, a | (~a).maybe()) == leaves(net)


@given(nets(), st.data())
def test_law_23_the_algebra_is_that_of_sets(net, data):
    """Law 23: joining and meeting commute, are associative, and distribute over each other."""
    a, b, c = (data.draw(modules(net)).maybe() for _ in range(3))
    assert cover(net, a | b) == cover(net, b | a)
    assert cover(net, a & b) == cover(net, b & a)
    assert cover(net, (a | b) | c) == cover(net, a | (b | c))
    assert cover(net, (a & b).maybe() & c) == cover(net, a & (b & c).maybe())
    assert cover(net, a & (b | c)) == cover(net, (a & b).maybe() | (a & c).maybe())
    assert cover(net, a | (b & c).maybe()) == cover(net, (a | b) & (a | c))
    assert found(net, a) == found(net, a | a)


@given(nets(), st.data())
def test_law_23_results_stand_in_the_order_of_execution(net, data):
    """Law 23: sites stand in the order in which a run calls them first; what never runs stands at the end."""
    selector = data.draw(modules(net))
    paths = found(net, selector)
    fired = order_of_calls(net)
    places = [fired.get(id(net.get_submodule(path)), len(fired)) for path in paths]
    assert places == sorted(places)
    ran = [path for path, place in zip(paths, places, strict=True) if place < len(fired)]
    if len(ran) > 1 and len(set(places)) == len(paths):  # of two names of one module either may stand first
        assert found(net, selector.first) == (ran[0],)
        assert found(net, selector.last) == (ran[-1],)
        assert found(net, selector.nth(-1, 0)) == (ran[0], ran[-1])


def order_of_calls(net) -> dict[int, int]:
    """Run a net in evaluation; return when each module was called first."""
    order: dict[int, int] = {}

    def note(module, args) -> None:
        order.setdefault(id(module), len(order))

    hooks = [module.register_forward_pre_hook(note) for module in net.modules()]
    held = {module: module.training for module in net.modules()}
    run(net, inputs(), mode=False)
    for hook in hooks:
        hook.remove()
    for module, mode in held.items():
        module.training = mode
    return order


@given(nets(), st.data())
def test_law_23_calls_are_where_a_run_calls(net, data):
    """Law 23: a module has call sites exactly if a run in one of the modes calls it."""
    path = data.draw(st.sampled_from(paths_of(net)))
    (site,) = at(path).on(net)
    ran: set[int] = set()
    for module in net.modules():
        module.register_forward_pre_hook(lambda module, args: ran.add(id(module)))
    for mode in (False, True):
        run(net, inputs(), mode=mode)
    assert bool(site.calls) is (id(net.get_submodule(path)) in ran)


@given(nets(), st.data())
def test_law_23_stable_under_clone(net, data):
    """Law 23: a selector finds in a clone what it finds in the model, or fails alike."""
    selector = data.draw(selectors(net))
    assert outcome(net, selector) == outcome(pipe(net), selector)


def outcome(net, selector) -> object:
    """Return what a selector finds, or the class of its error."""
    try:
        return selector.on(net).paths
    except GraftError as error:
        return type(error)


@given(nets(), st.data())
def test_law_23_every_part_of_a_union_must_match(net, data):
    """Law 23: a union of which one part matches nothing is an error that names the part, unless it may be so."""
    selector = data.draw(modules(net))
    paths = found(net, selector)
    for union in (selector | at("no.such"), at("no.such") | selector):
        with pytest.raises(TargetError) as caught:
            union.on(net)
        if paths and not isinstance(outcome(net, selector), type):
            assert caught.value.wrong == "no.such"
        assert set(found(net, union)) == set(paths)


@given(nets(), st.data())
def test_law_23_counts(net, data):
    """Law 23: counts hold exactly for the number of matches, and something must match by default."""
    selector = data.draw(selectors(net))
    paths = outcome(net, selector)
    if paths is TargetError:
        paths = outcome(net, selector.exactly(0))
        assert paths in ((), TargetError)
        return
    number = len(paths)
    assert outcome(net, selector.exactly(number)) == paths
    assert outcome(net, selector.maybe()) == paths
    assert outcome(net, selector.exactly(number + 1)) is TargetError
    assert (outcome(net, selector.one()) is TargetError) is (number != 1)


def test_law_23_a_difference_holds_each_site_once():
    """Law 23: nothing is found twice, also where a container is broken up of which parts are meant as well."""
    paths = found(built("Net(conv())"), (at("branch") | "branch.*") - "branch.0")
    assert len(set(paths)) == len(paths)


def test_law_23_also_of_leaves_that_two_containers_hold():
    """Law 23: the same where two containers hold one leaf: it is in both, however it is reached."""
    net = built("Net(Across(conv()))")
    near, far = at("body.near"), at("body.far")
    assert cover(net, near & far) == cover(net, near) & cover(net, far)
    assert cover(net, far - near) == cover(net, far) - cover(net, near)
    assert cover(net, ~near) == leaves(net) - cover(net, near)

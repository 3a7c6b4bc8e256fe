"""Composition: the parts decide, however they are put together."""

from __future__ import annotations

import pytest
from checks import run, same
from hypothesis import assume, given
from strategies import inputs, nets, rows

from torchgraft import GraftError, compose, freeze, identity, inject, pipe
from torchgraft.blocks import se


def equivalent(one, other) -> None:
    """Same keys and bits, same modes, same outputs in both modes."""
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    assert all(a[key].equal(b[key]) for key in a)
    assert {p: m.training for p, m in one.named_modules()} == {
        p: m.training for p, m in other.named_modules()
    }
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in other.parameters()]
    for mode in (False, True):
        assert same(run(one, inputs(), mode=mode), run(other, inputs(), mode=mode))


@given(nets())
def test_law_6_identity_computes_what_the_model_computes(net):
    """``pipe(m)`` and ``identity()(m)`` compute what ``m`` computes."""
    equivalent(pipe(net), identity()(net))
    equivalent(pipe(net), net)


@given(rows(), rows(), rows())
def test_law_7_composition_is_a_monoid(one, two, three):
    """``identity`` is the unit and ``>>`` is associative, as values."""
    a, b, c = one.make(), two.make(), three.make()
    assert identity() >> a == a == a >> identity()
    assert (a >> b) >> c == a >> (b >> c) == compose(a, b, c)


@given(nets(), rows(), rows())
def test_law_8_pipe_is_application(net, first, second):
    """``pipe(m, a, b)`` is ``b(a(m))``."""
    a, b = first.make(), second.make()
    try:
        expected = b(a(net, seed=0), seed=0)
    except GraftError as error:
        with pytest.raises(type(error)):
            pipe(net, a, b, seed=0)
        return
    if any(key not in net.state_dict() for key in expected.state_dict()):
        # New parameters are drawn in sequence in one and from the start in the other.
        result = pipe(net, a, b, seed=0)
        assert list(result.state_dict()) == list(expected.state_dict())
        return
    assume(not {"swap_head", "replace", "compose"} & {s.name for s in (*a.steps(), *b.steps())})
    equivalent(pipe(net, a, b, seed=0), expected)


@given(nets())
def test_law_9_disjoint_edits_commute(net):
    """Edits at places that do not meet give the same in either order."""
    a, b = inject("body", se(reduction=1), name="x"), freeze("head")
    equivalent(pipe(net, a, b, seed=0), pipe(net, b, a, seed=0))


@given(nets(), rows())
def test_law_11_declared_idempotence(net, row):
    """What is declared idempotent is as good once as twice."""
    assume(row.idempotent)
    transform = row.make()
    once = transform(net, seed=0)
    equivalent(once, transform(once, seed=0))

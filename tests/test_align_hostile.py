"""Small nets on which an alignment went wrong once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchgraft import align, transfer

X, SEQUENCE = torch.randn(2, 8), torch.randn(2, 5, 8)
BOTH = pytest.mark.parametrize("evidence", ["behaviour", "structure"])


def net(forward, **parts):
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(made, name, part)
    return made.eval()


def layers(names):
    return {name: nn.Linear(8, 8) for name in names}


def pairs(found):
    return {entry.target: entry.keys[0] for entry in found.entries if entry.target.endswith("weight")}


def mixed(s, q, k, v):
    return s.o((q @ k.transpose(-1, -2)).softmax(-1) @ v)


@BOTH
def test_attention_computed_in_another_order_beside_an_added_scale(evidence):
    def one(s, x):
        q, k, v = s.q(x), s.k(x), s.v(x)
        return x + mixed(s, q, k, v)

    def other(s, x):
        k, v, q = s.k(x), s.v(x), s.q(x)
        return x + s.g * mixed(s, q, k, v)

    source, target = net(one, **layers("qkvo")), net(other, **layers("qkvo"), g=nn.Parameter(torch.ones(8)))
    found = align(source, target, example=SEQUENCE, evidence=evidence)
    assert pairs(found) == {f"{name}.weight": f"{name}.weight" for name in "qkvo"}
    assert found.missing == ("g",)


@BOTH
def test_symmetric_layers_beside_an_added_gate_are_ambiguous(evidence):
    source = net(lambda s, x: s.p(x) + s.q(x), **layers("pq"))
    target = net(lambda s, x: (s.u(x) + s.v(x)) * s.g(x).sigmoid(), **layers("uvg"))
    found = align(source, target, example=X, evidence=evidence)
    assert not {"u.weight", "v.weight"} & {entry.target for entry in found.entries}


def test_a_gate_in_the_other_half_is_found():
    def one(s, x):
        a, b = s.i(x).chunk(2, -1)
        return s.o(F.silu(a) * b)

    def other(s, x):
        a, b = s.i(x).chunk(2, -1)
        return s.o(a * F.silu(b))

    source, target = (net(f, i=nn.Linear(8, 16), o=nn.Linear(8, 8)) for f in (one, other))
    made = transfer(source, target, example=X)
    torch.testing.assert_close(made(X), source(X))


def test_names_do_not_overrule_a_run():
    source = net(lambda s, x: s.a(x) + s.b(x.relu()), **layers("ab"))
    target = net(lambda s, x: s.b(x) + s.a(x.clamp(min=0)), **layers("ab"))
    assert pairs(align(source, target, example=X)) == {"a.weight": "b.weight", "b.weight": "a.weight"}
    told = align(source, target, example=X, evidence="structure")
    assert not pairs(told)


@BOTH
def test_what_is_taken_away_is_not_what_it_is_taken_from(evidence):
    source = net(lambda s, x: s.a(x) - s.b(x), **layers("ab"))
    target = net(lambda s, x: s.b(x) - s.a(x), **layers("ab"))
    found = align(source, target, example=X, evidence=evidence)
    assert pairs(found) == {"a.weight": "b.weight", "b.weight": "a.weight"}


def test_parts_counted_from_the_end_are_told_apart():
    def last_two(s, x):
        return s.a(x[:, -1]) + s.b(x[:, -2])

    source, target = (net(last_two, **layers("ab")) for _ in range(2))
    found = align(source, target, example=SEQUENCE, evidence="structure")
    assert pairs(found) == {"a.weight": "a.weight", "b.weight": "b.weight"}


@BOTH
def test_a_layer_at_the_end_of_a_chain_is_the_new_one(evidence):
    source = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)))
    target = nn.Sequential(*source, nn.Conv2d(3, 3, 3, padding=1))
    found = align(source, target, example=torch.randn(1, 3, 8, 8), evidence=evidence)
    assert pairs(found) == {"0.weight": "0.weight", "1.weight": "1.weight"}
    assert found.missing == ("2.weight", "2.bias")


@BOTH
def test_a_computed_weight_is_no_plain_one(evidence):
    source = net(lambda s, x: F.linear(x, s.w.exp()), w=nn.Parameter(torch.rand(8, 8)))
    target = net(lambda s, x: F.linear(x, s.w), w=nn.Parameter(torch.rand(8, 8)))
    assert align(source, target, example=X, evidence=evidence).missing == ("w",)


def test_parameters_of_one_expression_are_not_paired_by_their_order():
    def parts(*names):
        return {name: nn.Parameter(torch.rand(8, 8)) for name in names}

    source = net(lambda s, x: F.linear(x, s.a * torch.tanh(s.b)), **parts("a", "b"))
    target = net(lambda s, x: F.linear(x, torch.tanh(s.q) * s.p), **parts("p", "q"))
    assert {one.target for one in align(source, target, example=X).ambiguous} == {"p", "q"}


def test_a_bias_that_a_state_dict_lost_is_missing():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    state = model.state_dict()
    del state["0.bias"]
    assert align(state, model, example=X).missing == ("0.bias",)


def test_an_example_is_not_written_into():
    def halved(s, x):
        return s.l(x.mul_(0.5))

    example = torch.ones(2, 8)
    align(net(halved, **layers("l")), net(halved, **layers("l")), example=example)
    align(net(halved, **layers("l")), net(halved, **layers("l")), example=({"x": example}["x"],))
    assert example.eq(1).all()


def test_a_weight_may_be_computed_in_many_steps():
    def deep(s, x):
        weight = s.w
        for _ in range(400):
            weight = weight.tanh()
        return F.linear(x, weight)

    source, target = (net(deep, w=nn.Parameter(torch.rand(8, 8))) for _ in range(2))
    assert align(source, target, example=X).of("w").keys == ("w",)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_without_elements_and_keys_that_are_no_text():
    empty = nn.Sequential(nn.Linear(8, 0), nn.Linear(0, 8))
    assert not align(empty.state_dict(), empty, example=X).missing
    assert not align({0: torch.zeros(8, 8), "qkv.weight": torch.zeros(0, 4)}, empty, example=X).entries


def test_complex_parameters_are_followed():
    def crossed(first, second):
        def forward(s, x):
            return getattr(s, second)(torch.tanh(getattr(s, first)(x)))

        return net(forward, **{name: nn.Linear(8, 8, dtype=torch.complex64) for name in "ab"})

    x = torch.randn(2, 8, dtype=torch.complex64)
    found = align(crossed("a", "b"), crossed("b", "a"), example=x)
    assert pairs(found) == {"a.weight": "b.weight", "b.weight": "a.weight"}

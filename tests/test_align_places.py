"""The parts of the matcher: places, operands, partings, segments, twins, fingerprints, the ledger."""

from __future__ import annotations

import pytest
import torch
from randomised import images, randomise
from torch import nn
from torch.nn import functional as F

from torchgraft.alignment.align import align
from torchgraft.alignment.alignment import Alignment, Part
from torchgraft.alignment.match.behaviour import DriftError, Seen, confirmed
from torchgraft.alignment.match.finder import find_places
from torchgraft.alignment.match.kinds import Slot, kind_of
from torchgraft.alignment.match.ledger import Ledger
from torchgraft.alignment.match.operands import UNKNOWN, ZERO
from torchgraft.alignment.match.prints import print_of
from torchgraft.alignment.match.segments import Chain, label, outline
from torchgraft.alignment.match.sequence import aligned
from torchgraft.alignment.match.structure import proposed
from torchgraft.alignment.match.twins import told_by_names
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import Op, Ref, record

TOKENS = (2, 5, 12)


class Made(nn.Module):
    """A forward given as a function of the module, with tensors of given shapes."""

    def __init__(self, forward, buffers=(), **shapes):
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=draws)
            if name in buffers:
                self.register_buffer(name, value)
            else:
                setattr(self, name, nn.Parameter(value))
        self.how = [forward]

    def forward(self, x):
        return self.how[0](self, x)


def plainly(number, func, args, kwargs, values):
    return func(*args, **kwargs)


def places_of(model, *shape, meta=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    arguments = ((x,), {})
    made = record(model.eval(), arguments) if meta else record_live(model.eval(), arguments, plainly)
    tensors = model.state_dict(keep_vars=True)
    return find_places(made, tensors, [key for key, t in tensors.items() if t.is_floating_point()])


def kinds(model, *shape):
    """Say what the places of a model are, but for its input."""
    found = places_of(model, *shape)
    return [
        (found.places[n].kind, *sorted(found.places[n].slots))
        for n in found.live()
        if found.places[n].kind != "input"
    ]


def shape_of(model, *shape):
    """Say what the places of a model are, and how they hang together."""
    found = places_of(model, *shape)
    live = found.live()
    return [
        (
            label(found.places[n]),
            sorted((live.index(p), side) for p, side in found.places[n].parents if p != n),
        )
        for n in live
    ]


def pairs(source, target, *shape, **options):
    """Align two models; return where each tensor of the target comes from, or what is not known of it."""
    x = images(shape) if len(shape) == 4 else torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return align(source.eval(), target.eval(), example=x, **options)


# kinds


LINEAR = {
    "linear": (Made(lambda m, x: F.linear(x, m.w, m.b), w=(4, 12), b=(4,)), TOKENS),
    "product": (Made(lambda m, x: x @ m.w + m.b, w=(12, 4), b=(4,)), TOKENS),
    "product by a view": (Made(lambda m, x: x @ m.w.t() + m.b, w=(4, 12), b=(4,)), TOKENS),
    "rows": (Made(lambda m, x: torch.addmm(m.b, x, m.w), w=(12, 4), b=(4,)), (5, 12)),
    "batch of one matrix": (
        Made(lambda m, x: torch.bmm(x, m.w.t().expand(2, 12, 4)) + m.b, w=(4, 12), b=(4,)),
        TOKENS,
    ),
    "convolution of one place": (
        Made(lambda m, x: F.conv2d(x, m.w, m.b), w=(4, 12, 1, 1), b=(4,)),
        (2, 12, 3, 3),
    ),
    "convolution of one place in one axis": (
        Made(lambda m, x: F.conv1d(x, m.w, m.b), w=(4, 12, 1), b=(4,)),
        (2, 12, 3),
    ),
    "convolution over the whole map": (
        Made(lambda m, x: F.conv2d(x, m.w, m.b), w=(4, 3, 2, 2), b=(4,)),
        (2, 3, 2, 2),
    ),
    "with its bias behind": (
        Made(lambda m, x: F.conv2d(x, m.w) + m.b.view(1, 4, 1, 1), w=(4, 12, 1, 1), b=(4,)),
        (2, 12, 3, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", LINEAR)
def test_one_linear_layer_in_many_ways(way):
    model, shape = LINEAR[way]
    found = places_of(model, *shape)
    (place,) = (found.places[n] for n in found.live() if found.places[n].kind != "input")
    assert (place.kind, place.hyper) == ("linear", ())
    assert place.shapes == {"w": (4, 12), "b": (4,)}
    assert sorted(found.keys(place.number)) == ["b", "w"]
    held = found.operands.of(place.slots["w"].value)
    formed = place.slots["w"].of(
        model.w if held.view is None else model.w.as_strided(held.view.shape, held.view.stride())
    )
    expected = model.w.t() if way in ("product", "rows") else model.w.reshape(4, 12)
    assert torch.equal(formed, expected)


def test_a_stride_and_groups_and_a_transposition_make_another_layer():
    one = kinds_with(lambda m, x: F.conv2d(x, m.w, stride=2), (4, 4, 1, 1))
    assert one == [("linear", (2, 2))]
    assert kinds_with(lambda m, x: F.conv2d(x, m.w, groups=4), (4, 1, 1, 1))[0][0] == "conv"
    assert kinds_with(lambda m, x: F.conv_transpose2d(x, m.w), (4, 4, 1, 1))[0][0] == "conv"
    assert kinds_with(lambda m, x: F.conv2d(x, m.w, padding=1), (4, 4, 5, 5))[0][0] == "conv"


def kinds_with(forward, weight):
    found = places_of(Made(forward, w=weight), 2, 4, 5, 5)
    return [
        (found.places[n].kind, found.places[n].hyper) for n in found.live() if found.places[n].kind != "input"
    ]


def test_norms_and_scales():
    assert kinds(nn.BatchNorm2d(4), 2, 4, 3, 3) == [("norm", "b", "m", "v", "w")]
    assert kinds(nn.LayerNorm(12), *TOKENS) == [("affine", "b", "w")]
    assert kinds(nn.GroupNorm(2, 12), 2, 12, 3) == [("affine", "b", "w")]
    assert kinds(nn.RMSNorm(12), *TOKENS) == [("affine", "w")]
    assert kinds(nn.LayerNorm(12, elementwise_affine=False), *TOKENS) == []
    scale = Made(lambda m, x: x * m.w, w=(12,))
    apart = Made(lambda m, x: x * m.w + m.b, w=(12,), b=(12,))
    joined = Made(lambda m, x: torch.addcmul(m.b, m.w, x), w=(12,), b=(12,))
    turned = Made(lambda m, x: torch.addcmul(m.b, x, m.w), w=(12,), b=(12,))
    assert kinds(scale, *TOKENS) == [("affine", "w")]
    assert kinds(apart, *TOKENS) == kinds(joined, *TOKENS) == kinds(turned, *TOKENS) == [("affine", "b", "w")]


def test_a_position_a_table_and_a_mask_are_places_of_their_own():
    assert kinds(Made(lambda m, x: x + m.p, p=(5, 12)), *TOKENS) == [("add", "p0")]
    assert kinds(Made(lambda m, x: x * m.p, p=(5, 12)), *TOKENS) == [("mul", "p0")]
    assert kinds(Made(lambda m, x: torch.cat([m.p.expand(2, 1, 12), x], 1), p=(1, 1, 12)), *TOKENS) == [
        ("cat", "p0")
    ]
    assert kinds(Made(lambda m, x: torch.where(x > 0, x, m.p), p=(5, 12)), *TOKENS)[0][0] == "where"


# operands


def operand(model, *shape):
    """Return what is known of the first parameter operand of a model, and its labels."""
    found = places_of(model, *shape)
    slot = next(slot for n in found.live() for slot in found.places[n].slots.values())
    held = found.operands.of(slot.value)
    return held, found.operands.labels(held)


NUMBERS = torch.arange(12).reshape(3, 4)
MOVED = {
    "as it is": (lambda t: t, NUMBERS),
    "turned": (lambda t: t.t(), NUMBERS.t()),
    "seen anew": (lambda t: t.view(2, 6), NUMBERS.view(2, 6)),
    "a slice": (lambda t: t[1:, ::2], NUMBERS[1:, ::2]),
    "a row": (lambda t: t[1], NUMBERS[1]),
    "a part of a split": (lambda t: t.chunk(2, 1)[1], NUMBERS[:, 2:]),
    "a part of an unbinding": (lambda t: t.unbind(0)[2], NUMBERS[2]),
    "joined": (lambda t: torch.cat([t[2:], t[:2]]), torch.cat([NUMBERS[2:], NUMBERS[:2]])),
    "flipped": (lambda t: t.flip(0), NUMBERS.flip(0)),
    "rolled": (lambda t: t.roll(1, 0), NUMBERS.roll(1, 0)),
    "copied": (lambda t: t.t().contiguous().clone(), NUMBERS.t()),
    "copied and seen anew": (lambda t: t.t().reshape(2, 6), NUMBERS.t().reshape(2, 6)),
    "copied on purpose": (lambda t: t.t().contiguous().view(2, 6), NUMBERS.t().reshape(2, 6)),
    "resized to its own size": (
        lambda t: F.interpolate(t[None, None], size=(3, 4), mode="bilinear")[0, 0],
        NUMBERS,
    ),
    "with zeros around": (lambda t: F.pad(t, (0, 1)), F.pad(NUMBERS, (0, 1), value=ZERO)),
}  # fmt: skip


@pytest.mark.parametrize("way", MOVED)
def test_elements_are_followed(way):
    move, expected = MOVED[way]
    held, labels = operand(Made(lambda m, x: x + move(m.p), p=(3, 4)), 2, *expected.shape)
    assert labels.equal(expected)
    assert held.leaves == ("p",)


def test_a_table_that_is_looked_up():
    model = Made(lambda m, x: x + m.p[m.at.view(-1)].view(2, 2, 4), p=(3, 4))
    model.register_buffer("at", torch.tensor([[2, 0], [0, 1]]))
    held, labels = operand(model, 5, 2, 2, 4)
    assert labels.equal(NUMBERS[[2, 0, 0, 1]].view(2, 2, 4))
    assert held.key == ""


@pytest.mark.parametrize(
    "change",
    [torch.exp, lambda t: t * 2, lambda t: t + t.flip(0), lambda t: t.softmax(0), lambda t: t.sort(0)[0]],
    ids=["exp", "double", "sum", "softmax", "sort"],
)
def test_what_is_computed_with_has_no_labels(change):
    held, labels = operand(Made(lambda m, x: x + change(m.p), p=(3, 4)), 2, 3, 4)
    assert labels is None
    assert held.leaves == ("p",)


def test_zeros_that_a_forward_writes_are_no_elements():
    def written(m, x):
        m.b.data[2:4].zero_()
        return F.linear(x, m.w, m.b)

    found = places_of(Made(written, w=(6, 12), b=(6,)), *TOKENS)
    (place,) = (found.places[n] for n in found.live() if found.places[n].slots)
    labels = found.operands.labels(found.operands.of(place.slots["b"].value))
    first_of_b = found.operands.offsets["b"]
    assert labels.tolist() == [first_of_b, first_of_b + 1, ZERO, ZERO, first_of_b + 4, first_of_b + 5]


def test_other_writes_have_no_labels():
    def written(m, x):
        m.b.data[2:4] += 1
        return F.linear(x, m.w, m.b)

    found = places_of(Made(written, w=(6, 12), b=(6,)), *TOKENS)
    (place,) = (found.places[n] for n in found.live() if found.places[n].slots)
    assert found.operands.labels(found.operands.of(place.slots["b"].value)) is None


def test_constants_among_parameters_are_told_from_zeros():
    model = Made(lambda m, x: x + torch.cat([m.p, m.zero, m.one]), p=(2,))
    model.register_buffer("zero", torch.zeros(1), persistent=False)
    model.register_buffer("one", torch.ones(1), persistent=False)
    found = find_places(
        record_live(model, ((torch.ones(3, 4),), {}), plainly),
        dict(model.named_parameters()) | dict(model.named_buffers()),
        ["p"],
    )
    (place,) = (found.places[n] for n in found.live() if found.places[n].slots)
    (slot,) = place.slots.values()
    assert found.operands.labels(found.operands.of(slot.value)).tolist() == [0, 1, ZERO, UNKNOWN]


# layers that do the work of several


class Attention(nn.Module):
    """Attention by one of several hands.

    Args:
        order: how the rows of one layer for all three stand: ``"3hd"``, ``"h3d"``; ``"q,kv"`` and
            ``"q,k,v"`` are layers of their own.
        fused: as one operation, or spelled out.
    """

    def __init__(self, order="3hd", *, fused=True, heads=3, width=12, bias=True):
        super().__init__()
        self.order, self.fused, self.heads = order, fused, heads
        sizes = {"q,kv": (1, 2), "q,k,v": (1, 1, 1)}.get(order, (3,))
        self.into = nn.ModuleList([nn.Linear(width, n * width, bias=bias) for n in sizes])
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, l, c = x.shape  # noqa: E741 - as einops names it
        made = [layer(x) for layer in self.into]
        if self.order == "h3d":
            q, k, v = made[0].view(n, l, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        elif self.order == "3hd":
            q, k, v = made[0].reshape(n, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = [p for m in made for p in m.split(c, -1)]
            q, k, v = (p.view(n, l, self.heads, -1).transpose(1, 2) for p in parts)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1) @ v
        return self.out(x.transpose(1, 2).reshape(n, l, c))


WAYS = [(order, fused) for order in ("3hd", "h3d", "q,kv", "q,k,v") for fused in (True, False)]


@pytest.mark.parametrize(("order", "fused"), WAYS)
def test_attention_by_several_hands_has_the_same_places(order, fused):
    expected = shape_of(Attention("q,k,v"), *TOKENS)
    assert shape_of(Attention(order, fused=fused), *TOKENS) == expected


@pytest.mark.parametrize("evidence", ["behaviour", "structure"])
@pytest.mark.parametrize(("order", "fused"), WAYS)
def test_attention_by_several_hands_computes_the_same(order, fused, evidence):
    source, target = Attention("h3d"), Attention(order, fused=fused)
    x = torch.randn(TOKENS)
    for one, other in ((source, target), (target, source)):
        found = align(one, other, example=x, evidence=evidence)
        assert found.coverage == 1
        other.load_state_dict(found.apply(one.state_dict()))
        assert torch.allclose(one(x), other(x), atol=1e-6)


def test_a_gate_split_off_is_a_layer_of_its_own():
    def split(m, x):
        a, b = m.both(x).chunk(2, -1)
        return m.out(F.silu(a) * b)

    joined = Made(split)
    joined.both, joined.out = nn.Linear(12, 16), nn.Linear(8, 12)
    apart = Made(lambda m, x: m.out(F.silu(m.gate(x)) * m.up(x)))
    apart.gate, apart.up, apart.out = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 12)
    for one, other in ((joined, apart), (apart, joined)):
        found = pairs(one, other, *TOKENS)
        other.load_state_dict(found.apply(one.state_dict()))
        x = torch.randn(TOKENS)
        assert torch.allclose(one(x), other(x), atol=1e-6)
    assert pairs(joined, apart, *TOKENS).of("up.weight").parts == (Part("both.weight", rows=(8, 16)),)
    assert pairs(apart, joined, *TOKENS, evidence="structure").of("both.bias").keys == (
        "gate.bias",
        "up.bias",
    )


# meetings


def test_what_is_made_of_one_signal_alone_is_no_meeting():
    by_hand = Made(lambda m, x: F.linear(x * x.sigmoid(), m.w), w=(4, 12))
    ready = Made(lambda m, x: F.linear(F.silu(x), m.w), w=(4, 12))
    assert kinds(by_hand, *TOKENS) == kinds(ready, *TOKENS) == [("linear", "w")]
    normed = Made(lambda m, x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * m.w, w=(12,))
    assert kinds(normed, *TOKENS) == [("affine", "w")]


def test_a_gate_is_a_meeting():
    gate = Made(lambda m, x: x * F.linear(x.mean((2, 3)), m.w).sigmoid()[..., None, None], w=(4, 4))
    assert kinds(gate, 2, 4, 3, 3) == [("linear", "w"), ("mul",)]
    assert kinds(Made(lambda m, x: x + F.linear(x, m.w), w=(12, 12)), *TOKENS) == [("linear", "w"), ("add",)]
    joined = Made(lambda m, x: torch.cat([F.linear(x, m.w), x], -1), w=(12, 12))
    found = places_of(joined, *TOKENS)
    assert [side for _, side in found.places[-1].parents] == ["0", "1"]


def test_a_query_that_is_a_parameter_is_a_signal():
    def pooled(m, x):
        q = F.linear(m.latent, m.q)
        return F.scaled_dot_product_attention(q.expand(2, 1, 12), F.linear(x, m.k), F.linear(x, m.v))

    found = places_of(Made(pooled, latent=(1, 1, 12), q=(12, 12), k=(12, 12), v=(12, 12)), *TOKENS)
    held = {found.places[n].kind: found.keys(n) for n in found.live()}
    assert held["constant"] == ("latent",)
    assert [found.keys(n) for n in found.live() if found.places[n].kind == "linear"] == [
        ("q",),
        ("k",),
        ("v",),
    ]


def test_a_bias_of_positions_in_one_operation_or_many():
    def scores(m, x, fused):
        q, k, v = (F.linear(x, w)[:, None] for w in (m.q, m.k, m.v))
        bias = m.table[m.at.view(-1)].view(1, 1, 5, 5)
        if fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return (q @ k.transpose(-2, -1) * 12**-0.5 + bias).softmax(-1) @ v

    made = []
    for fused in (True, False):
        model = Made(
            lambda m, x, fused=fused: scores(m, x, fused), q=(12, 12), k=(12, 12), v=(12, 12), table=(9,)
        )
        model.register_buffer("at", (torch.arange(5)[:, None] - torch.arange(5) + 4))
        made.append(model)
    assert shape_of(made[0], *TOKENS) == shape_of(made[1], *TOKENS)
    found = pairs(*made, *TOKENS)
    assert found.of("table").keys == ("table",)
    assert found.coverage == 1


# segments, sequences, twins, fingerprints


def net(*layers):
    return nn.Sequential(*layers)


class Skip(nn.Sequential):
    """Add what the parts make."""

    def forward(self, x):
        return x + super().forward(x)


def unit(width=4):
    return Skip(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))


def test_a_model_is_cut_where_every_path_runs_through():
    chain = Chain(places_of(net(nn.Conv2d(3, 4, 3), unit(), unit(), nn.Conv2d(4, 2, 1)), 2, 3, 8, 8))
    assert [len(segment.places) for segment in chain.segments] == [1, 1, 3, 3, 1]
    tokens = [segment.token for segment in chain.segments]
    assert tokens[2] == tokens[3]
    assert len(set(tokens)) == 4
    assert [chain.home[n] for n in chain.segments[3].places] == [3, 3, 3]


def test_what_a_place_is_leaves_out_its_widths_and_a_bias():
    one, other, wide = (
        next(p for p in places_of(nn.Conv2d(3, w, 3, bias=b), 2, 3, 8, 8).places if p.slots)
        for w, b in ((4, True), (4, False), (6, True))
    )
    assert label(one) == label(other) != label(wide)
    assert outline(one) == outline(other) == outline(wide)


def test_sequences_are_paired_in_order_for_the_highest_sum():
    def same(source, target):
        return aligned(source, target, lambda i, j: float(source[i] == target[j]))

    assert same("abc", "abc") == [(0, 0), (1, 1), (2, 2)]
    assert same("abc", "axbxc") == [(0, 0), (1, 2), (2, 4)]
    assert same("axbxc", "abc") == [(0, 0), (2, 1), (4, 2)]
    assert same("abd", "acd") == [(0, 0), (2, 2)]
    assert same("sbbe", "sbbbbe") == [(0, 0), (1, 1), (2, 2), (3, 5)]
    assert same("sbbbbe", "sbbe") == [(0, 0), (1, 1), (2, 2), (5, 3)]
    assert same("", "abc") == same("abc", "") == []
    assert aligned("pq", "rs", lambda i, j: 1.0 if i == j else 0.0) == [(0, 0), (1, 1)]
    assert aligned("pq", "rs", lambda i, j: 0.0) == []


def test_names_tell_twins_apart_by_what_they_do_not_share():
    def told(source, target):
        return told_by_names(
            [(f"{name}.weight",) for name in source], [(f"{name}.weight",) for name in target]
        )

    assert told(["block.a", "block.b"], ["block.b", "block.a"]) == [1, 0]
    assert told(["block.a", "block.b"], ["other.b", "other.a"]) == [1, 0]
    assert told(["query", "key"], ["att.k.key", "att.q.query"]) == [1, 0]
    assert told(["value", "key"], ["val", "ke"]) is None
    assert told(["query", "keys"], ["que", "key"]) == [0, 1]
    assert told(["one", "two"], ["left", "right"]) is None
    assert told(["one", "one"], ["one", "two"]) is None
    assert told(list("abcdefg"), list("gfedcba")) == [6, 5, 4, 3, 2, 1, 0]
    assert told(list("abcdefg"), list("gfedcbz")) is None


def test_a_fingerprint_does_not_know_the_layout():
    x = torch.randn(2, 6, 4, 4)
    one = print_of(x)
    assert one.distance(print_of(x.flatten(2).transpose(1, 2))) < 1e-6
    assert one.distance(print_of(x.permute(0, 2, 3, 1).contiguous().double())) < 1e-6
    assert one.distance(print_of(x + 0.01)) > 1e-3
    assert one.distance(print_of(-x)) > 1e-3
    assert one.distance(print_of(x[:1])) == float("inf")
    for nothing in (torch.zeros(3), torch.ones(3, dtype=torch.long), torch.full((3,), float("nan"))):
        assert print_of(nothing) is None
    assert print_of(torch.full((3,), float("inf"))) is None
    assert print_of(torch.empty(0)) is None
    assert print_of(torch.empty(3, device="meta")) is None


# what was decided, and what it makes


def test_a_run_that_is_not_the_recorded_one_is_noticed():
    one, other = (places_of(net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), 2, 3, 8, 8) for _ in "ab")
    model = net(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    arguments = (torch.randn(2, 3, 8, 8),), {}
    made = proposed(one, other, (one.keys, other.keys))
    with pytest.raises(DriftError):
        confirmed((model, one), (model, other), arguments, made, {})


def ledger_of(source, target, *shape):
    sides = places_of(source, *shape), places_of(target, *shape)
    shapes = tuple({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (source, target))
    return Ledger(*sides, shapes), sides, shapes


def test_two_claims_on_one_tensor_are_ambiguous():
    source = net(nn.Linear(12, 12, bias=False), nn.ReLU(), nn.Linear(12, 12, bias=False))
    shared = nn.Linear(12, 12, bias=False)
    target = net(shared, nn.ReLU(), shared)
    ledger, sides, _ = ledger_of(source, target, *TOKENS)
    ledger.enter_all({n: Seen(n, "place", "behaviour") for n in sides[1].live()})
    assert list(ledger.entries()) == []
    assert ledger.ambiguous["0.weight"].candidates == ("0.weight", "2.weight")


def test_an_entry_says_what_decided_and_the_weakest_evidence():
    source, target = net(nn.Linear(12, 12)), net(nn.Linear(12, 12))
    ledger, sides, shapes = ledger_of(source, target, *TOKENS)
    (number,) = (n for n in sides[1].live() if sides[1].places[n].slots)
    ledger.enter(number, Seen(number, "input", "behaviour"))
    ledger.enter(number, Seen(number, "names", "structure"))
    entries = tuple(ledger.entries())
    assert {(entry.rule, entry.evidence) for entry in entries} == {("names", "structure")}
    assert Alignment(*shapes, entries).coverage == 1


def test_elements_that_nothing_reads_are_zeros_or_go_along():
    """Of a table of which a part is looked up, the rest does not matter."""
    part = Made(lambda m, x: x + m.p[:5], p=(7, 12))
    whole = Made(lambda m, x: x + m.p, p=(5, 12))
    found = pairs(net(part, nn.Linear(12, 3)), net(whole, nn.Linear(12, 3)), *TOKENS)
    assert found.of("0.p").parts == (Part("0.p", rows=(0, 5)),)
    back = pairs(net(whole, nn.Linear(12, 3)), net(part, nn.Linear(12, 3)), *TOKENS)
    made = back.apply(net(whole, nn.Linear(12, 3)).state_dict())["0.p"]
    assert made[:5].equal(whole.p)
    assert made[5:].eq(0).all()
    same = pairs(net(part, nn.Linear(12, 3)), net(part, nn.Linear(12, 3)), *TOKENS)
    assert same.of("0.p").parts == (Part("0.p"),)


def test_elements_that_are_computed_with_are_paired_as_wholes():
    def standardised(m, x):
        return F.linear(x, (m.w - m.w.mean(1, keepdim=True)) * m.gain, m.b)

    one, other = (net(Made(standardised, w=(4, 12), gain=(4, 1), b=(4,)), nn.Linear(4, 3)) for _ in "ab")
    found = pairs(one, other, *TOKENS)
    assert {entry.target: entry.keys for entry in found.entries} == {key: (key,) for key in found.target}


def test_other_widths_are_a_pair_that_differs_in_shape():
    one = net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    other = net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    found = pairs(randomise(one, 1, (2, 3, 16, 16)), randomise(other, 2, (2, 3, 16, 16)), 2, 3, 16, 16)
    assert {one.target: (one.asked, one.found) for one in found.mismatched} == {
        "2.weight": ((6, 4, 3, 3), (8, 4, 3, 3)),
        "2.bias": ((6,), (8,)),
        "4.weight": ((8, 6, 3, 3), (8, 8, 3, 3)),
    }
    assert found.of("4.bias").keys == ("4.bias",)


CLAIMS = {
    "slices": (lambda t: t[:5], lambda t: t[:5], (7, 12)),
    "the whole, then turned": (lambda t: t, lambda t: t.flip(0), (5, 12)),
    "turned, then the whole": (lambda t: t.flip(0), lambda t: t, (5, 12)),
}


@pytest.mark.parametrize("way", CLAIMS)
def test_claims_on_elements_of_one_tensor(way):
    """Two uses may ask for the same, and then they agree, or for something else each."""
    first, second, shape = CLAIMS[way]

    def twice(m, x):
        return F.linear(F.linear(x + first(m.p), m.w).relu() + second(m.p), m.v)

    def apart(m, x):
        return F.linear(F.linear(x + m.p[:5], m.w).relu() + m.q[:5], m.v)

    layers = {"w": (12, 12), "v": (4, 12)}
    one, same = Made(twice, p=shape, **layers), Made(twice, p=shape, **layers)
    assert pairs(one, same, *TOKENS).of("p").parts == (Part("p"),)
    found = pairs(Made(apart, p=shape, q=shape, **layers), one, *TOKENS)
    assert {held.target: held.candidates for held in found.ambiguous} == {"p": ("p", "q")}
    assert {entry.target for entry in found.entries} == {"w", "v"}


def test_what_stands_beside_a_constant_cannot_be_made():
    fixed = Made(lambda m, x: F.linear(x + torch.cat([m.p, m.one]), m.w), p=(11,), w=(4, 12))
    fixed.register_buffer("one", torch.ones(1), persistent=False)
    whole = Made(lambda m, x: F.linear(x + m.p, m.w), p=(12,), w=(4, 12))
    assert pairs(fixed, whole, *TOKENS).missing == ("p",)
    assert pairs(whole, fixed, *TOKENS).of("p").parts == (Part("p", rows=(0, 11)),)


def test_a_bias_behind_a_convolution_is_its_own():
    inside = Made(lambda m, x: F.conv2d(x, m.w, m.b), w=(4, 3, 3, 3), b=(4,))
    behind = Made(lambda m, x: F.conv2d(x, m.w) + m.b[:, None, None], w=(4, 3, 3, 3), b=(4,))
    assert shape_of(inside, 2, 3, 8, 8) == shape_of(behind, 2, 3, 8, 8)
    many = Made(lambda m, x: F.conv2d(x, m.w) + m.b, w=(4, 3, 3, 3), b=(4, 6, 6))
    assert kinds(many, 2, 3, 8, 8) == [("conv", "w"), ("add", "p0")]


def test_a_batch_of_matrices_is_a_layer_only_where_they_are_one():
    one = Made(lambda m, x: torch.bmm(x, m.w.repeat(2, 1, 1)), w=(12, 4))
    several = Made(lambda m, x: torch.bmm(x, m.w), w=(2, 12, 4))
    assert kinds(one, *TOKENS) == [("linear", "w")]
    assert kinds(several, *TOKENS) == [("bmm", "p0")]


def test_queries_biases_and_values_that_are_parameters():
    def latent(m, x):
        return F.scaled_dot_product_attention(m.q.expand(2, 1, 12), F.linear(x, m.k), F.linear(x, m.v))

    def values(m, x):
        return F.scaled_dot_product_attention(F.linear(x, m.q), F.linear(x, m.k), m.v.expand(2, 5, 12))

    def computed(m, x):
        bias = F.linear(F.linear(m.grid, m.one).relu(), m.two).view(1, 5, 5)
        q, k, v = (F.linear(x, w) for w in (m.q, m.k, m.v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    square = {"q": (12, 12), "k": (12, 12), "v": (12, 12)}
    assert kinds(Made(latent, **{**square, "q": (1, 12)}), *TOKENS) == [
        ("linear", "w"), ("linear", "w"), ("product", "p0"), ("product",),
    ]  # fmt: skip
    assert [kind for kind, *_ in kinds(Made(values, **{**square, "v": (5, 12)}), *TOKENS)][:3] == [
        "linear",
        "linear",
        "product",
    ]
    net_of_grid = Made(computed, ["grid"], grid=(25, 2), one=(8, 2), two=(1, 8), **square)
    found = places_of(net_of_grid, *TOKENS)
    held = [found.places[n].kind for n in found.live()]
    assert sorted(held) == ["add", "constant", "input", *["linear"] * 5, "product", "product"]


def test_values_are_put_where_they_are_read():
    rows = Slot(0, 0, lambda t: t.t(), torch.tensor([2, 0]))
    tensor = torch.zeros(2, 3)
    rows.put(tensor, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert tensor.tolist() == [[3, 0, 1], [4, 0, 2]]
    assert rows.of(tensor).tolist() == [[1, 2], [3, 4]]
    ahead = Slot(0, 0, lambda t: t, torch.tensor([1, 2]))
    assert ahead.of(tensor.t()).data_ptr() == tensor.t()[1:].data_ptr()
    batch = torch.zeros(3, 2, 2)
    Slot(0, 0, lambda t: t[0].t()).put(batch, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert batch.tolist() == [[[1, 3], [2, 4]]] * 3


def test_a_twin_without_a_word_of_its_own():
    assert told_by_names([("a.w",), ("w",)], [("b.w",), ("w",)]) == [0, 1]


UNKNOWN_MOVES = {
    "by numbers that the forward makes": lambda m, x: x + m.p[torch.tensor([2, 0, 1])],
    "smoothed": lambda m, x: x + F.conv2d(m.p[None, None], m.kernel, padding=1)[0, 0],
    "beside numbers that are not known": lambda m, x: x + torch.cat([m.p[:2], torch.tensor([[1.0] * 4])]),
    "chosen by values": lambda m, x: x + m.p.clamp(min=0),
}


@pytest.mark.parametrize("way", UNKNOWN_MOVES)
def test_what_cannot_be_followed_has_no_labels(way):
    model = Made(UNKNOWN_MOVES[way], p=(3, 4))
    model.register_buffer("kernel", torch.ones(1, 1, 3, 3), persistent=False)
    held, labels = operand(model, 2, 3, 4)
    assert labels is None
    assert held.leaves == ("p",)


def test_numbers_of_a_table_may_be_computed():
    model = Made(lambda m, x: x + m.p[(m.at * 2) % 3], p=(3, 4))
    model.register_buffer("at", torch.tensor([0, 1, 2]))
    assert operand(model, 2, 3, 4)[1].equal(NUMBERS[[0, 2, 1]])
    found = places_of(model.to("meta"), 2, 3, 4, meta=True)
    (place,) = (found.places[n] for n in found.live() if found.places[n].slots)
    (slot,) = place.slots.values()
    assert found.operands.labels(found.operands.of(slot.value)) is None


def test_operations_that_only_some_devices_have():
    shapes = [torch.Size(s) for s in ((2, 12), (4, 12), (4,))]
    refs = tuple(map(Ref, range(3)))
    dense = kind_of(Op("linear", refs, {}, (0, 1, 2), (3,), 0), shapes, ())
    assert (dense.name, [name for name, _, _ in dense.slots]) == ("linear", ["w", "b"])
    norm = kind_of(Op("_fused_rms_norm", (refs[0], [12], refs[1]), {}, (0, 1), (3,), 0), shapes, ())
    assert (norm.name, norm.slots[0][:2]) == ("affine", ("w", 2))
    assert kind_of(Op("add", refs[:2], {}, (0, 1), (3,), 0), shapes, ()) is None


class Branch(nn.Module):
    """A branch that is a residual unit itself."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv2d(4, 4, 1)
        self.unit = unit()
        self.out = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.out(self.unit(self.into(x)))


class Both(nn.Module):
    """Two branches, added."""

    def __init__(self, *names):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.names = names
        for name in names:
            setattr(self, name, Branch())

    def forward(self, x):
        x = self.stem(x)
        one, other = (getattr(self, name)(x) for name in self.names)
        return one + other


def test_behind_a_meeting_inside_a_twin_nothing_is_proved_either():
    shape = (2, 3, 12, 12)
    found = pairs(randomise(Both("a", "b"), 1, shape), randomise(Both("x", "y"), 2, shape), *shape)
    assert {entry.target for entry in found.entries} == {"stem.weight", "stem.bias"}
    assert len(found.ambiguous) == 16


@pytest.mark.parametrize("evidence", ["behaviour", "structure"])
def test_twins_of_which_one_is_used_otherwise_are_told_apart(evidence):
    """One goes through another function than the other, or is taken from another part of a whole."""

    def by_function(m, x):
        return F.silu(F.linear(x, m.a)) * F.linear(x, m.b)

    def turned(m, x):
        return F.linear(x, m.q) * F.silu(F.linear(x, m.p))

    one, other = Made(by_function, a=(4, 12), b=(4, 12)), Made(turned, p=(4, 12), q=(4, 12))
    found = pairs(one, other, *TOKENS, evidence=evidence)
    assert {entry.target: entry.keys for entry in found.entries} == {"p": ("a",), "q": ("b",)}

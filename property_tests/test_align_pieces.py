"""Drawn entries: summarised from where their elements come from, applied, turned round, joined, written."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgraft.alignment.alignment import Alignment, Entry, Part
from torchgraft.alignment.entry import joined_shape, part_shape
from torchgraft.alignment.maps.pieces import grain_of, index_map, summarise

SHAPES = {
    "a": (6, 4),
    "b": (4, 6),
    "c": (12,),
    "d": (2, 3, 2, 2),
    "e": (),
    "f": (5, 1),
}


@st.composite
def factored(draw, count: int):
    """A shape of so many elements, in an order of its own."""
    view = []
    while count > 1 and len(view) < 4:
        size = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
        view.append(size)
        count //= size
    return (*view, count)


@st.composite
def parts(draw, shapes=SHAPES):
    key = draw(st.sampled_from([*shapes, ""]))
    if not key:
        return Part("", draw(st.sampled_from([(3,), (2, 4), ()])))
    count = math.prod(shapes[key])
    view = draw(st.just(()) | factored(count))
    seen = view or shapes[key]
    axes = draw(st.just(()) | st.permutations(range(len(seen))).map(tuple))
    first = seen[axes[0] if axes else 0] if seen else 0
    rows = None
    if first > 1 and draw(st.booleans()):
        start = draw(st.integers(0, first - 1))
        rows = (start, draw(st.integers(start + 1, first)))
    return Part(key, view, axes, rows)


@st.composite
def entries(draw, target="w", shapes=SHAPES):
    """An entry, and the shape of its tensor."""
    held = tuple(draw(st.lists(parts(shapes), min_size=1, max_size=3)))
    count = sum(math.prod(part_shape(part, shapes)) for part in held)
    view = draw(st.just(()) | factored(count))
    size = len(joined_shape(Entry(target, held, view), shapes))
    axes = draw(st.just(()) | st.permutations(range(size)).map(tuple))
    entry = Entry(target, held, view, axes, draw(st.sampled_from(["", "same input"])), "structure")
    return entry, draw(factored(count) | st.just((count,)))


@st.composite
def alignments(draw, source=SHAPES, names="uvwxyz"):
    """An alignment with drawn entries."""
    drawn = [draw(entries(name, source)) for name in names[: draw(st.integers(1, len(names)))]]
    target = {entry.target: shape for entry, shape in drawn} | {"missing": (3,)}
    return Alignment(source, target, tuple(entry for entry, _ in drawn))


def state(shapes=SHAPES) -> dict[str, torch.Tensor]:
    """Tensors in which no value stands twice, and none is zero."""
    starts = torch.tensor([0, *(math.prod(shape) for shape in shapes.values())]).cumsum(0).tolist()
    return {
        key: torch.arange(start + 1.0, stop + 1).reshape(shapes[key])
        for key, start, stop in zip(shapes, starts, starts[1:], strict=False)
    }


@given(entries())
def test_a_summary_says_where_each_element_comes_from(drawn):
    entry, shape = drawn
    source = state()
    which, where = index_map(entry, SHAPES)
    made = Alignment(SHAPES, {"w": shape}, (entry,)).apply(source)["w"].reshape(-1)
    for at, value in enumerate(made):
        assert value == (0 if which[at] < 0 else source[entry.keys[which[at]]].reshape(-1)[where[at]])
    found = summarise("w", shape, entry.keys, SHAPES, which, where, entry.rule, entry.evidence)
    assert found is not None
    assert (found.rule, found.evidence) == (entry.rule, entry.evidence)
    again = Alignment(SHAPES, {"w": shape}, (found,)).apply(source)["w"]
    assert again.reshape(-1).equal(made)
    if len(entry.parts) == 1 and not entry.axes:
        assert len(found.parts) == 1
        assert not found.axes


@given(entries())
def test_counting_in_grains_tells_the_same(drawn):
    entry, shape = drawn
    grain = grain_of(entry, SHAPES)
    which, where = index_map(entry, SHAPES)
    coarse = index_map(entry, SHAPES, grain)
    steps = torch.arange(grain)
    assert coarse[0].repeat_interleave(grain).equal(which)
    assert (coarse[1][:, None] * grain + steps).reshape(-1)[which >= 0].equal(where[which >= 0])
    fine = summarise("w", shape, entry.keys, SHAPES, which, where)
    assert summarise("w", shape, entry.keys, SHAPES, *coarse, grain=grain) == fine


@given(alignments())
def test_inverse_gives_back_what_was_taken(alignment):
    source = state()
    back = alignment.inverse()
    again = back.apply(alignment.apply(source))
    assert all(tensor.equal(source[key]) for key, tensor in again.items())
    taken = {
        key: {
            int(place)
            for entry in alignment.entries
            if key in entry.keys
            for of, place in zip(*index_map(entry, SHAPES), strict=True)
            if of == entry.keys.index(key)
        }
        for key in SHAPES
    }
    assert set(again) == {key for key, shape in SHAPES.items() if len(taken[key]) == math.prod(shape)}


@given(st.data())
def test_one_after_the_other_is_the_composition(data):
    first = data.draw(alignments())
    middle = {entry.target: first.target[entry.target] for entry in first.entries}
    second = data.draw(alignments(middle, "klm"))
    second = Alignment(first.target, second.target, second.entries)
    both = first.compose(second)
    source = state()
    wanted = second.apply(first.apply(source))
    got = both.apply(source)
    assert set(got) == set(wanted)
    assert all(tensor.equal(wanted[key]) for key, tensor in got.items())


@given(alignments())
def test_what_is_written_reads_back(alignment):
    assert Alignment.from_json(alignment.to_json()) == alignment
    assert str(alignment)
    assert 0 < alignment.coverage < 1

"""The strategies make what they claim: each trait, row and form occurs often enough to be tested."""

from __future__ import annotations

import ast
import re
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import strategies
import torch
from checks import run, same
from equivalence import modes, tensors
from fingerprint import bits
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.statistics import collector
from strategies import (
    FAILING,
    FORMS,
    ROWS,
    TRAITS,
    additions,
    apart,
    edits,
    failing,
    inputs,
    modules,
    nets,
    rows,
    selectors,
)

import torchgraft
from torchgraft import GraftError, blocks, identity, pipe
from torchgraft.blocks.registry import find_block
from torchgraft.transform import Transform

LAWS = Path(__file__).resolve().parent.parent / "laws"


def drawn(*strategies: st.SearchStrategy, times: int = 200) -> list[tuple]:
    """Draw the same examples each time."""
    seen: list[tuple] = []

    @settings(max_examples=times, derandomize=True, phases=[Phase.generate], database=None)
    @given(st.tuples(*strategies))
    def collect(values):
        seen.append(values)

    collect()
    return seen


def test_every_trait_occurs_in_two_percent_of_nets():
    seen = [net for (net,) in drawn(nets())]
    count = {trait: sum(map(bool, map(has, seen))) for trait, has in TRAITS.items()}
    assert not {trait: number for trait, number in count.items() if number < 0.02 * len(seen)}


def test_a_net_prints_as_what_makes_it():
    for (net,) in drawn(nets(), times=50):
        again = eval(repr(net), vars(strategies))
        assert modes(again) == modes(net)
        assert {k: bits(t) for k, t in tensors(again).items()} == {
            k: bits(t) for k, t in tensors(net).items()
        }
        assert same(run(again, inputs(), mode=True), run(net, inputs(), mode=True))


def test_sums_are_exact():
    for (net,) in drawn(nets(), times=50):
        output = run(net, inputs(), mode=False)
        assert output.shape == (2, strategies.CLASSES)
        assert output.abs().max() < 2**48
        assert (output * 2**10).frac().eq(0).all()


def makes_transforms(name: str) -> bool:
    """Tell whether a public name is that of a function that makes transforms."""
    made = getattr(torchgraft, name)
    if not callable(made) or isinstance(made, type):
        return False
    back = typing.get_type_hints(made).get("return")
    return isinstance(back, type) and issubclass(back, Transform)


def test_every_public_transform_has_a_row_and_is_drawn():
    transforms = [row.make() for (row,) in drawn(rows(), times=10 * len(ROWS))]
    names = {step.name for transform in transforms for step in (transform, *transform.steps())}
    names |= {"identity"} if identity() in transforms else set()
    public = set(filter(makes_transforms, torchgraft.__all__))
    assert {"wrap", "compose", "identity", "swap_head"} <= public
    assert not public - names


def test_every_block_has_a_row_and_is_drawn():
    drawn_blocks = {row.block.label() for (row,) in drawn(rows(), times=10 * len(ROWS)) if row.block}
    ours = {name for name in blocks.names() if home(find_block(name)).startswith("torchgraft.")}
    assert {"se", "lora", "gem"} <= ours
    assert not ours - drawn_blocks


def home(made: object) -> str:
    """Return the module that what is registered comes from."""
    kind = getattr(made, "kind", None)
    return str((kind.builder if kind else made).__module__)


def test_every_row_fits_every_net():
    for net, row in drawn(nets(), rows(), times=150):
        result = row.make()(net)
        for mode in (False, True):
            run(result, inputs(channels=row.takes), mode=mode)


def test_what_must_fail_is_drawn():
    assert {repr(edit) for (edit,) in drawn(failing())} == set(map(repr, FAILING.values()))


def test_every_form_of_selector_occurs():
    pairs = drawn(nets().flatmap(lambda net: st.tuples(st.just(net), selectors(net))), times=300)
    said = [repr(selector) for ((_, selector),) in pairs]
    assert not [form for form, pattern in FORMS.items() if not any(re.search(pattern, text) for text in said)]
    results = Counter(finds(net, selector) for ((net, selector),) in pairs)
    assert results[True] > 0.6 * len(pairs)


def finds(net, selector) -> bool:
    """Tell whether a selector finds something in a net."""
    try:
        return bool(len(selector.on(net)))
    except GraftError:
        return False


@pytest.mark.parametrize(
    ("make", "share"),
    [(edits, 0.6), (additions, 0.6), (apart, 0.4)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_most_drawn_edits_can_be_done(make: Callable, share: float):
    pairs = drawn(nets().flatmap(lambda net: st.tuples(st.just(net), make(net))), times=100)
    done = 0
    for ((net, made),) in pairs:
        steps = made if isinstance(made, tuple) else (made,)
        try:
            pipe(net, *(step.transform for step in steps))
            done += 1
        except GraftError:
            continue
    assert done > share * len(pairs)


def test_hardly_an_example_is_discarded():
    net = nets()
    everything = st.tuples(
        rows(),
        failing(),
        *(
            net.flatmap(lambda n, make=make: make(n))
            for make in (selectors, modules, edits, additions, apart)
        ),
    )
    said: list[dict] = []
    with collector.with_value(said.append):
        drawn(everything, times=100)
    statuses = Counter(case["status"] for stats in said for case in stats["generate-phase"]["test-cases"])
    assert statuses["valid"] == 100
    assert statuses.total() <= 105


def test_no_law_discards_examples():
    for path in LAWS.glob("*.py"):
        called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {func.id if isinstance(func, ast.Name) else getattr(func, "attr", "") for func in called}
        assert not names & {"assume", "filter", "reject"}, path


def test_one_thread():
    assert torch.get_num_threads() == 1

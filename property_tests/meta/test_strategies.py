"""The strategies make what they claim: each trait occurs often enough to be tested."""

from __future__ import annotations

from collections import Counter

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import (
    ROWS,
    Branches,
    ChannelsLast,
    Functional,
    Listed,
    Skip,
    Tied,
    Twice,
    inputs,
    nets,
)
from torch import nn

import torchgraft

SEEN: Counter[str] = Counter()


@settings(max_examples=200, derandomize=True, phases=[Phase.generate], database=None)
@given(nets(), st.just(None))
def _collect(net, _):
    SEEN["all"] += 1
    modules = list(net.modules())
    for kind in (Branches, ChannelsLast, Functional, Listed, Skip, Tied, Twice, nn.BatchNorm2d):
        SEEN[kind.__name__] += any(isinstance(module, kind) for module in modules)
    names = [name for name, _ in net.named_modules(remove_duplicate=False)]
    SEEN["shared"] += len(names) > len(modules)
    SEEN["nested"] += any(name.count(".") >= 2 for name in names)
    SEEN["mixed modes"] += len({module.training for module in modules}) == 2
    assert net.eval()(inputs()).shape == (2, 2)


def test_every_trait_occurs_in_two_percent_of_nets():
    _collect()
    rare = {trait: count for trait, count in SEEN.items() if count < 0.02 * SEEN["all"]}
    assert not rare
    assert len(SEEN) == 12


def test_every_public_transform_has_a_row():
    no_transforms = {"GraftError", "at", "blocks", "explain", "pipe", "trace"}
    drawn = {step.name for row in ROWS.values() for step in (row.make(), *row.make().steps())}
    missing = set(torchgraft.__all__) - no_transforms - drawn
    assert missing <= {"identity"}  # prints as compose of nothing

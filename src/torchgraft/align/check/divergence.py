"""Say where two models part, and what they do differently there."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from torchgraft.align.check.cones import Both, Pair, pick
from torchgraft.align.check.reading import Site, keys_of, name_of, said, settings, site_of
from torchgraft.align.check.trail import Runner, apart, mark_of
from torchgraft.align.match.kinds import Slot
from torchgraft.graph.deep.record import Ref

_SLOTS = {"w": "weight", "b": "bias", "m": "running_mean", "v": "running_var"}
_COMMUTE = ("add", "mul")
# Weights that differ by less were rounded, not changed.
_SAME = 1e-7


@attrs.frozen
class Difference:
    """What two sites do differently.

    Args:
        what: the setting, such as ``eps``; ``weight``, ``bias``, ``function``, ``input``.
        a: what it is in the first model; of weights, their names.
        b: what it is in the second.
        apart: how far the weights are apart, as a share of the largest of the first.
    """

    what: str
    a: object
    b: object
    apart: float | None = None

    def __str__(self) -> str:
        far = "" if self.apart is None else f", {self.apart:.2g} apart"
        return f"{self.what} {_word(self.a)} against {_word(self.b)}{far}"


@attrs.frozen
class Divergence:
    """The first site that sees the same in both models and gives something else.

    Args:
        site_a: where it is in the first model.
        site_b: where it is in the second.
        reasons: what is different there.
        seen: how far apart is what it is given.
        made: how far apart is what comes of it.
        agree: how many sites with parameters agree before it.
        total: how many there are.
    """

    site_a: Site
    site_b: Site
    reasons: tuple[Difference, ...]
    seen: float
    made: float
    agree: int
    total: int

    def __str__(self) -> str:
        where = str(self.site_a) if self.site_a == self.site_b else f"{self.site_a} / {self.site_b}"
        kinds = " / ".join(dict.fromkeys((self.site_a.kind, self.site_b.kind)))
        why = "; ".join(map(str, self.reasons)) or "no difference of settings or weights found there"
        return f"first at {where} ({kinds}): {why}; {self.agree} of {self.total} sites agree before it"


def diverged(both: Both, runners: tuple[Runner, Runner]) -> Divergence | None:
    """Find the first site where two runs part for a reason.

    Args:
        both: the two runs.
        runners: what runs them again, to look at weights.

    Returns:
        The first site with a reason; without any, the first; ``None`` where all is the same.
    """
    first: Divergence | None = None
    for count, (a, b) in enumerate(both.partings()):
        found = _Parting(both, runners, (a, b)).explained()
        if found is not None and found.reasons:
            return found
        first = first or found
        if count >= _MOST:
            break
    return first


# Where values drift apart without a reason, no later place will have one.
_MOST = 8


class _Parting:
    """One pair of values that should be the same and are not."""

    def __init__(self, both: Both, runners: tuple[Runner, Runner], values: tuple[int, int]) -> None:
        self.both = both
        self.values = values
        self.trails = both.a, both.b
        self.cones = both.cones(*values)
        self.slots = [self._slots(side) for side in (0, 1)]
        self.tensors = [
            runners[side].values({slot.value for _, _, slot in self.slots[side].values()}, self.trails[side].record)
            for side in (0, 1)
        ]

    def explained(self) -> Divergence | None:
        if not any(self.cones):
            return None
        for moves in (False, True):
            pairs = self.both.paired(*self.cones, moves=moves)
            told = pick(pairs, lambda pair: bool(self._differences(pair)))
            if told:
                return self._written(pairs, told, self._reasons(told))
        pairs = self.both.paired(*self.cones, moves=True)
        return self._written(pairs, pairs[:1], ())

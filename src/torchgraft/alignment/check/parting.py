"""Find the first place where two runs part, and say why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torchgraft.alignment.check.comparing import differences
from torchgraft.alignment.check.cones import Both, Pair, pick
from torchgraft.alignment.check.divergence import Difference, Divergence
from torchgraft.alignment.check.reading import Site, said, site_of

# Where values drift apart without a reason, no later place will have one.
_MOST = 8
_LEVELS = 4


def diverged(runs: Sequence[Both]) -> Divergence | None:
    """Find the first site where two runs part for a reason.

    What computes is looked at first; then what moves values; then what is made of constants.

    Args:
        runs: the two runs, with what is taken for the same within several bounds, the best first.

    Returns:
        The first site with a reason; without any, the first; ``None`` where all is the same.
    """
    for level, both in itertools.product(range(_LEVELS), runs):
        for values, users in itertools.islice(both.partings(), _MOST):
            found = _Parting(both, values, users).told(level)
            if found is not None:
                return found
    first = next(((both, *parting) for both in runs for parting in both.partings()), None)
    return None if first is None else _Parting(*first).silent()


class _Parting:
    """One pair of values that should be the same and are not."""

    def __init__(self, both: Both, values: tuple[int, int], users: Pair) -> None:
        self.both = both
        self.values = values
        self.users = users
        self.cones = both.cones(*values)

    def told(self, level: int) -> Divergence | None:
        """Say what is different between what the runs share and the two values."""
        pairs = self.both.paired(*self.cones, level=level)
        told = pick(pairs, lambda pair: None in pair or bool(differences(self.both, *pair)))
        if not told:
            return None
        if None in told[-1] and None not in self.users:
            told.append(self.users)
        return self._written(told, tuple(dict.fromkeys(self._reasons(told))))

    def silent(self) -> Divergence:
        """Say where the two values were made, without a reason."""
        return self._written(self.both.paired(*self.cones, level=_LEVELS - 1)[:1], ())

    def _written(self, told: list[Pair], reasons: tuple[Difference, ...]) -> Divergence:
        numbers = self._number(told, 0), self._number(told, 1)
        seen = self._seen(*(told[0] if told else (None, None)))
        end = self.cones[1][0] if self.cones[1] else self._made(1)
        held = (numbers[1] if numbers[1] is not None else end) or 0
        agree = sum(place.op < held for place in self.both.agreeing())
        total = sum(bool(place.slots) for place in self.both.b.places.places)
        sites = self._site(numbers, 0), self._site(numbers, 1)
        return Divergence(*sites, reasons, seen, self.both.apart(*self.values), agree, total)

    def _number(self, told: list[Pair], side: int) -> int | None:
        """Return the first operation of one side; of those that drop values out, the one that draws."""
        numbers = [n for pair in told if (n := pair[side]) is not None]
        draws = [n for n in numbers if self.both.sides[side].record.ops[n].name.startswith("bernoulli")]
        return next(iter(draws or numbers), None)

    def _made(self, side: int) -> int | None:
        return self.both.sides[side].maker.get(self.values[side])

    def _site(self, numbers: tuple[int | None, int | None], side: int) -> Site:
        """Say where an operation stands; for none, where it would: in the module of the other."""
        trail, number, counterpart = self.both.sides[side], numbers[side], numbers[1 - side]
        if number is not None:
            return site_of(number, trail)
        around = [site_of(n, trail) for n in (self._made(side), self.users[side]) if n is not None]
        path = None if counterpart is None else site_of(counterpart, self.both.sides[1 - side]).path
        inside = [site for site in around if site.path == path]
        return next(reversed(inside or around), Site("", (), "input"))

    def _seen(self, a: int | None, b: int | None) -> float:
        """Say how far apart is what two operations are given first."""
        if a is None or b is None:
            return 0.0
        taken = [
            next((v for v in trail.record.ops[n].inputs if v in trail.signals), None)
            for n, trail in zip((a, b), self.both.sides, strict=True)
        ]
        return 0.0 if taken[0] is None or taken[1] is None else self.both.apart(taken[0], taken[1])

    def _reasons(self, told: list[Pair]) -> Iterator[Difference]:
        lone = [[n for pair in told if None in pair and (n := pair[side]) is not None] for side in (0, 1)]
        if any(lone):
            yield Difference("function", self._chain(lone[0], 0), self._chain(lone[1], 1))
        for pair in told:
            yield from differences(self.both, *pair)

    def _chain(self, numbers: list[int], side: int) -> str | None:
        trail = self.both.sides[side]
        drawn = [n for n in numbers if trail.record.ops[n].name.startswith("bernoulli")]
        return ", ".join(said(trail.record.ops[n], trail) for n in drawn or numbers) or None

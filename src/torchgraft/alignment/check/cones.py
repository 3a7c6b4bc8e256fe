"""What two runs did between the last values that they share and the first that they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from torchgraft.alignment.check.reading import family, quiet
from torchgraft.alignment.check.trail import Trail
from torchgraft.alignment.match.places import Place
from torchgraft.alignment.match.sequence import aligned
from torchgraft.alignment.match.structure import Proposal

Pair = tuple[int | None, int | None]


@attrs.frozen(eq=False)
class Both:
    """The runs of two models, and which place of the second is which of the first.

    Args:
        a: the run of the first model.
        b: the run of the second.
        proposals: for places of the second model those of the first.
        least: within this, two values are the same.
        ordered: of two values of one shape, the order counts.
    """

    a: Trail
    b: Trail
    proposals: Mapping[int, Proposal]
    least: float
    ordered: bool

    @property
    def sides(self) -> tuple[Trail, Trail]:
        """Both runs."""
        return self.a, self.b

    def agreeing(self) -> list[Place]:
        """List the places with parameters of the second model that are given what their counterparts are."""
        own = [(self.a.places.places[p.source], self.b.places.places[t]) for t, p in self.proposals.items()]
        return [t for s, t in own if t.slots and self.apart(s.signal, t.signal) <= self.least]

    def known(self, value: int, side: int) -> bool:
        """Tell whether the other run has a value like one of this run."""
        trail, other = self.sides[side], self.sides[1 - side]
        mark = trail.marks.get(value)
        return mark is not None and other.has(mark, self.least, ordered=self.ordered)

    def apart(self, a: int, b: int) -> float:
        """Say how far a value of the first run is from one of the second."""
        one, other = self.a.marks.get(a), self.b.marks.get(b)
        return float("inf") if one is None or other is None else one.apart(other, ordered=self.ordered)

    def partings(self) -> Iterator[tuple[tuple[int, int], Pair]]:
        """Yield the pairs of values that should be the same and are not, in the order of the run.

        Each comes with the operations that it is for. A value that the other run has elsewhere
        was paired with the wrong one; and where no way leads to an output but through values
        that the runs share, the models only write the same thing differently.
        """
        late = [self._values(self.sides[side].record.outputs, side) for side in (0, 1)]
        for (a, b), users in self._meant():
            if (a in late[0] or b in late[1]) and not self.apart(a, b) <= self.least:
                yield (a, b), users

    def cones(self, a: int, b: int) -> tuple[list[int], list[int]]:
        """Return the operations that made two values of what the runs share, in order."""
        return self._cone(a, 0), self._cone(b, 1)

    def paired(self, ours: list[int], theirs: list[int], *, level: int) -> list[Pair]:
        """Pair the operations of two cones, in order; where one has no counterpart, ``None``.

        Args:
            ours: operations of the first model.
            theirs: operations of the second.
            level: 0 for what computes with the signal; 1 for what moves it, too; 2 for what
                computes with anything, with constants and parameters too; 3 for all.

        Returns:
            The pairs, in order.
        """
        ops = self.a.record.ops, self.b.record.ops
        mine, yours = (
            [n for n in held if self._counts(n, side, level)] for side, held in enumerate((ours, theirs))
        )
        names = [family(ops[0][n], self.a) for n in mine], [family(ops[1][n], self.b) for n in yours]
        matched = aligned(*names, lambda i, j: float(names[0][i] == names[1][j]))
        made: list[Pair] = []
        i = j = 0
        for s, t in [*matched, (len(mine), len(yours))]:
            made += [(n, None) for n in mine[i:s]]
            made += [(None, n) for n in yours[j:t]]
            made += [(mine[s], yours[t])] if s < len(mine) else []
            i, j = s + 1, t + 1
        return made

    def _counts(self, number: int, side: int, level: int) -> bool:
        trail = self.sides[side]
        op = trail.record.ops[number]
        return (level >= 2 or trail.signals.issuperset(op.outputs)) and (level in (1, 3) or not quiet(op))

    def _meant(self) -> Iterator[tuple[tuple[int, int], Pair]]:
        """Yield the values that structure says are the same: what paired places are given, and the ends."""
        for t, proposal in sorted(self.proposals.items()):
            source, target = self.a.places.places[proposal.source], self.b.places.places[t]
            # Where signals meet, either may come first; what comes of them is given to the next.
            alone = len(source.parents) == len(target.parents) == 1
            if alone and not proposal.others:
                yield (source.signal, target.signal), (source.op, target.op)
        for ends in zip(self.a.record.outputs, self.b.record.outputs, strict=False):
            yield ends, (None, None)

    def _cone(self, value: int, side: int) -> list[int]:
        return sorted({self.sides[side].maker[one] for one in self._values([value], side)})

    def _values(self, ends: Iterable[int], side: int) -> set[int]:
        """Return the values that some are made of, as far back as the other run does not have them."""
        trail = self.sides[side]
        found: set[int] = set()
        stack = list(ends)
        while stack:
            one = stack.pop()
            if one in trail.maker and one not in found and not self.known(one, side):
                found.add(one)
                stack += trail.record.ops[trail.maker[one]].inputs
        return found


def pick(pairs: list[Pair], differs: Callable[[Pair], bool]) -> list[Pair]:
    """Return the first stretch of pairs that differ: lone operations, and the pair that they lead to."""
    first = next((i for i, pair in enumerate(pairs) if differs(pair)), None)
    if first is None:
        return []
    last = first
    while None in pairs[last] and last + 1 < len(pairs):
        last += 1
    return pairs[first : last + 1]

"""What two runs did between the last values that they share and the first that they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs

from torchgraft.align.check.reading import family, quiet
from torchgraft.align.check.trail import Trail, apart
from torchgraft.align.match.sequence import aligned
from torchgraft.align.match.structure import Proposal

Pair = tuple[int | None, int | None]


@attrs.frozen(eq=False)
class Both:
    """The runs of two models, and which place of the second is which of the first.

    Args:
        a: the run of the first model.
        b: the run of the second.
        proposals: for places of the second model those of the first.
        least: within this, two values are the same.
    """

    a: Trail
    b: Trail
    proposals: Mapping[int, Proposal]
    least: float

    def known(self, value: int, side: int) -> bool:
        """Tell whether the other run has a value like one of this run."""
        trail, other = (self.a, self.b) if side == 0 else (self.b, self.a)
        return other.has(trail.marks.get(value), self.least)

    def apart(self, a: int, b: int) -> float:
        """Say how far a value of the first run is from one of the second."""
        return apart(self.a.marks.get(a), self.b.marks.get(b))

    def partings(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs of values that should be the same and are not, in the order of the run.

        A value that the other run has elsewhere was paired with the wrong one.
        """
        for a, b in self._meant():
            if not self.apart(a, b) <= self.least and not (self.known(a, 0) and self.known(b, 1)):
                yield a, b

    def cones(self, a: int, b: int) -> tuple[list[int], list[int]]:
        """Return the operations that made two values of what the runs share, in order."""
        return self._cone(a, 0), self._cone(b, 1)

    def paired(self, ours: list[int], theirs: list[int], *, moves: bool) -> list[Pair]:
        """Pair the operations of two cones, in order; where one has no counterpart, ``None``."""
        ops = self.a.record.ops, self.b.record.ops
        mine = [n for n in ours if moves or not quiet(ops[0][n])]
        yours = [n for n in theirs if moves or not quiet(ops[1][n])]
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

    def _meant(self) -> Iterator[tuple[int, int]]:
        """Yield the values that structure says are the same: what paired places are given, and the ends."""
        for t, proposal in sorted(self.proposals.items()):
            source, target = self.a.places.places[proposal.source], self.b.places.places[t]
            if not proposal.others and source.signal >= 0 and target.signal >= 0:
                yield source.signal, target.signal
        yield from zip(self.a.record.outputs, self.b.record.outputs, strict=False)

    def _cone(self, value: int, side: int) -> list[int]:
        trail = (self.a, self.b)[side]
        found: set[int] = set()
        stack = [value]
        while stack:
            one = stack.pop()
            op = trail.maker.get(one)
            if op is not None and op not in found and not self.known(one, side):
                found.add(op)
                stack += trail.record.ops[op].inputs
        return sorted(found)


def pick(pairs: list[Pair], differs: Callable[[Pair], bool]) -> list[Pair]:
    """Return the first stretch of pairs that differ: lone operations, and the pair that they lead to."""
    first = next((i for i, pair in enumerate(pairs) if differs(pair)), None)
    if first is None:
        return []
    last = first
    while None in pairs[last] and last + 1 < len(pairs):
        last += 1
    return pairs[first : last + 1]

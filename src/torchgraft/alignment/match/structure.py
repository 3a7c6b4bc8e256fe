"""Which place of the target is which of the source, by structure alone.

Segments that do the same are paired first, in order; then segments that hold the same layers
and something more. Inside a pair, places are paired by what leads to them and what follows;
where nothing tells two places apart, names may, and where they do not either, the pairing
is only one of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import attrs

from torchgraft.alignment.match.places import Places
from torchgraft.alignment.match.segments import Chain, Segment
from torchgraft.alignment.match.sequence import aligned
from torchgraft.alignment.match.twins import told_by_names

Named = Callable[[int], tuple[str, ...]]


@attrs.frozen
class Proposal:
    """The place of the source that a place of the target stands for.

    Args:
        source: number of the place.
        rule: what decided: ``"place"``, ``"names"``, ``"order"`` within a segment that was
            altered, or what a state dict goes by.
        others: places that are as good; not empty where nothing decided.
    """

    source: int
    rule: str
    others: tuple[int, ...] = ()


def proposed(
    source: Places, target: Places, names: tuple[Named, Named], *, stretch: bool = False
) -> dict[int, Proposal]:
    """Pair the places of two models.

    Args:
        source: places of the one model.
        target: places of the other.
        names: name the parameters of a place, of the source and of the target.
        stretch: let segments of the source stand for those of the same kind that follow.

    Returns:
        For places of the target what they stand for; the rest has no counterpart.
    """
    matcher = _Matcher(Chain(source), Chain(target), names)
    made = matcher.found()
    if not matcher.related():
        return {}
    if stretch:
        matcher.stretch()
    return made


class _Matcher:
    def __init__(self, source: Chain, target: Chain, names: tuple[Named, Named]) -> None:
        self.source = source
        self.target = target
        self.names = names
        self.made: dict[int, Proposal] = {}
        self._tied: dict[int, tuple[int, ...]] = {}

    def found(self) -> dict[int, Proposal]:
        ours, theirs = self.source.segments, self.target.segments
        tokens = [[s.token for s in ours], [t.token for t in theirs]]
        pairs = aligned(tokens[0], tokens[1], lambda i, j: self._alike(ours[i], theirs[j]))
        before = (-1, -1)
        gap: list[tuple[int, int]] = []
        for s, t in [*pairs, (len(ours), len(theirs))]:
            if s < len(ours) and ours[s].token != theirs[t].token:
                gap.append((s, t))
                continue
            self._between(range(before[0] + 1, s), range(before[1] + 1, t), gap)
            if s < len(ours):
                self._same(ours[s], theirs[t])
            before, gap = (s, t), []
        return self.made

    def _between(self, ours: range, theirs: range, pairs: Sequence[tuple[int, int]]) -> None:
        """Pair places in stretches between segments that are the same."""
        found: dict[int, int] = {}
        for s, t in pairs:
            found.update(self._altered(self.source.segments[s].places, self.target.segments[t].places))
        if ours and theirs:
            mine = [n for i in ours for n in self.source.segments[i].places]
            yours = [n for i in theirs for n in self.target.segments[i].places]
            layers = [sum(self._layer(n, known) for n in part) for part, known in ((mine, 0), (yours, 1))]
            kept = self._alike_layers(found)
            if len(kept) < 0.8 * min(layers):
                flat = self._altered(mine, yours)
                known = self._alike_layers(flat)
                if len(known) >= 0.8 * min(layers) or kept < known:
                    found = flat
        self.made.update({t: Proposal(s, "order", self._tied.get(t, ())) for t, s in found.items()})

    def _layer(self, n: int, side: int) -> bool:
        return (self.source, self.target)[side].outlines[n][0] in _LAYERS

    def _alike_layers(self, found: dict[int, int]) -> set[tuple[int, int]]:
        alike = {(s, t) for t, s in found.items() if self.source.labels[s] == self.target.labels[t]}
        return {(s, t) for s, t in alike if self._layer(t, 1)}

    def related(self) -> bool:
        """Tell whether one model is the other, altered, and not one that has some like layers."""
        chains = self.source, self.target
        layers = [sum(kind[0] in _LAYERS for kind in chain.outlines.values()) for chain in chains]
        own = [t for t in self.made if self.target.places[t].slots]
        alike = sum(self.source.labels[self.made[t].source] == self.target.labels[t] for t in own)
        if alike < _ALIKE * len(own):
            return False
        paired = [t for t in self.made if self._layer(t, 1)]
        joins = [Counter(k[0] for k in chain.outlines.values() if k[0] in _JOINS) for chain in chains]
        same = len(self._alike_layers({t: self.made[t].source for t in paired}))
        if len(paired) >= RELATED * min(layers) and (2 * same >= len(paired) or joins[0] == joins[1]):
            return True
        used = [sum(bool(chain.places[n].slots) for n in chain.live) for chain in chains]
        named = {t for t in own if self.names[0](self.made[t].source) == self.names[1](t)}
        alike = sum(self.source.labels[self.made[t].source] == self.target.labels[t] for t in named)
        if alike >= _NAMED * min(used):
            return True
        return bool(joins[0]) and joins[0] == joins[1] and len(named) >= 0.9 * len(own) > 0.25 * min(used)

    def stretch(self) -> None:
        """Pair segments without a counterpart with that of the last of their like before them."""
        last: dict[int, Segment] = {}
        for segment in self.target.segments:
            of = [self.made[n].source for n in segment.places if n in self.made]
            if of:
                last[segment.token] = self.source.segments[self.source.home[of[0]]]
            elif segment.token in last and last[segment.token].token == segment.token:
                known = set(self.made)
                self._same(last[segment.token], segment)
                for n in set(self.made) - known:
                    self.made[n] = attrs.evolve(self.made[n], rule="shape")

    def _alike(self, one: Segment, other: Segment) -> float:
        """Say how much two segments have in common; nothing if they are not the same, altered."""
        if one.token == other.token:
            return 2.0 + 2 * len(one.places)
        ours, theirs = (
            chain.count(s, widths=False) for chain, s in ((self.source, one), (self.target, other))
        )
        same = self.source.count(one, widths=True) & self.target.count(other, widths=True)
        mine, yours = self._keys(0, one.places), self._keys(1, other.places)
        namesakes = len(mine & yours)
        named = namesakes and 2 * namesakes >= min(len(mine), len(yours))
        layers = [sum(n for kind, n in held.items() if kind[0] in _LAYERS) for held in (ours, theirs, same)]
        if not (named or ours == theirs or layers[2] >= 0.75 * min(layers[:2]) > 0):
            return 0.0  # neither the names, nor the layers but for their widths, nor most of them
        return same.total() + 0.3 * (ours & theirs).total() + 0.5 * (ours == theirs) + 0.5 * bool(named)

    def _same(self, one: Segment, other: Segment) -> None:
        """Pair the places of two segments that do the same."""
        marks: tuple[dict[int, int], dict[int, int]] = ({}, {})
        colours = dict(one.colours), dict(other.colours)
        decided: dict[int, tuple[str, tuple[int, ...]]] = {}
        while True:
            classes = _classes(colours[0]), _classes(colours[1])
            twins = next((c for c, members in classes[1].items() if len(members) > 1), None)
            if twins is None:
                break
            ours, theirs = classes[0][twins], classes[1][twins]
            rule, told = self._told(ours, theirs)
            others = () if rule != "order" else tuple(ours)
            for n in theirs:
                decided.setdefault(n, (rule, others))
            for s, t, mark in told:
                marks[0][s] = marks[1][t] = hash((repr(mark), len(decided)))  # -1 and -2 hash alike
            colours = (
                self.source.colours(one.places, marks[0]),
                self.target.colours(other.places, marks[1]),
            )
        ways = {colour: members[0] for colour, members in _classes(colours[0]).items()}
        for n, colour in colours[1].items():
            rule, others = decided.get(n, ("place", ()))
            if n not in decided:  # told apart by a twin that was decided, or alike to nothing
                alike = tuple(m for m in one.places if one.colours[m] == other.colours[n])
                rule, others = self._inherited(alike, decided)
            self.made[n] = Proposal(ways[colour], rule, others)

    def _told(self, ours: list[int], theirs: list[int]) -> tuple[str, list[tuple[int, int, object]]]:
        """Tell twins apart: by how their signals come and go, by their names, or not at all."""
        different = False
        for way in ("ends", "functions", "spots"):
            mine = [self.source.ways(n, way) for n in ours]
            yours = [self.target.ways(n, way) for n in theirs]
            unlike = min(len(set(mine)), len(set(yours))) > 1
            different = different or (way == "functions" and unlike)
            if len(set(mine)) > 1 and sorted(mine) == sorted(yours):
                ours = sorted(ours, key=self.source.way_key(way))
                theirs = sorted(theirs, key=self.target.way_key(way))
                return "place", [(s, t, self.source.ways(s, way)) for s, t in zip(ours, theirs, strict=True)]
        told = told_by_names([self.names[0](n) for n in ours], [self.names[1](n) for n in theirs])
        if told is not None and not different:  # what is not interchangeable is no matter of names
            return "names", [(ours[s], t, i) for i, (s, t) in enumerate(zip(told, theirs, strict=True))]
        return "order", [(s, t, i) for i, (s, t) in enumerate(zip(ours, theirs, strict=True))]

    def _inherited(
        self, alike: tuple[int, ...], decided: dict[int, tuple[str, tuple[int, ...]]]
    ) -> tuple[str, tuple[int, ...]]:
        rules = {rule for rule, _ in decided.values()}
        if len(alike) < 2 or rules <= {"place"}:
            return "place", ()
        return ("order", alike) if "order" in rules else ("names", ())

    def _altered(self, ours: Sequence[int], theirs: Sequence[int]) -> dict[int, int]:
        """Pair the places of two stretches of which one has more, or other, than the other."""
        pairs = aligned(
            [("s", n) for n in ours], [("t", n) for n in theirs], lambda i, j: self._worth(ours[i], theirs[j])
        )
        found = self._untangled({theirs[j]: ours[i] for i, j in pairs})
        for n in theirs:  # beside a layer that is new, of two that are alike neither is the old one
            beside = [*self.target.places[n].parents, *self.target.children[n]] if n not in found else []
            for t, _ in beside:
                alike = t in found and self.target.labels[t] == self.target.labels[n]
                if alike and self.target.places[n].slots and self.names[0](found[t]) != self.names[1](t):
                    self._tied[t] = (found[t],)
        return found

    def _untangled(self, found: dict[int, int]) -> dict[int, int]:
        """Pair siblings, of one shape and on one signal, by what they are for and not by their order."""
        siblings: dict[tuple[object, ...], list[int]] = {}
        for t in found:
            parents = tuple(self.target.places[t].parents)
            siblings.setdefault((self.target.labels[t], parents), []).append(t)
        for mine in siblings.values():
            ours = [found[t] for t in mine]
            if len(mine) < 2 or len({tuple(self.source.places[s].parents) for s in ours}) > 1:
                continue
            told = self._by_purpose(ours, mine)
            found.update(told or {})
            self._tied.update({t: () if told else tuple(ours) for t in mine})
        return found

    def _by_purpose(self, ours: list[int], theirs: list[int]) -> dict[int, int] | None:
        """Pair siblings by what follows them, else by equal names; ``None`` where neither tells."""
        told: dict[int, int] = {}
        for depth in (3, 2, 1):
            left = [[s for s in ours if s not in told.values()], [t for t in theirs if t not in told]]
            marks = [
                [repr(chain.purpose(n, depth)) for n in part]
                for chain, part in zip((self.source, self.target), left, strict=True)
            ]
            for s, mark in zip(left[0], marks[0], strict=True):
                if marks[0].count(mark) == marks[1].count(mark) == 1:
                    told[left[1][marks[1].index(mark)]] = s
        rest = [s for s in ours if s not in told.values()], [t for t in theirs if t not in told]
        if len(rest[0]) > 1:
            named = {self.names[0](s): s for s in rest[0]}
            if {self.names[1](t) for t in rest[1]} != set(named) or len(named) < len(rest[0]):
                return None
            told.update({t: named[self.names[1](t)] for t in rest[1]})
        elif rest[0]:
            told[rest[1][0]] = rest[0][0]
        return told

    def _worth(self, s: int, t: int) -> float:
        if self.source.outlines[s] != self.target.outlines[t]:
            return 0.0
        known = 2.0 if self.source.labels[s] == self.target.labels[t] else 0.6
        known += 0.5 * (self._around(0, s) == self._around(1, t))
        known += 0.5 * (self._behind(0, s) == self._behind(1, t))
        mine, yours = self.names[0](s), self.names[1](t)
        return known + (0.4 if mine and mine == yours else 0.0)

    def _around(self, side: int, n: int) -> list[tuple[str, object]]:
        chain = (self.source, self.target)[side]
        return sorted((part, chain.outlines[p]) for p, part in chain.places[n].parents)

    def _behind(self, side: int, n: int) -> list[tuple[str, object]]:
        chain = (self.source, self.target)[side]
        return sorted((part, chain.outlines[c]) for c, part in chain.children[n])

    def _keys(self, side: int, places: Sequence[int]) -> set[str]:
        return {key for n in places for key in self.names[side](n)}


_LAYERS = ("linear", "conv")
_JOINS = ("add", "mul", "cat", "product", "join")
# The share of the smaller model's layers that the larger one has to have, in order.
RELATED = 0.85
# Or the share of it that has the same names and widths.
_NAMED = 0.6
# The share of what is paired that has the same widths.
_ALIKE = 0.1


def _classes(colours: dict[int, int]) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = {}
    for n, colour in colours.items():
        classes.setdefault(colour, []).append(n)
    return classes

"""A model as a chain of segments, each between two places that every path runs through.

A segment is a residual block, a branch and its concatenation, or a single layer. Segments
that do the same have the same token, whatever came before and comes after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs

from torchgraft.alignment.match.places import Place, Places, Way

Label = tuple[object, ...]


def label(place: Place) -> Label:
    """Say what a place is, with its widths; a bias may be left out where it is zero."""
    shapes = tuple(sorted((name, shape) for name, shape in place.shapes.items() if name != "b"))
    return (place.kind, place.hyper, shapes)


def outline(place: Place) -> Label:
    """Say what a place is, whatever its widths and its steps."""
    hyper: tuple[object, ...] = ()
    if place.kind == "conv":
        kernel, _, _, transposed, groups = place.hyper
        hyper = (kernel, transposed, groups != 1)
    return (place.kind, hyper, tuple(sorted(name for name in place.shapes if name != "b")))


@attrs.frozen(eq=False)
class Segment:
    """A stretch of places between two that every path runs through.

    Args:
        places: their numbers, in order; the last is the one that every path runs through.
        colours: for each what it is and how it stands to the others of the segment.
        token: the same for segments that do the same.
    """

    places: tuple[int, ...]
    colours: Mapping[int, int]
    token: int


class Chain:
    """The segments of a model.

    Args:
        found: its places.
    """

    def __init__(self, found: Places) -> None:
        self.places = found.places
        self.live = found.live()
        self.ends = {n: i for i, n in enumerate(found.ends)}
        self.labels = {n: label(self.places[n]) for n in self.live}
        self.outlines = {n: outline(self.places[n]) for n in self.live}
        self.children: dict[int, list[tuple[int, str]]] = {n: [] for n in self.live}
        self._leaving: dict[int, list[Way]] = {n: [] for n in self.live}
        for n in self.live:
            for (parent, side), way in zip(self.places[n].parents, self.places[n].ways, strict=True):
                self.children[parent].append((n, side))
                self._leaving[parent].append(way)
        self.segments = tuple(self._segment(part) for part in self._cut())
        self.home = {n: i for i, segment in enumerate(self.segments) for n in segment.places}

    def _cut(self) -> list[list[int]]:
        parts: list[list[int]] = [[]]
        reach = -1
        for n in self.live:
            parts[-1].append(n)
            if reach <= n:
                parts.append([])
            reach = max(reach, max((child for child, _ in self.children[n]), default=-1))
        return [part for part in parts if part]

    def _segment(self, part: Sequence[int]) -> Segment:
        colours = self.colours(part, {})
        return Segment(tuple(part), colours, hash(tuple(sorted(colours.values()))))

    def colours(self, part: Sequence[int], marks: Mapping[int, int]) -> dict[int, int]:
        """Tell the places of a stretch apart by what leads to them and what follows.

        Args:
            part: the places, in order.
            marks: colours that some of them have already.

        Returns:
            A number for each; those that nothing tells apart have the same.
        """
        inside = set(part)
        down: dict[int, int] = {}
        for n in part:
            met = sorted((side, down[p]) if p in inside else (side, 0) for p, side in self.places[n].parents)
            down[n] = hash((self.labels[n], marks.get(n), tuple(met)))
        up: dict[int, int] = {}
        for n in reversed(part):
            met = sorted((side, up[c]) if c in inside else ("out", 0) for c, side in self.children[n])
            met = met or [("out", 0)]  # the last of all is no other than those before it
            up[n] = hash((down[n], tuple(dict.fromkeys(met) if "out" in dict(met) else met)))
        return up

    def ways(self, n: int, what: str) -> tuple[object, ...]:
        """Return how the signals of a place come and go: the parts taken, or the functions."""
        if what == "ends":
            return (self.ends.get(n, -1),)
        coming = tuple(getattr(way, what) for way in self.places[n].ways)
        return coming, tuple(sorted(getattr(way, what) for way in self._leaving[n]))

    def way_key(self, what: str) -> Callable[[int], tuple[object, ...]]:
        """Return a key to sort places by how their signals come and go."""
        return lambda n: self.ways(n, what)

    def purpose(self, n: int, depth: int) -> tuple[object, ...]:
        """Say what follows a place, so many places far."""
        if not depth:
            return ()
        after = [(side, self.outlines[c], self.purpose(c, depth - 1)) for c, side in self.children[n]]
        return tuple(sorted(after, key=repr))

    def count(self, segment: Segment, *, widths: bool) -> Counter[Label]:
        """Count what a segment holds."""
        known = self.labels if widths else self.outlines
        return Counter(known[n] for n in segment.places)

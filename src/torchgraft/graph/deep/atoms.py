"""Atoms: what an axis of a value counts, and how axes split and merge in a reshape.

An axis is a product of atoms, the outermost first. The places of a map along its height are
one atom, along its width another; tokens are an axis with both. Splitting an atom gives an
outer and an inner part, and the two side by side are the atom again, so a map that is cut
into windows and put together is seen to be the same map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import attrs

BATCH, CHANNEL, HEIGHT, WIDTH, TOKENS, OTHER = "nchwl?"


@attrs.frozen
class Atom:
    """One thing that an axis counts.

    Args:
        kind: ``n`` samples, ``c`` channels, ``h`` and ``w`` places of a map, ``l`` places
            with other tokens before or behind them, ``?`` anything else.
        size: how many.
        step: places of the input for each of these, along the same axis of the image.
        parts: height and width, for tokens.
        before: tokens before those of the map.
        whole: the atom that this one is a part of.
        place: 0 for its outer part, 1 for its inner part.
    """

    kind: str
    size: int
    step: Fraction = Fraction(1)
    parts: tuple[Atom, ...] = ()
    before: int = 0
    whole: Atom | None = None
    place: int = 0

    @property
    def is_place(self) -> bool:
        """Tell whether it counts places of a map along one axis, and is no position in a window."""
        return self.kind in (HEIGHT, WIDTH) and self.place == 0

    def split(self, outer: int) -> tuple[Atom, Atom]:
        """Split into an outer part of a size and the rest."""
        inner = self.size // outer
        return (
            attrs.evolve(self, size=outer, step=self.step * inner, whole=self, place=0),
            attrs.evolve(self, size=inner, whole=self, place=1),
        )


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def size(axis: Axis) -> int:
    """Return the size of an axis."""
    return math.prod(atom.size for atom in axis)


def unknown(side: int) -> Axis:
    """Return an axis of which only the size is known."""
    return () if side == 1 else (Atom(OTHER, side),)


def resized(atom: Atom, side: int, ratio: Fraction | None = None) -> Atom:
    """Return an atom that counts the same along another number of places.

    Args:
        atom: the atom.
        side: the new number.
        ratio: old places for each new one; that of the two sizes, rounded, if unknown.
    """
    if ratio is None:
        old, new = max(atom.size, 1), max(side, 1)
        ratio = Fraction(round(old / new)) if old >= new else Fraction(1, round(new / old))
    return Atom(atom.kind, side, atom.step * (ratio or 1))


def merged(axis: Sequence[Atom]) -> Axis:
    """Put parts that stand side by side together again."""
    found: list[Atom] = []
    for atom in axis:
        found.append(atom)
        while len(found) > 1 and _fits(found[-2], found[-1]):
            whole = found[-1].whole
            found[-2:] = [whole] if whole is not None else []
    return tuple(found)


def _fits(outer: Atom, inner: Atom) -> bool:
    return (
        outer.whole is not None and outer.whole == inner.whole and outer.place == 0 and inner.place == 1
        and outer.size * inner.size == outer.whole.size
    )  # fmt: skip


def reshaped(axes: Sequence[Axis], shape: Sequence[int]) -> Axes:
    """Distribute the atoms of a value over the axes of a new shape, in row-major order."""
    atoms = [atom for axis in axes for atom in axis]
    lone = (BATCH, HEIGHT, WIDTH)  # kept where they count one place
    waiting = [a for a in atoms if a.size > 1 or (a.size == 1 and a.kind in lone)][::-1]
    found: list[Axis] = []
    for number, side in enumerate(shape):
        axis = list(_taken(waiting, side))
        if size(tuple(axis)) != side:  # nothing survives from here on
            return (*found, *(unknown(rest) for rest in shape[number:]))
        axis += _single(waiting, side, shape[number + 1 :])
        found.append(merged(axis))
    return tuple(found)


def _taken(waiting: list[Atom], side: int) -> Iterator[Atom]:
    """Take atoms off the end of a list until they fill an axis; split the last one if need be."""
    need = side
    while need > 1 and waiting:
        atom = waiting.pop()
        if need % atom.size == 0:
            need //= atom.size
            yield atom
        elif atom.size % need == 0 and atom.kind != TOKENS:
            outer, inner = atom.split(need)
            waiting.append(inner)
            need = 1
            yield outer
        else:
            return


def _single(waiting: list[Atom], side: int, after: Sequence[int]) -> Iterator[Atom]:
    """Take what counts one place and belongs to an axis that is full, rather than to those after it."""
    ones = _leading_ones([atom.size for atom in reversed(waiting)])
    later = _leading_ones(after)
    least = 0 if side > 1 else min(ones, 1)
    beyond = waiting[-1 - ones].kind if ones < len(waiting) else OTHER
    samples = ones > 0 and waiting[-1].kind == BATCH
    alone = beyond in (HEIGHT, WIDTH) or (later if side > 1 else samples)
    for _ in range(least if alone else max(ones - later, least)):
        yield waiting.pop()


def _leading_ones(sizes: Sequence[int]) -> int:
    return len(list(itertools.takewhile(lambda side: side == 1, sizes)))

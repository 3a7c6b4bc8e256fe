"""What must hold of an alignment: names that exist, shapes that fit, each tensor in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torchgraft.alignment.entry import (
    Ambiguity,
    Entry,
    Mismatch,
    Part,
    Shape,
    joined_shape,
    part_shape,
    seen_shape,
)
from torchgraft.errors import AlignmentError
from torchgraft.text import literal, near, plural

# Above any tensor that exists; so that a number out of a file cannot ask for all memory.
_MOST = 2**40


def check_shapes(shapes: Mapping[str, Shape], side: str) -> None:
    """Check that names are names and sizes are sizes.

    Raises:
        AlignmentError: one of them is not.
    """
    for key, shape in shapes.items():
        sizes = all(type(size) is int and size >= 0 for size in shape)
        if not isinstance(key, str) or not key or not sizes or math.prod(shape) > _MOST:
            raise AlignmentError(
                f"the {side} has a tensor that cannot be",
                found=f"{literal(key)} with shape {shape!r}",
                write=f"a name, and sizes from 0 with at most {_MOST:,} elements together",
            )


def check_places(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    entries: Sequence[Entry],
    mismatched: Sequence[Mismatch],
    ambiguous: Sequence[Ambiguity],
) -> None:
    """Check that every tensor named exists, and that no target stands in two places.

    Raises:
        AlignmentError: one is not known, stands twice, or has another shape than is said.
    """
    places = [(entry.target, "an entry", entry.keys) for entry in entries]
    places += [(one.target, "a mismatch", (one.source,)) for one in mismatched]
    places += [(one.target, "an ambiguity", one.candidates) for one in ambiguous]
    stands: dict[str, str] = {}
    for name, place, keys in places:
        _check_known(name, target, "target", f"{place} is for")
        for key in keys:
            _check_known(key, source, "source", f"{place} for {name!r} takes from")
        if name in stands:
            raise AlignmentError(
                f"{name!r} of the target stands in two places",
                found=f"{stands[name]} and {place}",
                write="one of them",
            )
        stands[name] = place
    for one in mismatched:
        if (one.asked, one.found) != (target[one.target], source[one.source]):
            raise AlignmentError(
                f"the mismatch of {one.target!r} and {one.source!r} names other shapes than they have",
                asked=f"asked={one.asked}, found={one.found}",
                found=f"target {target[one.target]}, source {source[one.source]}",
                write=f"asked={target[one.target]}, found={source[one.source]}",
            )


def check_entry(entry: Entry, source: Mapping[str, Shape], shape: Shape) -> None:
    """Check that the parts of an entry can be taken, and give its tensor.

    Raises:
        AlignmentError: a view, an order of axes or rows do not fit.
    """
    if not entry.parts:
        raise AlignmentError(
            f"the entry for {entry.target!r} takes nothing", write='Part(<name>), or Part("", view) for zeros'
        )
    for part in entry.parts:
        _check_part(part, source, entry.target)
    given = sum(math.prod(part_shape(part, source)) for part in entry.parts)
    if given != math.prod(shape):
        raise AlignmentError(
            f"the parts for {entry.target!r} give {plural(given, 'element')}, not {math.prod(shape):,}",
            asked=repr(entry),
            found=f"parts {', '.join(str(part_shape(p, source)) for p in entry.parts)}, target {shape}",
            write=f"parts with {plural(math.prod(shape), 'element')} together",
        )
    _check_seen(entry.view, given, repr(entry), f"the joined parts for {entry.target!r}")
    _check_axes(entry.axes, joined_shape(entry, source), repr(entry))


def _check_part(part: Part, source: Mapping[str, Shape], target: str) -> None:
    words = f"{part!r} for {target!r}"
    seen = seen_shape(part, source)
    if part.key:
        _check_seen(part.view, math.prod(source[part.key]), words, repr(part.key))
    elif part.axes or part.rows is not None or not _sizes(part.view) or math.prod(part.view) > _MOST:
        raise AlignmentError("zeros have a shape and nothing else", asked=words, write='Part("", (64,))')
    _check_axes(part.axes, seen, words)
    if part.rows is not None:
        first = seen[part.axes[0] if part.axes else 0] if seen else 0
        start, stop = part.rows
        if not (type(start) is int and type(stop) is int and 0 <= start < stop <= first):
            raise AlignmentError(
                f"{part.key!r} has no rows {start!r} to {stop!r}",
                asked=words,
                found=plural(first, "row"),
                write=f"rows=({0}, {first})",
            )


def _check_seen(view: Shape, count: int, asked: str, what: str) -> None:
    if view and not (_sizes(view) and math.prod(view) == count):
        raise AlignmentError(
            f"{what} cannot be seen as {view}",
            asked=asked,
            found=plural(count, "element"),
            write=f"a view with {plural(count, 'element')}",
        )


def _check_axes(axes: Shape, seen: Shape, asked: str) -> None:
    if axes and sorted(axes) != list(range(len(seen))):
        raise AlignmentError(
            f"{axes} is no order of the axes of {seen}",
            asked=asked,
            write=f"axes={tuple(reversed(range(len(seen))))}",
        )


def _check_known(key: str, shapes: Mapping[str, Shape], side: str, words: str) -> None:
    if key not in shapes:
        close = near(key, shapes)
        raise AlignmentError(
            f"{words} {key!r}, which the {side} has not",
            found=plural(len(shapes), "tensor"),
            near=close,
            write=literal(close[0]) if close else f"a name of the {side}",
        )


def _sizes(shape: Shape) -> bool:
    return all(type(size) is int and size >= 0 for size in shape)

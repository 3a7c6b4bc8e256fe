"""The ladder: the units that a trunk consists of, and the last map of each stride.

A module through which the resolution falls by more than one step is looked into; any other
is a unit. So a unit is a stage, a block, or a layer, whatever the model was built from. The
map of a stride is what the last unit of that stride gives, before the resolution falls
again, before maps of several strides are brought together, and before the head.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import attrs

from torchgraft.graph.tiers.projection import head_projection
from torchgraft.graph.tiers.trunk import Map, Trunk

_STEP = 2


@attrs.frozen(eq=False)
class Rung:
    """A unit and the maps it gives.

    Args:
        unit: number of the call.
        maps: the maps.
    """

    unit: int
    maps: tuple[Map, ...]


@attrs.frozen(eq=False)
class Ladder:
    """The units of a trunk that give maps.

    Args:
        rungs: the units, in the order in which they run, up to the head.
        maps: the last map of each stride, the finest first.
    """

    rungs: tuple[Rung, ...]
    maps: tuple[Map, ...]


def ladder_of(trunk: Trunk, heads: Collection[str] = ()) -> Ladder:
    """Find the units of a trunk and the last map of each stride.

    Args:
        trunk: the trunk.
        heads: paths of the projections to classes.

    Returns:
        The ladder; without rungs where there are no maps.
    """
    rungs = [Rung(unit, tuple(trunk.maps(unit))) for unit in _units(trunk, 0)]
    rungs = [rung for rung in rungs if rung.maps]
    # Before the first layer stands the image, however it was normalised or quantised.
    rungs = list(itertools.dropwhile(lambda rung: not trunk.depth(rung.unit), rungs))
    rungs = list(_before_neck(trunk, rungs))
    rungs = _before_head(trunk, rungs, heads) or rungs
    if rungs:
        deepest = max(m.stride for rung in rungs for m in rung.maps)
        at_end = [rung.unit for rung in rungs if any(m.stride == deepest for m in rung.maps)]
        outside = head_projection(trunk, at_end)
        rungs = _trimmed(trunk, [rung for rung in rungs if rung.unit not in outside], deepest)
    found = _last(trunk, rungs)
    within = {m.stride: m for rung in rungs for m in _cut_maps(trunk, rung.unit)}
    found = {**within, **found}
    return Ladder(tuple(rungs), tuple(found[stride] for stride in sorted(found)))


def _units(trunk: Trunk, number: int) -> Iterator[int]:
    for child in trunk.children[number]:
        if trunk.children[child] and _fall(trunk, child) > _STEP:
            yield from _units(trunk, child)
        else:
            yield child


def _fall(trunk: Trunk, number: int) -> float:
    """Return how many times coarser the map is that a call gives than the one it takes."""
    taken = max((layout.stride[0] for layout in trunk.taken(number) if layout.stride), default=1)
    given = max((m.stride for m in trunk.maps(number)), default=0)
    if not given:  # a part that ends in a vector is looked into for what comes before
        given = max((m.stride for m in _cut_maps(trunk, number)), default=0)
    return given / taken


def _cut_maps(trunk: Trunk, number: int) -> Iterator[Map]:
    """Yield the maps made in a call that every way runs through."""
    for inner in trunk.inside(number):
        for found in trunk.maps(inner):
            if found.value in trunk.cuts and trunk.made.get(found.value, -1) >= trunk.begins:
                yield found


def _last(trunk: Trunk, rungs: list[Rung]) -> dict[int, Map]:
    """Find the last map of each stride that something was done to make."""
    found: dict[int, Map] = {}
    for stride in sorted({m.stride for rung in rungs for m in rung.maps}):
        kept = _trimmed(trunk, rungs, stride)
        found[stride] = next(m for rung in reversed(kept) for m in rung.maps if m.stride == stride)
    return found


def _trimmed(trunk: Trunk, rungs: list[Rung], stride: int) -> list[Rung]:
    """Leave out what only dresses the last map of a stride: a norm after blocks, a dropout, a permute.

    A norm and an activation after a bare layer belong to it.
    """
    there = [rung for rung in rungs if any(m.stride == stride for m in rung.maps)]
    gone: set[int] = set()
    while len(there) > 1 and not trunk.depth(there[-1].unit):
        dresses = trunk.merges(there[-2].unit) or not trunk.shapes_values(there[-1].unit)
        if not dresses:
            break
        gone.add(there.pop().unit)
    return [rung for rung in rungs if rung.unit not in gone]


def _before_head(trunk: Trunk, rungs: list[Rung], heads: Collection[str]) -> list[Rung]:
    """Leave out the unit that makes maps of classes, and what comes after it."""
    ends = [i for i, scope in enumerate(trunk.scopes) if scope.path in heads and trunk.is_last(i)]
    first = min(ends, default=len(trunk.scopes))
    return [rung for rung in rungs if max(trunk.inside_of(rung.unit)) < first]


def _before_neck(trunk: Trunk, rungs: list[Rung]) -> Iterator[Rung]:
    """Yield the units until one brings coarser maps back to a finer one."""
    for rung in rungs:
        coarsest = max((layout.stride[0] for layout in trunk.taken(rung.unit) if layout.stride), default=0)
        if len(rung.maps) == 1 and rung.maps[0].stride < coarsest:
            return
        yield rung

"""Find the blocks that a stage consists of, and where the first stage begins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from torchgraft.graph.tiers.ladder import Rung
from torchgraft.graph.tiers.trunk import Map, Trunk


def blocks_of(trunk: Trunk, unit: int) -> list[int]:
    """Take a unit apart into the blocks that follow each other in it.

    Args:
        trunk: the trunk.
        unit: number of the call.

    Returns:
        Numbers of the calls of blocks; the unit alone where it is one block.
    """
    return _blocks_in(trunk, unit) or [unit]


def _blocks_in(trunk: Trunk, unit: int) -> list[int]:
    parts = [child for child in trunk.children[unit] if trunk.children[child] and trunk.maps(child)]
    if not parts or not _is_chain(trunk, unit, parts):
        return []
    kinds = {trunk.scopes[part].cls for part in parts}
    if len(parts) > 1 and len(kinds) == 1 and nn.Sequential not in kinds:
        return [part for part in parts if is_block(trunk, part)]
    found: list[int] = []
    for part in parts:
        found += _blocks_in(trunk, part) or ([part] if is_block(trunk, part) else [])
    return found if len(found) > 1 or _is_sequence(trunk, unit) else []


def is_block(trunk: Trunk, unit: int) -> bool:
    """Tell whether a call is more than one layer: ways meet in it, or layers follow each other."""
    return trunk.merges(unit) or trunk.depth(unit) > 1


def _is_sequence(trunk: Trunk, unit: int) -> bool:
    return trunk.scopes[unit].cls.forward is nn.Sequential.forward


def _is_chain(trunk: Trunk, unit: int, parts: Sequence[int]) -> bool:
    """Tell whether parts take what the one before gives, and the last gives what the unit gives."""
    given = {value for _, value in trunk.scopes[unit].outputs}
    ends = {m.value for m in trunk.maps(parts[-1])}
    for one, other in itertools.pairwise(parts):
        if {m.value for m in trunk.maps(one)}.isdisjoint(trunk.scopes[other].inputs):
            return False
    if not ends.isdisjoint(given):
        return True
    tail = [child for child in trunk.children[unit] if child > parts[-1]]  # a norm behind the blocks
    return bool(tail) and not given.isdisjoint(value for _, value in trunk.scopes[tail[-1]].outputs)


def first_stage(trunk: Trunk, rungs: Sequence[Rung]) -> int:
    """Return the position of the unit with which the first stage begins.

    Before it come single layers, and what stands elsewhere than the stages do.
    """
    home = _home(trunk, rungs)
    inside = [i for i, rung in enumerate(rungs) if trunk.scopes[rung.unit].parent == home]
    branched = [i for i in inside if trunk.children[rungs[i].unit] and trunk.merges(rungs[i].unit)]
    kinds = {trunk.scopes[rungs[i].unit].cls for i in branched} - {nn.Sequential}
    for i in inside:
        unit = rungs[i].unit
        if i in branched or (trunk.scopes[unit].cls in kinds and is_block(trunk, unit)):
            return i
    return inside[0]


def _home(trunk: Trunk, rungs: Sequence[Rung]) -> int:
    """Return the call that runs the stages: the one in which blocks work at most strides."""
    strides: dict[int, set[int]] = {}
    layers: dict[int, int] = {}
    for rung in [rung for rung in rungs if is_block(trunk, rung.unit)] or rungs:
        parent = trunk.scopes[rung.unit].parent
        strides.setdefault(parent, set()).update(m.stride for m in rung.maps)
        layers[parent] = layers.get(parent, 0) + trunk.depth(rung.unit)
    return max(strides, key=lambda parent: (len(strides[parent]), layers[parent]))


def block_maps(trunk: Trunk, units: Sequence[int], stride: int) -> tuple[Map, ...]:
    """List the maps that the blocks of some units give at a stride.

    A single layer that steps down before blocks of several layers is none of them.
    """
    blocks = [block for unit in units for block in blocks_of(trunk, unit) if is_block(trunk, block)]
    deep = [block for block in blocks if trunk.depth(block) > 1] or blocks
    return tuple(m for block in deep for m in trunk.maps(block) if m.stride == stride)

"""Find the blocks that a stage consists of, and where the first stage begins."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from torch import nn

from torchgraft.graph.tiers.ladder import Rung
from torchgraft.graph.tiers.trunk import Map, Trunk


def blocks_of(trunk: Trunk, unit: int, hung: Collection[str] = ()) -> list[int]:
    """Take a unit apart into the blocks that follow each other in it.

    Args:
        trunk: the trunk.
        unit: number of the call.
        hung: paths of what steps put behind blocks, which is none.

    Returns:
        Numbers of the calls of blocks; the unit alone where it is one block.
    """
    return _blocks_in(trunk, unit, hung) or [unit]


def _blocks_in(trunk: Trunk, unit: int, hung: Collection[str]) -> list[int]:
    added = [child for child in trunk.children[unit] if trunk.scopes[child].path in hung]
    own = (child for child in trunk.children[unit] if child not in added)
    parts = [child for child in own if trunk.children[child] and trunk.maps(child)]
    if not parts or not _is_chain(trunk, unit, parts, added):
        return []
    kinds = {trunk.scopes[part].cls for part in parts}
    if len(parts) > 1 and len(kinds) == 1 and nn.Sequential not in kinds:
        return [part for part in parts if is_block(trunk, part)]
    found: list[int] = []
    for part in parts:
        found += _blocks_in(trunk, part, hung) or ([part] if is_block(trunk, part) else [])
    return found if len(found) > 1 or _is_sequence(trunk, unit) else []


def is_block(trunk: Trunk, unit: int) -> bool:
    """Tell whether a call is more than one layer: ways meet in it, or layers follow each other."""
    return trunk.merges(unit) or trunk.depth(unit) > 1


def _is_sequence(trunk: Trunk, unit: int) -> bool:
    return trunk.scopes[unit].cls.forward is nn.Sequential.forward


def _is_chain(trunk: Trunk, unit: int, parts: Sequence[int], added: Sequence[int]) -> bool:
    """Tell whether parts take what the one before gives, and the last gives what the unit gives.

    What steps put between them, or behind the last, takes the one and gives the other.
    """
    given = {value for _, value in trunk.scopes[unit].outputs}
    ends = {m.value for m in trunk.maps(parts[-1])}
    for one, other in itertools.pairwise(parts):
        linked = not {m.value for m in trunk.maps(one)}.isdisjoint(trunk.scopes[other].inputs)
        if not linked and not any(one < child < other for child in added):
            return False
    if not ends.isdisjoint(given) or any(child > parts[-1] for child in added):
        return True
    tail = [child for child in trunk.children[unit] if child > parts[-1]]  # a norm behind the blocks
    return bool(tail) and not given.isdisjoint(value for _, value in trunk.scopes[tail[-1]].outputs)


def first_stage(trunk: Trunk, rungs: Sequence[Rung], hung: Collection[str]) -> int:
    """Return the position of the unit with which the first stage begins.

    Before it come single layers, and what stands elsewhere than the stages do.
    """
    own = {i: rung for i, rung in enumerate(rungs) if trunk.scopes[rung.unit].path not in hung}
    own = own or dict(enumerate(rungs))
    home = _home(trunk, list(own.values()))
    inside = [i for i, rung in own.items() if trunk.scopes[rung.unit].parent == home]
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


def block_maps(trunk: Trunk, units: Sequence[int], stride: int, hung: Collection[str]) -> tuple[Map, ...]:
    """List the maps that the blocks of some units give at a stride, but not what steps hung behind them.

    A single layer that steps down before blocks of several layers is none of them.
    """
    own = [unit for unit in units if trunk.scopes[unit].path not in hung]
    blocks = [b for unit in own for b in blocks_of(trunk, unit, hung) if is_block(trunk, b)]
    deep = [block for block in blocks if trunk.depth(block) > 1] or blocks
    return tuple(m for block in deep for m in trunk.maps(block) if m.stride == stride)

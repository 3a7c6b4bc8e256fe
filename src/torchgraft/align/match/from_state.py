"""Pair the layers of a plain state dict with the places of a model that is at hand.

The model tells what runs, in which order, and what part each layer plays; the state dict
tells shapes, names and the order in which its layers were registered. Blocks are paired
first, by what they hold; in a block what is alone of its shape is certain; the rest goes by
the part that it plays, by its name, or by its order, and the statistics of normalisations
can deny it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from torchgraft.align.alignment import Shape
from torchgraft.align.match.places import Place, Places
from torchgraft.align.match.sequence import aligned
from torchgraft.align.match.structure import Proposal
from torchgraft.align.match.twins import told_by_names
from torchgraft.align.match.units import Unit, role_of, units_of, words

Label = tuple[object, ...]

# As many layers make a block; what holds fewer is a part of one.
_BLOCK = 4


@attrs.define(eq=False)
class _Item:
    """A layer on either side: what it has to have in common, its name, its part."""

    number: int
    label: Label
    name: str
    role: str
    block: tuple[str, ...] = ()


def proposed_from(
    shapes: Mapping[str, Shape], target: Places
) -> tuple[list[Unit], dict[int, Proposal]]:
    """Pair the places of a model with the layers of a state dict.

    Args:
        shapes: shapes of the tensors of the state dict, by name.
        target: places of the model.

    Returns:
        The layers of the state dict, and for places of the model which of them they are.
    """
    units = units_of(shapes)
    ours = [_Item(i, unit.label, unit.name, unit.role) for i, unit in enumerate(units)]
    live = [n for n in target.live() if target.places[n].slots]
    theirs = [_Item(n, label_of(target, n), target.keys(n)[0], _part(target, n)) for n in live]
    _mark_blocks(ours)
    _mark_blocks(theirs)
    made: dict[int, Proposal] = {}
    for mine, yours in _groups(ours, theirs):
        _pair(mine, yours, made)
    return units, made


def label_of(target: Places, number: int) -> Label:
    """Say of a place what can be said of a layer in a state dict."""
    place = target.places[number]
    shapes = place.shapes
    if place.kind in ("linear", "conv") and "w" in shapes:
        wide, *rest = shapes["w"]  # type: ignore[misc]  # a shape
        each = 1
        for size in rest:
            each *= size
        return ("w", wide, each)
    if place.kind == "norm":
        return ("n", shapes.get("w") or shapes.get("m"))
    if place.kind == "affine" and "b" in shapes:
        return ("a", shapes["w"])
    key = target.keys(number)[0]
    return ("p", target.operands.shape(key))


def _part(target: Places, number: int) -> str:
    """Say what a layer does in attention: the left of the scores, the right, or what is mixed."""
    for other in range(number + 1, len(target.places)):
        place = target.places[other]
        for parent, side in place.parents:
            if parent == number and place.kind == "product":
                if side == "l":
                    return "q"
                left = next((p for p, s in place.parents if s == "l"), -1)
                return "v" if left >= 0 and _scores(target, left) else "k"
    return ""


def _scores(target: Places, number: int) -> bool:
    place = target.places[number]
    return place.kind == "product" or (
        place.kind == "add" and any(_scores(target, parent) for parent, _ in place.parents)
    )


def _mark_blocks(items: Sequence[_Item]) -> None:
    """Give every layer the block that it stands in: the innermost numbered part that is large enough."""
    sizes: Counter[tuple[str, ...]] = Counter()
    ways = []
    for item in items:
        split = words(item.name)
        prefixes = [split[: i + 1] for i, word in enumerate(split) if word.isdigit()]
        ways.append(prefixes)
        sizes.update(prefixes)
    for item, prefixes in zip(items, ways, strict=True):
        item.block = next((p for p in reversed(prefixes) if sizes[p] >= _BLOCK), ())


def _groups(ours: list[_Item], theirs: list[_Item]) -> list[tuple[list[_Item], list[_Item]]]:
    """Pair blocks by what they hold, in order; what stands in no block is one group."""
    mine, yours = _blocks(ours), _blocks(theirs)
    tokens = [
        [tuple(sorted(Counter(map(_written, block)).items())) for block in side] for side in (mine, yours)
    ]
    pairs = aligned(tokens[0], tokens[1], lambda i, j: float(tokens[0][i] == tokens[1][j]))
    if len(pairs) < max(len(mine), len(yours)) or tokens[0] != tokens[1]:
        return [(ours, theirs)]
    rest = [item for item in ours if not item.block], [item for item in theirs if not item.block]
    return [*((mine[i], yours[j]) for i, j in pairs), rest]


def _written(item: _Item) -> str:
    return str(item.label)


def _blocks(items: list[_Item]) -> list[list[_Item]]:
    blocks: dict[tuple[str, ...], list[_Item]] = {}
    for item in items:
        if item.block:
            blocks.setdefault(item.block, []).append(item)
    return list(blocks.values())


def _pair(ours: list[_Item], theirs: list[_Item], made: dict[int, Proposal]) -> None:
    """Pair the layers of two blocks that are the same block."""
    for label in dict.fromkeys(item.label for item in theirs):
        mine = [item for item in ours if item.label == label]
        yours = [item for item in theirs if item.label == label]
        if len(mine) == len(yours) == 1:
            made[yours[0].number] = Proposal(mine[0].number, "shape")
            continue
        if not mine:
            continue
        told = _by_role(mine, yours)
        rule = "role"
        if len(told) < len(yours):
            left = [i for i in mine if i.number not in told.values()], [i for i in yours if i.number not in told]
            more, rule = _by_name(*left)
            told.update(more)
        others = tuple(item.number for item in mine)
        for item in yours:
            if item.number in told:
                made[item.number] = Proposal(told[item.number], rule)
            else:
                made[item.number] = Proposal(mine[0].number, "order", others)


def _by_role(ours: list[_Item], theirs: list[_Item]) -> dict[int, int]:
    told = {}
    for role in "qkv":
        mine, yours = ([i for i in side if i.role == role] for side in (ours, theirs))
        if len(mine) == len(yours) == 1:
            told[yours[0].number] = mine[0].number
    return told


def _by_name(ours: list[_Item], theirs: list[_Item]) -> tuple[dict[int, int], str]:
    if len(ours) != len(theirs):
        return {}, "order"
    told = told_by_names([(i.name,) for i in ours], [(i.name,) for i in theirs])
    if told is not None:
        return {t.number: ours[s].number for t, s in zip(theirs, told, strict=True)}, "names"
    return {t.number: s.number for s, t in zip(ours, theirs, strict=True)}, "order"

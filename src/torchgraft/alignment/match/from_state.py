"""Pair the layers of a plain state dict with the places of a model that is at hand.

The model tells what runs, in which order, and what part each layer plays; the state dict
tells shapes, names and the order in which its layers were registered. Blocks are paired
first, by what they hold; in a block what is alone of its shape is certain; the rest goes by
the part that it plays, by its name, or by its order, and the statistics of normalisations
can deny it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import attrs
import torch

from torchgraft.alignment.alignment import Shape
from torchgraft.alignment.match.naming import Item, Label, Pairing, in_order
from torchgraft.alignment.match.places import Places
from torchgraft.alignment.match.sequence import aligned
from torchgraft.alignment.match.structure import RELATED, Proposal
from torchgraft.alignment.match.units import Unit, layer_of, role_of, units_of, words

# From the most certain to the least.
_RULES = ("shape", "neighbour", "role", "names", "order")
# As many layers make a block; what holds fewer is a part of one.
_BLOCK = 4


def proposed_from(
    shapes: Mapping[str, Shape], target: Places, change: Callable[[str], str] | None = None
) -> tuple[list[Unit], dict[int, Proposal]]:
    """Pair the places of a model with the layers of a state dict.

    Args:
        shapes: shapes of the tensors of the state dict, by name.
        target: places of the model.
        change: what makes names of the state dict the model's, if most are.

    Returns:
        The layers of the state dict, and for places of the model which of them they are.
    """
    parted = _parted(target)
    units = units_of(shapes, Counter(whole_of(target, group) for group in parted.values()))
    ours = [Item(i, unit.label, unit.name, unit.role, i - 1) for i, unit in enumerate(units)]
    theirs = _items(target, parted, units)
    asked = {item.label for item in theirs}
    for item, unit in zip(ours, units, strict=True):
        if item.label not in asked and len(unit.keys) == 1:
            item.label = _as_asked(unit, shapes, asked)
    for item in ours:
        item.name = change(item.name) if change is not None else item.name
    _mark_blocks(ours)
    _mark_blocks(theirs)
    matcher = Pairing()
    matcher.namesakes(ours, theirs)
    groups = _groups(ours, theirs)
    for final in (False, True):  # first what is certain; it teaches what names mean
        matcher.see(ours)
        for mine, yours in groups:
            matcher.pair(mine, yours, final=final)
    made = matcher.made
    layers = [sum(item.label[0] == "w" for item in side) for side in (ours, theirs)]
    paired = sum(item.label[0] == "w" and item.number in made for item in theirs)
    if paired < RELATED * min(layers):
        return units, {}
    taken = {known.source for known in made.values()}
    namesakes = {(item.name, _kind(item)): item for item in ours if item.number not in taken}
    for item in theirs:  # another width under the same name: that is told, and nothing is taken
        one = namesakes.get((item.name, _kind(item)))
        if one is not None and one.label != item.label and item.number not in made:
            made[item.number] = Proposal(one.number, "names")
    for item in theirs:
        if item.parts and item.number in made:
            whole = units[made[item.number].source]
            for part in item.parts:
                units.append(attrs.evolve(whole, rows=target.places[part].rows))
                made[part] = attrs.evolve(made[item.number], source=len(units) - 1)
    joined: dict[int, dict[str, Proposal]] = {}
    for item in theirs:
        if item.slot and item.number in made:
            joined.setdefault(item.owner, {})[item.slot] = made.pop(item.number)
    for owner, slots in joined.items():
        if len(slots) == len(target.places[owner].slots):
            keys = {slot: units[known.source].keys["p0"] for slot, known in slots.items()}
            units.append(Unit("", keys, ("p", ())))
            weakest = max(slots.values(), key=lambda known: _RULES.index(known.rule))
            made[owner] = attrs.evolve(weakest, source=len(units) - 1)
    return units, made


def _kind(item: Item) -> tuple[object, ...]:
    """Say what a layer is, whatever its widths."""
    return item.label[0], item.label[-1] == "bare"


def _as_asked(unit: Unit, shapes: Mapping[str, Shape], asked: set[Label]) -> Label:
    """See a matrix as what the model has: an embedding, or a layer with one output and no bias."""
    ((slot, key),) = unit.keys.items()
    shape = shapes[key]
    table, layer = ("p", unit.label[1:]), ("w", *shape)
    if slot == "w" and table in asked:
        unit.label, unit.keys = table, {"p0": key}
    elif slot == "p0" and len(shape) == 2 and layer in asked:
        unit.label, unit.keys = layer, {"w": key}
    return unit.label


def _parted(target: Places) -> dict[int, list[int]]:
    """Find the layers of the model that do the work of several, by their operation."""
    parted: dict[int, list[int]] = {}
    for n in target.live():
        if target.places[n].rows is not None:
            parted.setdefault(target.places[n].op, []).append(n)
    return parted


def whole_of(target: Places, parts: Sequence[int]) -> Label:
    """Say of a layer that does the work of several what could be said of it if it did not."""
    wide = sum(torch.Size(cast("Shape", target.places[m].shapes["w"]))[0] for m in parts)
    return ("w", wide, label_of(target, parts[0])[-1])


def _items(target: Places, groups: Mapping[int, list[int]], units: Sequence[Unit]) -> list[Item]:
    """List the layers of the model; one that does the work of several is one where that is known."""
    items: list[Item] = []
    order = {key: i for i, key in enumerate(target.operands.offsets)}
    held = Counter(unit.label for unit in units)
    plain = Counter(
        label_of(target, n) for n in target.live() if target.places[n].slots and target.places[n].rows is None
    )
    wholes = Counter(whole_of(target, group) for group in groups.values())
    for n in target.live():
        place = target.places[n]
        if not place.slots:
            continue
        parent = place.parents[0][0] if place.parents else -1
        if len(place.slots) > 1 and "p1" in place.slots:
            for slot, one in place.slots.items():
                for key in target.operands.leaves(one.value)[:1]:
                    shape = target.operands.shape(key)
                    items.append(
                        Item(~len(items), ("p", shape), key, "", slot=slot, owner=n, registered=order[key])
                    )
            continue
        leaves = {slot: target.operands.leaves(one.value) for slot, one in place.slots.items()}
        key = leaves.get("w", next(iter(leaves.values())))[0]
        if len(leaves.get("b", ())) == 1:  # a weight may be another layer's
            key = leaves["b"][0]
        role = _part(target, n) if place.rows is not None else role_of(key) or _part(target, n)
        item = Item(n, label_of(target, n), key, role, parent, registered=order[key])
        item.name = key if item.label[0] == "p" else layer_of(key)
        together = groups.get(place.op, []) if place.rows is not None else []
        if together:
            whole, roles = whole_of(target, together), [_part(target, m) for m in together]
            spare = held[whole] - plain[whole] * all(roles)
            if spare > 0 and (2 * spare >= wholes[whole] or not all(roles)):
                if n != together[0]:
                    continue
                item.label, item.parts, together = whole, tuple(together), []
                item.role = "".join(sorted(roles, key="qkv".find)) if all(roles) else ""
        item.part = bool(together) and not item.role
        items.append(item)
    return items


def label_of(target: Places, number: int) -> Label:
    """Say of a place what can be said of a layer in a state dict."""
    place = target.places[number]
    shapes = place.shapes
    if place.kind in ("linear", "conv") and "w" in shapes:
        shape = torch.Size(cast("Shape", shapes["w"]))
        return ("w", shape[0], shape[1:].numel())
    if place.kind == "norm":
        return ("n", shapes["w"]) if "w" in shapes else ("n", shapes.get("m"), "bare")
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
    if place.kind in ("product", "linear", "conv"):
        return place.kind == "product"
    return any(_scores(target, parent) for parent, _ in place.parents)


def _mark_blocks(items: Sequence[Item]) -> None:
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
    own = Counter(item.block for item in items)
    for item in items:
        item.block = item.block if own[item.block] >= _BLOCK else ()
        item.inner = words(item.name)[len(item.block) :]


def _groups(ours: list[Item], theirs: list[Item]) -> list[tuple[list[Item], list[Item]]]:
    """Pair blocks by what they hold, in order; what stands in no block is one group."""
    mine, yours = sorted(_blocks(ours), key=lambda block: in_order(".".join(block[0].block))), _blocks(theirs)
    tokens = [
        [tuple(sorted(Counter(map(_written, block)).items())) for block in side] for side in (mine, yours)
    ]
    pairs = aligned(tokens[0], tokens[1], lambda i, j: float(tokens[0][i] == tokens[1][j]))
    if len(pairs) < max(len(mine), len(yours)) or tokens[0] != tokens[1]:
        return [(ours, theirs)]
    rest = [item for item in ours if not item.block], [item for item in theirs if not item.block]
    return [*((mine[i], yours[j]) for i, j in pairs), rest]


def _written(item: Item) -> str:
    return str(item.label)


def _blocks(items: list[Item]) -> list[list[Item]]:
    blocks: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        if item.block:
            blocks.setdefault(item.block, []).append(item)
    return list(blocks.values())

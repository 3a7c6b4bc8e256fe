"""Pair the layers of a plain state dict with the places of a model that is at hand.

The model tells what runs, in which order, and what part each layer plays; the state dict
tells shapes, names and the order in which its layers were registered. Blocks are paired
first, by what they hold; in a block what is alone of its shape is certain; the rest goes by
the part that it plays, by its name, or by its order, and the statistics of normalisations
can deny it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from torchgraft.align.alignment import Shape
from torchgraft.align.match.places import Places
from torchgraft.align.match.sequence import aligned
from torchgraft.align.match.structure import RELATED, Proposal
from torchgraft.align.match.twins import told_by_names
from torchgraft.align.match.units import Unit, units_of, words

Label = tuple[object, ...]

# From the most certain to the least.
_RULES = ("shape", "neighbour", "role", "names", "order")
# As many layers make a block; what holds fewer is a part of one.
_BLOCK = 4


@attrs.define(eq=False)
class _Item:
    """A layer on either side: what it has to have in common, its name, its part."""

    number: int
    label: Label
    name: str
    role: str
    beside: int = -1
    block: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    slot: str = ""
    owner: int = -1
    part: bool = False

    @property
    def home(self) -> str:
        """The name of the layer that a tensor belongs to, or its own where it stands alone."""
        return self.name if self.label[0] == "p" else self.name.rpartition(".")[0]


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
    ours = [_Item(i, unit.label, unit.name, unit.role, i - 1) for i, unit in enumerate(units)]
    theirs = _items(target, {item.label for item in ours})
    asked = {item.label for item in theirs}
    for item, unit in zip(ours, units, strict=True):  # an embedding looks like a linear layer
        table = ("p", item.label[1:])
        if item.label[0] == "w" and item.label not in asked and table in asked and set(unit.keys) == {"w"}:
            item.label, unit.keys = table, {"p0": unit.keys["w"]}
            unit.label = table
    _mark_blocks(ours)
    _mark_blocks(theirs)
    matcher = _Pairing()
    matcher.namesakes(ours, theirs)
    groups = _groups(ours, theirs)
    for final in (False, True):  # first what is certain; it teaches what names mean
        for mine, yours in groups:
            matcher.pair(mine, yours, final=final)
    made = matcher.made
    layers = [sum(item.label[0] == "w" for item in side) for side in (ours, theirs)]
    paired = sum(item.label[0] == "w" and item.number in made for item in theirs)
    if paired < RELATED * min(layers):
        return units, {}
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


def _items(target: Places, known: set[Label]) -> list[_Item]:
    """List the layers of the model; one that does the work of several is one where that is known."""
    items: list[_Item] = []
    parted: dict[int, list[int]] = {}
    for n in target.live():
        if target.places[n].rows is not None:
            parted.setdefault(target.places[n].op, []).append(n)
    for n in target.live():
        place = target.places[n]
        if not place.slots:
            continue
        parent = place.parents[0][0] if place.parents else -1
        if len(place.slots) > 1 and "p1" in place.slots:
            for slot, one in place.slots.items():
                for key in target.operands.leaves(one.value)[:1]:
                    shape = target.operands.shape(key)
                    items.append(_Item(~len(items), ("p", shape), key, "", slot=slot, owner=n))
            continue
        item = _Item(n, label_of(target, n), target.keys(n)[0], _part(target, n), parent)
        together = parted.get(place.op, []) if place.rows is not None else []
        wide = sum(len(target.places[m].rows) for m in together)  # type: ignore[arg-type]  # they have rows
        whole = ("w", wide, item.label[-1])
        if together and whole in known and not all(_part(target, m) for m in together):
            if n != together[0]:
                continue
            item.label, item.parts, together = whole, tuple(together), []
        item.part = bool(together) and not item.role
        items.append(item)
    return items


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
    if place.kind in ("product", "linear", "conv"):
        return place.kind == "product"
    return any(_scores(target, parent) for parent, _ in place.parents)


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
    own = Counter(item.block for item in items)
    for item in items:
        item.block = item.block if own[item.block] >= _BLOCK else ()
        item.inner = words(item.name)[len(item.block) :]


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


class _Pairing:
    """Pair the layers of blocks that are the same block."""

    def __init__(self) -> None:
        self.made: dict[int, Proposal] = {}
        self._taken: set[int] = set()
        self._homes: dict[int, tuple[str, ...]] = {}
        self._kinds: dict[int, object] = {}
        self._votes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()

    def namesakes(self, ours: list[_Item], theirs: list[_Item]) -> None:
        """Pair layers of one name, if most have one: the state dict is of the same implementation."""
        named = {(item.name, item.label): item for item in ours}
        same = [(named[i.home, i.label], i) for i in theirs if (i.home, i.label) in named]
        if 2 * len(same) >= min(len(ours), len(theirs)):
            for one, item in same:
                self._set(one, item, "names")

    def pair(self, ours: list[_Item], theirs: list[_Item], *, final: bool) -> None:
        """Pair what is certain; in the end, also what only names and order tell.

        Args:
            ours: layers of a block of the state dict.
            theirs: layers of the same block of the model.
            final: take what is less than certain.
        """
        for label in dict.fromkeys(item.label for item in theirs):
            self._alone(*self._open(ours, theirs, label))
        for label in dict.fromkeys(item.label for item in theirs):
            for tell in (self._by_role, self._by_neighbour, self._by_votes):
                mine, yours = self._open(ours, theirs, label)
                tell(mine, yours)
            self._alone(*self._open(ours, theirs, label))
            if final:
                self._by_name_or_order(*self._open(ours, theirs, label))

    def _open(self, ours: list[_Item], theirs: list[_Item], label: Label) -> tuple[list[_Item], list[_Item]]:
        mine = [item for item in ours if item.label == label and item.number not in self._taken]
        return mine, [item for item in theirs if item.label == label and item.number not in self.made]

    def _set(self, one: _Item, other: _Item, rule: str, others: tuple[int, ...] = ()) -> None:
        self.made[other.number] = Proposal(one.number, rule, others)
        self._taken.add(one.number)
        self._homes[other.number], self._kinds[other.number] = other.block, other.label[0]
        if one.block and rule in ("shape", "neighbour"):
            self._votes[one.inner, other.inner] += 1

    def _inverted(self, label: Label) -> bool:
        """Tell whether layers of a kind are registered in another order than they run in."""
        kept = [
            (self._homes[t], self.made[t].source, t)
            for t in self.made
            if self.made[t].rule == "shape" and t in self._homes and self._kinds[t] == label[0]
        ]
        kept.sort(key=lambda known: (known[0], known[2]))
        return any(a[0] == b[0] and a[0] and a[1] > b[1] for a, b in itertools.pairwise(kept))

    def _doubtful(self, item: _Item) -> bool:
        """Tell whether order says nothing: a part of a layer, a normalisation of one in doubt."""
        before = self.made.get(item.beside)
        return item.part or (item.label[0] == "n" and before is not None and bool(before.others))

    def _alone(self, ours: list[_Item], theirs: list[_Item]) -> None:
        if len(ours) == len(theirs) == 1:
            self._set(ours[0], theirs[0], "shape")

    def _by_role(self, ours: list[_Item], theirs: list[_Item]) -> None:
        for role in "qkv":
            mine, yours = ([i for i in side if i.role == role] for side in (ours, theirs))
            if len(mine) == len(yours) == 1:
                self._set(mine[0], yours[0], "role")

    def _by_neighbour(self, ours: list[_Item], theirs: list[_Item]) -> None:
        """Pair normalisations that follow layers that are paired."""
        for item in theirs:
            before = self.made.get(item.beside)
            if item.label[0] == "n" and before is not None and not before.others:
                after = [one for one in ours if one.beside == before.source]
                if len(after) == 1 and after[0].number not in self._taken:
                    self._set(after[0], item, before.rule if before.rule != "shape" else "neighbour")

    def _by_votes(self, ours: list[_Item], theirs: list[_Item]) -> None:
        """Pair by what names mean in blocks where there is no doubt."""
        told = {}
        for item in theirs:
            known = [one for one in ours if one.block and self._votes[one.inner, item.inner]]
            if len(known) == 1:
                told[item.number] = known[0]
        if len({one.number for one in told.values()}) == len(told):
            for item in theirs:
                if item.number in told:
                    self._set(told[item.number], item, "names")

    def _by_name_or_order(self, ours: list[_Item], theirs: list[_Item]) -> None:
        last = Counter(i.name.rpartition(".")[2] for i in ours)
        for item in list(theirs):
            word = item.name.rpartition(".")[2]
            one = next((i for i in ours if i.name.rpartition(".")[2] == word), None)
            if item.label[0] == "p" and one is not None and last[word] == 1:
                self._set(one, item, "names")
                ours, theirs = [i for i in ours if i is not one], [i for i in theirs if i is not item]
        if len(ours) != len(theirs) or not ours:
            return
        inner = [(".".join(i.inner),) for i in ours], [(".".join(i.inner),) for i in theirs]
        told = told_by_names(*inner)
        rule = "names" if told is not None else "order"
        open_ = told is None and (self._inverted(ours[0].label) or any(self._doubtful(i) for i in theirs))
        others = tuple(i.number for i in ours) if open_ else ()
        for i, item in enumerate(theirs):
            self._set(ours[i if told is None else told[i]], item, rule, others)

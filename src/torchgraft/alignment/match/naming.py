"""Tell layers of one shape apart by the part that they play, by names, and by order."""

from __future__ import annotations

import itertools
from collections import Counter

import attrs

from torchgraft.alignment.match.structure import Proposal
from torchgraft.alignment.match.twins import told_by_names

Label = tuple[object, ...]


@attrs.define(eq=False)
class Item:
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


class Pairing:
    """Pair the layers of blocks that are the same block."""

    def __init__(self) -> None:
        self.made: dict[int, Proposal] = {}
        self._taken: set[int] = set()
        self._homes: dict[int, tuple[str, ...]] = {}
        self._kinds: dict[int, object] = {}
        self._votes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()

    def namesakes(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair layers of one name, if most have one: the state dict is of the same implementation."""
        named = {(item.name, item.label): item for item in ours}
        same = [(named[i.home, i.label], i) for i in theirs if (i.home, i.label) in named]
        if 2 * len(same) >= min(len(ours), len(theirs)):
            for one, item in same:
                self._set(one, item, "names")

    def pair(self, ours: list[Item], theirs: list[Item], *, final: bool) -> None:
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

    def _open(self, ours: list[Item], theirs: list[Item], label: Label) -> tuple[list[Item], list[Item]]:
        mine = [item for item in ours if item.label == label and item.number not in self._taken]
        return mine, [item for item in theirs if item.label == label and item.number not in self.made]

    def _set(self, one: Item, other: Item, rule: str, others: tuple[int, ...] = ()) -> None:
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

    def _crossing(self, ours: list[Item], theirs: list[Item]) -> bool:
        """Tell whether order has some, but not all, of a block overtake a layer that is certain."""
        pairs = list(zip(ours, theirs, strict=True))
        return any(
            len(
                {
                    (one.number - known.source) * (item.number - t) < 0
                    for one, item in pairs
                    if item.block == self._homes[t] != () and self._kinds[t] == item.label[0]
                }
            )
            > 1
            for t, known in self.made.items()
            if known.rule == "shape"
        )

    def _doubtful(self, item: Item) -> bool:
        """Tell whether order says nothing: a part of a layer, a normalisation of one in doubt."""
        before = self.made.get(item.beside)
        return item.part or (item.label[0] == "n" and before is not None and bool(before.others))

    def _alone(self, ours: list[Item], theirs: list[Item]) -> None:
        if len(ours) == len(theirs) == 1:
            self._set(ours[0], theirs[0], "shape")

    def _by_role(self, ours: list[Item], theirs: list[Item]) -> None:
        for role in "qkv":
            mine, yours = ([i for i in side if i.role == role] for side in (ours, theirs))
            if len(mine) == len(yours) == 1:
                self._set(mine[0], yours[0], "role")

    def _by_neighbour(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair normalisations that follow layers that are paired."""
        for item in theirs:
            before = self.made.get(item.beside)
            if item.label[0] == "n" and before is not None and not before.others:
                after = [one for one in ours if one.beside == before.source]
                if len(after) == 1 and after[0].number not in self._taken:
                    self._set(after[0], item, before.rule if before.rule != "shape" else "neighbour")

    def _by_votes(self, ours: list[Item], theirs: list[Item]) -> None:
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

    def _by_name_or_order(self, ours: list[Item], theirs: list[Item]) -> None:
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
        open_ = told is None and (
            self._inverted(ours[0].label)
            or self._crossing(ours, theirs)
            or any(self._doubtful(item) for item in theirs)
        )
        others = tuple(i.number for i in ours) if open_ else ()
        for i, item in enumerate(theirs):
            self._set(ours[i if told is None else told[i]], item, rule, others)

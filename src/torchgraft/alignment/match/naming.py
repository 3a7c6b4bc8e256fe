"""Tell layers of one shape apart by the part that they play, by names, and by order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs

from torchgraft.alignment.entry import Shape
from torchgraft.alignment.match.structure import Proposal
from torchgraft.alignment.match.twins import told_by_names
from torchgraft.alignment.match.units import words

Label = tuple[object, ...]
# Order is believed of so few alike, where it is kept by such a share of the neighbours that are certain.
_FEW, _KEPT = 4, 0.8
# Numbers of names that count leave out no more than that.
_GAP = 16


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
    registered: int = -1


def alike(ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> Callable[[str], str] | None:
    """Say how the names of a state dict become the model's, if a prefix is all that most differ by.

    Args:
        ours: shapes of the state dict, by name.
        theirs: shapes of the model, by name.

    Returns:
        What takes the prefix off a name, or puts it on; ``None`` where most differ by more,
        or several prefixes fit as well.
    """
    votes: Counter[tuple[str, bool]] = Counter()
    for more, side, other in ((True, ours, theirs), (False, theirs, ours)):
        for name, shape in side.items():
            cuts = (at + 1 for at, letter in enumerate(name) if letter == ".")
            votes.update((name[:at], more) for at in (0, *cuts) if other.get(name[at:]) == shape)
    (prefix, more), most = max(votes.items(), key=lambda vote: vote[1], default=(("", True), 0))
    tied = [known for known, count in votes.items() if count == most and known[0]]
    if 2 * most < min(len(ours), len(theirs)) or (prefix and len(tied) > 1):
        return None
    return (lambda name: name.removeprefix(prefix)) if more else (lambda name: prefix + name)


class Pairing:
    """Pair the layers of blocks that are the same block."""

    def __init__(self) -> None:
        self.made: dict[int, Proposal] = {}
        self.kept, self.behind = (0.0, 0.0), False
        self._taken: set[int] = set()
        self._items: dict[int, Item] = {}
        self._votes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()

    def namesakes(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair layers of one name, if most have one: the state dict is of the same implementation."""
        held = Counter((item.name, item.label) for item in ours)  # parts of a layer go by one name
        named = {name: item for item in ours if held[name := (item.name, item.label)] == 1}
        same = [(named[item.name, item.label], item) for item in theirs if (item.name, item.label) in named]
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
        self._items[other.number] = other
        if one.block and rule in ("shape", "neighbour"):
            self._votes[one.inner, other.inner] += 1

    def _crossing(self, ours: list[Item], theirs: list[Item]) -> bool:
        """Tell whether order has some, but not all, of a block overtake a layer that is certain."""
        pairs = list(zip(ours, theirs, strict=True))
        return any(
            len(
                {
                    (one.number - known.source) * (item.number - t) < 0
                    for one, item in pairs
                    if item.block == self._items[t].block != () and self._items[t].label[0] == item.label[0]
                }
            )
            > 1
            for t, known in self.made.items()
            if known.rule == "shape"
        )

    def _ordered(self, ours: list[Item], theirs: list[Item]) -> bool:
        """Tell whether order says which is which: names count, or it is kept by what is certain."""
        doubtful = any(self._doubtful(item, one) for one, item in zip(ours, theirs, strict=True))
        backwards = any(a.registered > b.registered for a, b in itertools.pairwise(theirs))
        steps = _steps(ours)
        counted = all(step is None or 0 < step <= _GAP for step in steps)
        if doubtful or not counted or (backwards and self.kept[0] <= self.kept[1]):
            return False
        runs = [len(list(some)) for words, some in itertools.groupby(step is None for step in steps) if words]
        few = max(runs, default=0) < _FEW and self.kept[0] >= _KEPT
        return (few or not runs) and not self._crossing(ours, theirs)

    def see(self, ours: Sequence[Item]) -> None:
        """See how far a state dict is in order: its norms, and what is certain.

        Args:
            ours: all layers of the state dict.
        """
        norms = [both for both in itertools.pairwise(ours) if both[1].label[0] == "n"]
        behind = [(one.label[0], one.label[1:2]) == ("w", norm.label[1]) for one, norm in norms]
        on = [(_steps(list(both))[0] or 1) > 0 for both in norms]
        self.behind = sum(map(min, behind, on)) >= _KEPT * len(norms)
        names = [item.name for item in ours]
        if names == sorted(names):  # by the alphabet, as in a file
            return
        certain = [t for t in sorted(self._items) if self.made[t].rule == "shape"]
        firm = [t for t in certain if self._items[t].label[0] != "p"]  # those stand before all layers
        kept = []
        for ordered in (firm, sorted(firm, key=lambda t: self._items[t].registered)):
            steps = [self.made[a].source < self.made[b].source for a, b in itertools.pairwise(ordered)]
            kept.append(sum(steps) / len(steps) if len(steps) >= _FEW else 0.0)
        self.kept = kept[0], kept[1]

    def _doubtful(self, item: Item, one: Item) -> bool:
        """Tell whether order says nothing: a part of a layer or of attention, a norm of one in doubt."""
        before = self.made.get(item.beside)
        part = item.part or (item.label[0] == "w" and len(item.role) == 1 and item.role != one.role)
        return part or (item.label[0] == "n" and before is not None and bool(before.others))

    def _alone(self, ours: list[Item], theirs: list[Item]) -> None:
        if len(ours) == len(theirs) == 1:
            self._set(ours[0], theirs[0], "shape")

    def _by_role(self, ours: list[Item], theirs: list[Item]) -> None:
        for role in {item.role for item in theirs} - {""}:
            mine, yours = ([i for i in side if i.role == role] for side in (ours, theirs))
            if len(mine) == len(yours) == 1:
                self._set(mine[0], yours[0], "role")

    def _by_neighbour(self, ours: list[Item], theirs: list[Item]) -> None:
        """Pair normalisations that follow layers that are paired."""
        for item in theirs:
            before = self.made.get(item.beside)
            if item.label[0] == "n" and self.behind and before is not None and not before.others:
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
        told = {item.role for item in ours} & {item.role for item in theirs}
        for role in sorted(told - {""}):
            self._by_order(*([item for item in side if item.role == role] for side in (ours, theirs)))
        self._by_order(*([item for item in side if item.role not in told - {""}] for side in (ours, theirs)))

    def _by_order(self, ours: list[Item], theirs: list[Item]) -> None:
        if len(ours) != len(theirs) or not ours:
            return
        inner = [(".".join(i.inner),) for i in ours], [(".".join(i.inner),) for i in theirs]
        told = told_by_names(*inner) or _told_by_numbers(ours, theirs)
        rule = "names" if told is not None else "order"
        open_ = told is None and not self._ordered(ours, theirs)
        others = tuple(i.number for i in ours) if open_ else ()
        for i, item in enumerate(theirs):
            self._set(ours[i if told is None else told[i]], item, rule, others)


def _steps(items: list[Item]) -> list[int | None]:
    """Return how far names count from each layer to the next; ``None`` where they differ by words."""
    steps: list[int | None] = []
    for one, other in itertools.pairwise(items):
        pairs = zip(words(one.name), words(other.name), strict=False)
        a, b = next(((a, b) for a, b in pairs if a != b), ("", ""))
        steps.append(int(b) - int(a) if a.isdigit() and b.isdigit() else None)
    return steps


def in_order(name: str) -> list[tuple[bool, str]]:
    """Return a key by which names are sorted that count."""
    return [(word.isdigit(), word.zfill(9) if word.isdigit() else word) for word in words(name)]


def _told_by_numbers(ours: list[Item], theirs: list[Item]) -> list[int] | None:
    """Pair layers of which both sides count alike, the model as it runs."""
    order = sorted(range(len(ours)), key=lambda i: in_order(ours[i].name))
    steps = _steps([ours[i] for i in order])
    return order if steps == _steps(theirs) and all(step is not None and step > 0 for step in steps) else None

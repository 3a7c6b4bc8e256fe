"""The two trees of modules laid over each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

import attrs

from torchgraft.show.difference.facts import Facts, Look, Reading, joined
from torchgraft.show.difference.pairing import Pairs
from torchgraft.show.difference.tensors import Keys, TensorDiff
from torchgraft.text import write_dims

_Counts = Counter[tuple[str, str, str]]
_Child = tuple[str | None, str | None]


@attrs.frozen
class Change:
    """One thing that differs at a module.

    Args:
        aspect: ``"class"``, ``"option"``, ``"tensor"``, ``"tied"``, ``"shape"``, ``"calls"`` or ``"shared"``.
        name: which option or tensor; empty for the others.
        before: how it was; empty where there was none.
        after: how it is; empty where there is none.
    """

    aspect: str
    name: str
    before: str
    after: str


@attrs.frozen
class Spread:
    """One thing that differs in many places of a module and of those below it.

    Args:
        aspect: ``"mode"`` of modules; ``"gradient"``, ``"dtype"``, ``"device"`` or ``"values"`` of tensors.
        before: how it was.
        after: how it is.
        changed: in how many places.
        of: in how many it could have.
        here: whether it differs wherever it can, and in more than one of the modules right below.
    """

    aspect: str
    before: str
    after: str
    changed: int
    of: int
    here: bool

    def quiet(self) -> bool:
        """Tell whether it is counted where it is found here and there, and not followed to each place."""
        return self.aspect in ("mode", "values")


@attrs.frozen
class ModuleDiff:
    """A module in the two models.

    Args:
        status: ``"same"``, ``"added"``, ``"removed"``, ``"changed"`` or ``"moved"``; of itself,
            whatever is below it.
        before: how it stands in the one; ``None`` where it is new.
        after: how it stands in the other; ``None`` where it is gone, or shown where it went.
        changes: what differs at the module itself.
        spread: what differs at it and below it.
        touched: whether it or something below it is not the same, but for what is spread evenly.
        under: the modules below it.
    """

    status: str
    before: Look | None
    after: Look | None
    changes: tuple[Change, ...] = ()
    spread: tuple[Spread, ...] = ()
    touched: bool = False
    under: tuple[ModuleDiff, ...] = ()

    @property
    def look(self) -> Look:
        """How it stands now, or how it stood."""
        look = self.after or self.before
        assert look is not None
        return look

    @property
    def path(self) -> str:
        """Where it stands now, or where it stood."""
        return self.look.path

    def walk(self) -> Iterator[ModuleDiff]:
        """Yield it and all modules below it."""
        yield self
        for child in self.under:
            yield from child.walk()


def tree_of(before: Reading, after: Reading, pairs: Pairs, tensors: Mapping[Keys, TensorDiff]) -> ModuleDiff:
    """Lay two models over each other.

    Args:
        before: one model.
        after: the other.
        pairs: which module is which.
        tensors: what differs between their tensors.

    Returns:
        The pair of the two roots, with all modules below it.
    """
    return _Builder(before, after, pairs, tensors).node("", "")[0]


class _Builder:
    def __init__(
        self, before: Reading, after: Reading, pairs: Pairs, tensors: Mapping[Keys, TensorDiff]
    ) -> None:
        self._before, self._after, self._pairs = before, after, pairs
        self._tensors = tensors

    def node(self, old: str | None, new: str | None) -> tuple[ModuleDiff, _Counts, _Counts]:
        """Make the line of a module; count what differs in it and what could."""
        a = self._before.facts[old] if old is not None else None
        b = self._after.facts[new] if new is not None else None
        was, now = a.look if a else None, b.look if b else None
        changed: _Counts = Counter()
        could: _Counts = Counter()
        if old is not None and self._pairs.there.get(old) is not None and b is None:
            gone = Change("moved", "", old, self._pairs.there[old])  # shown where it went
            return ModuleDiff("moved", was, None, (gone,), (), touched=True), changed, could
        changes: tuple[Change, ...] = ()
        if a is not None and b is not None:
            changes = tuple(self._changes(a, b))
            self._count(a, b, changed, could)
        under = []
        for pair in self._merged(old, new):
            child, more, might = self.node(*pair)
            under.append(child)
            changed += more
            could += might
        spread = tuple(_spread(changed, could, under))
        status = self._status(old, new, changes)
        uneven = any(item.changed < item.of and not item.quiet() for item in spread)
        touched = status != "same" or uneven or any(child.touched for child in under)
        line = ModuleDiff(status, was, now, changes, spread, touched, tuple(under))
        return line, changed, could

    def _status(self, old: str | None, new: str | None, changes: tuple[Change, ...]) -> str:
        if old is None or new is None:
            return "added" if old is None else "removed"
        if old and (_name(old) != _name(new) or self._pairs.there.get(_parent(old)) != _parent(new)):
            return "moved"
        return "changed" if changes else "same"

    def _merged(self, old: str | None, new: str | None) -> Iterator[_Child]:
        """Yield the children of both in one order; a pair under both stands in one line."""
        was = list(self._before.children(old).values()) if old is not None else []
        now = list(self._after.children(new).values()) if new is not None else []
        here = {self._pairs.back[path] for path in now if path in self._pairs.back} & set(was)
        left = [(path, self._pairs.there[path]) if path in here else (path, None) for path in was]
        right = [(self._pairs.back.get(path), path) for path in now]
        for tag, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            # A pair in another order stands where it stands now.
            yield from (pair for pair in left[i:j] if tag != "equal" and pair[1] is None)
            yield from right[k:m]

    def _changes(self, a: Facts, b: Facts) -> Iterator[Change]:
        if a.home != b.home:
            short = a.look.kind != b.look.kind
            yield Change("class", "", a.look.kind if short else a.home, b.look.kind if short else b.home)
        else:
            yield from _options(a, b)
        yield from self._own_tensors(a, b)
        if bool(a.look.shared) != bool(b.look.shared) or (
            a.look.shared and self._pairs.there.get(a.look.shared) != b.look.shared
        ):
            yield Change("shared", "", a.look.shared, b.look.shared)
        ran = not (self._before.effort.unknown or self._after.effort.unknown)
        if ran and a.look.shape != b.look.shape:
            yield Change("shape", "", a.look.shape or "not called", b.look.shape or "not called")
        yield from self._calls(a, b)

    def _own_tensors(self, a: Facts, b: Facts) -> Iterator[Change]:
        for name in dict.fromkeys((*a.tensors, *b.tensors)):
            old = joined(a.look.path, name) if name in a.tensors else None
            new = joined(b.look.path, name) if name in b.tensors else None
            diff = self._tensors[old, new]
            was, now = diff.before, diff.after
            if was is None or now is None or {"shape", "role"} & set(diff.changed):
                role = was is not None and now is not None and was.role != now.role
                texts = [_tensor(t.shape, t.role if role else "") if t else "" for t in (was, now)]
                yield Change("tensor", name, *texts)
            if was and now and "tied" in diff.changed:
                yield Change("tied", name, ", ".join(was.tied), ", ".join(now.tied))

    def _calls(self, a: Facts, b: Facts) -> Iterator[Change]:
        """Tell what the forward calls now and did not before, where that is known."""
        new = self._after.outline.nodes.get(b.look.path)
        first = self._after.history.outline
        known = first.nodes if first is not None and a.home == b.home else {}
        old = self._before.outline.nodes.get(a.look.path, known.get(a.look.path))
        if new is not None and old is not None and set(new) != set(old):
            short = len(joined(b.look.path, ""))
            gone = [name[short:] for name in old if name not in set(new)]
            more = [name[short:] for name in new if name not in set(old)]
            yield Change("calls", "", ", ".join(gone), ", ".join(more))

    def _count(self, a: Facts, b: Facts, changed: _Counts, could: _Counts) -> None:
        def seen(aspect: str, was: str, now: str, *, differs: bool | None = None) -> None:
            could[aspect, was, ""] += 1
            if differs if differs is not None else was != now:
                changed[aspect, was, now] += 1

        if not b.look.shared:
            seen("mode", _mode(a), _mode(b))
        for name in b.tensors if not b.look.shared else ():
            diff = self._tensors.get((joined(a.look.path, name), joined(b.look.path, name)))
            if diff is None or diff.before is None or diff.after is None:
                continue
            was, now = diff.before, diff.after
            if was.role == now.role == "parameter":
                seen("gradient", _gradient(was.trainable), _gradient(now.trainable))
            seen("dtype", was.dtype, now.dtype)
            seen("device", was.device, now.device)
            if diff.values is not None:
                seen("values", "", "", differs=diff.values)


def _spread(changed: _Counts, could: _Counts, under: Sequence[ModuleDiff]) -> Iterator[Spread]:
    below = {(i.aspect, i.before, i.after, i.changed) for child in under for i in child.spread}
    for (aspect, was, now), number in sorted(changed.items()):
        of = could[aspect, was, ""]
        here = number == of and (aspect, was, now, number) not in below
        yield Spread(aspect, was, now, number, of, here)


def _options(a: Facts, b: Facts) -> Iterator[Change]:
    told = False
    for name in dict.fromkeys((*a.attributes, *b.attributes)):
        was, now = a.attributes.get(name, "None"), b.attributes.get(name, "None")
        if was != now:
            told = True
            yield Change("option", name, was[:200], now[:200])
    if not told and a.look.options != b.look.options:
        yield Change("option", "", a.look.options, b.look.options)


def _mode(facts: Facts) -> str:
    return "train" if facts.module.training else "eval"


def _gradient(trainable: bool) -> str:
    return "trainable" if trainable else "frozen"


def _tensor(shape: tuple[int, ...], role: str) -> str:
    return " ".join(filter(None, (write_dims(shape), role)))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _name(path: str) -> str:
    return path.rpartition(".")[2]

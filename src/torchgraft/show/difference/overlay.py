"""The modules and tensors of two models laid over each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

import attrs
import torch

from torchgraft.paths import join_path, last_of, parent_of
from torchgraft.show.difference.matching import Pairs, differ
from torchgraft.show.difference.snapshot import Look, Part, Snapshot, TensorLook
from torchgraft.text import write_dims

_Counts = Counter[tuple[str, str, str]]


@attrs.frozen
class TensorDiff:
    """A parameter or a buffer in the two models.

    Args:
        before: in the one; ``None`` where it is new.
        after: in the other; ``None`` where it is gone.
        values: whether the values differ; ``None`` where they cannot be compared.
        changed: names of the fields that differ, ``"values"`` among them.
    """

    before: TensorLook | None
    after: TensorLook | None
    values: bool | None = None
    changed: tuple[str, ...] = ()


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
        """Return True if it is counted where it is found here and there, and not followed to each place."""
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


def compare_models(before: Snapshot, after: Snapshot) -> tuple[ModuleDiff, tuple[TensorDiff, ...]]:
    """Lay two models over each other: the pair of the roots, and the tensors that differ."""
    pairs = Pairs(before, after)
    tensors = _compare_tensors(before, after, pairs)
    differing = tuple(t for t in tensors.values() if t.changed or t.before is None or t.after is None)
    return _Comparison(before, after, pairs, tensors).compare("", "")[0], differing


_Tensors = Mapping[tuple[str, str], TensorDiff]
"""Tensors by their two keys; the key is empty where there is none."""


def _compare_tensors(before: Snapshot, after: Snapshot, pairs: Pairs) -> _Tensors:
    partners = {
        join_path(old, name): join_path(new, name)
        for old, new in pairs.there.items()
        for name in before.parts[old].tensors
        if name in after.parts[new].tensors
    }
    taken = set(partners.values())
    keys = [(old, partners.get(old, "")) for old in before.tensors]
    keys += [("", new) for new in after.tensors if new not in taken]
    return {
        (old, new): _compare(before.tensors.get(old), after.tensors.get(new), partners) for old, new in keys
    }


def _compare(
    before: tuple[TensorLook, torch.Tensor] | None,
    after: tuple[TensorLook, torch.Tensor] | None,
    partners: Mapping[str, str],
) -> TensorDiff:
    if before is None or after is None:
        return TensorDiff(before and before[0], after and after[0])
    (was, a), (now, b) = before, after
    fields = ("key", "role", "shape", "dtype", "device", "trainable")
    changed = [name for name in fields if getattr(was, name) != getattr(now, name)]
    changed += ["tied"] * ({partners.get(key, key) for key in was.tied} != set(now.tied))
    values = differ(a, b) if (was.shape, was.dtype) == (now.shape, now.dtype) else None
    return TensorDiff(was, now, values, (*changed, *["values"] * bool(values)))


class _Comparison:
    def __init__(self, before: Snapshot, after: Snapshot, pairs: Pairs, tensors: _Tensors) -> None:
        self._before, self._after, self._pairs = before, after, pairs
        self._tensors = tensors

    def compare(self, old: str | None, new: str | None) -> tuple[ModuleDiff, _Counts, _Counts]:
        """Compare a module and those below it; count what differs in it and what could."""
        a = self._before.parts[old] if old is not None else None
        b = self._after.parts[new] if new is not None else None
        was, now = a.look if a else None, b.look if b else None
        changed: _Counts = Counter()
        could: _Counts = Counter()
        if old is not None and old in self._pairs.there and b is None:
            gone = Change("moved", "", old, self._pairs.there[old])  # shown where it went
            return ModuleDiff("moved", was, None, (gone,), (), touched=True), changed, could
        changes: tuple[Change, ...] = ()
        if a is not None and b is not None:
            changes = tuple(self._changes(a, b))
            self._count(a, b, changed, could)
        under = []
        for pair in self._merge_children(old, new):
            child, more, might = self.compare(*pair)
            under.append(child)
            changed += more
            could += might
        spread = tuple(_spread_of(changed, could, under))
        status = self._status_of(old, new, changes)
        uneven = any(item.changed < item.of and not item.quiet() for item in spread)
        touched = status != "same" or uneven or any(child.touched for child in under)
        return ModuleDiff(status, was, now, changes, spread, touched, tuple(under)), changed, could

    def _status_of(self, old: str | None, new: str | None, changes: tuple[Change, ...]) -> str:
        if old is None or new is None:
            return "added" if old is None else "removed"
        if old and (last_of(old) != last_of(new) or self._pairs.there.get(parent_of(old)) != parent_of(new)):
            return "moved"
        return "changed" if changes else "same"

    def _merge_children(self, old: str | None, new: str | None) -> Iterator[tuple[str | None, str | None]]:
        """Yield the children of both in one order; a pair under both stands in one line."""
        there, back = self._pairs.there, self._pairs.back
        was = list(self._before.children(old).values()) if old is not None else []
        now = list(self._after.children(new).values()) if new is not None else []
        left = [(path, there[path]) if there.get(path) in now else (path, None) for path in was]
        right = [(back.get(path), path) for path in now]
        for tag, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            # A pair in another order stands where it stands now.
            yield from (pair for pair in left[i:j] if tag != "equal" and pair[1] is None)
            yield from right[k:m]

    def _changes(self, a: Part, b: Part) -> Iterator[Change]:
        if a.home != b.home:
            short = a.look.kind != b.look.kind
            yield Change("class", "", a.look.kind if short else a.home, b.look.kind if short else b.home)
        else:
            yield from _changed_options(a, b)
        yield from self._changed_tensors(a, b)
        if self._pairs.there.get(a.look.shared, "") != b.look.shared if a.look.shared else b.look.shared:
            yield Change("shared", "", a.look.shared, b.look.shared)
        ran = not (self._before.costs.unknown or self._after.costs.unknown)
        if ran and a.look.shape != b.look.shape:
            yield Change("shape", "", a.look.shape or "not called", b.look.shape or "not called")
        yield from self._changed_calls(a, b)

    def _changed_tensors(self, a: Part, b: Part) -> Iterator[Change]:
        for name in dict.fromkeys((*a.tensors, *b.tensors)):
            old = join_path(a.look.path, name) if name in a.tensors else ""
            new = join_path(b.look.path, name) if name in b.tensors else ""
            diff = self._tensors[old, new]
            was, now = diff.before, diff.after
            if was is None or now is None or {"shape", "role"} & set(diff.changed):
                roles = "role" in diff.changed
                texts = [f"{write_dims(t.shape)} {t.role * roles}".strip() if t else "" for t in (was, now)]
                yield Change("tensor", name, *texts)
            if was and now and "tied" in diff.changed:
                yield Change("tied", name, ", ".join(was.tied), ", ".join(now.tied))

    def _changed_calls(self, a: Part, b: Part) -> Iterator[Change]:
        """Tell what the forward calls now and did not before, where that is known."""
        new = self._after.outline.nodes.get(b.look.path)
        first = self._after.history.outline
        known = first.nodes if first is not None and a.home == b.home else {}
        old = self._before.outline.nodes.get(a.look.path, known.get(a.look.path))
        if new is not None and old is not None and set(new) != set(old):
            short = len(b.look.path) + 1 if b.look.path else 0
            gone, more = (", ".join(n[short:] for n in a if n not in b) for a, b in ((old, new), (new, old)))
            yield Change("calls", "", gone, more)

    def _count(self, a: Part, b: Part, changed: _Counts, could: _Counts) -> None:
        def see(aspect: str, was: str, now: str, *, differs: bool = False) -> None:
            could[aspect, was, ""] += 1
            if differs or was != now:
                changed[aspect, was, now] += 1

        if b.look.shared:
            return
        see("mode", _mode_of(a), _mode_of(b))
        for name in b.tensors:
            diff = self._tensors.get((join_path(a.look.path, name), join_path(b.look.path, name)))
            if diff is None or diff.before is None or diff.after is None:
                continue
            was, now = diff.before, diff.after
            if was.role == now.role == "parameter":
                grades = ["trainable" if look.trainable else "frozen" for look in (was, now)]
                see("gradient", *grades)
            see("dtype", was.dtype, now.dtype)
            see("device", was.device, now.device)
            if diff.values is not None:
                see("values", "", "", differs=diff.values)


def _spread_of(changed: _Counts, could: _Counts, under: Sequence[ModuleDiff]) -> Iterator[Spread]:
    below = {(i.aspect, i.before, i.after, i.changed) for child in under for i in child.spread}
    for (aspect, was, now), number in sorted(changed.items()):
        of = could[aspect, was, ""]
        here = number == of and (aspect, was, now, number) not in below
        yield Spread(aspect, was, now, number, of, here)


def _changed_options(a: Part, b: Part) -> Iterator[Change]:
    told = False
    for name in dict.fromkeys((*a.attributes, *b.attributes)):
        was, now = a.attributes.get(name, "None"), b.attributes.get(name, "None")
        if was != now:
            told = True
            yield Change("option", name, was[:200], now[:200])
    if not told and a.look.options != b.look.options:
        yield Change("option", "", a.look.options, b.look.options)


def _mode_of(part: Part) -> str:
    return "train" if part.module.training else "eval"

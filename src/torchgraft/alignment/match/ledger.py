"""Turn paired places into entries: which elements of which tensor each target tensor takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from torchgraft.alignment.alignment import Ambiguity, Entry, Mismatch, Part, Shape
from torchgraft.alignment.entry import squeezed
from torchgraft.alignment.maps.pieces import summarise
from torchgraft.alignment.match.behaviour import Seen
from torchgraft.alignment.match.kinds import Slot
from torchgraft.alignment.match.operands import UNKNOWN, ZERO, Operand, Operands
from torchgraft.alignment.match.places import Place, Places

_UNSET = -3
# Rules and evidence, the weakest first.
_RULES = ("order", "names", "role", "neighbour", "shape", "place", "input")
_EVIDENCE = ("names", "contradicted", "structure", "behaviour")


@attrs.define
class _Draft:
    """What is known of one target tensor so far."""

    whole: str = ""
    labels: torch.Tensor | None = None
    rules: dict[str, None] = attrs.field(factory=dict)
    evidence: set[str] = attrs.field(factory=set)
    clash: set[str] = attrs.field(factory=set)
    sources: dict[str, None] = attrs.field(factory=dict)


class Ledger:
    """Collect where the elements of target tensors come from.

    Args:
        source: places of the source.
        target: places of the target.
        shapes: shapes of the tensors of the source and of the target.
    """

    def __init__(
        self, source: Places, target: Places, shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]]
    ) -> None:
        self._source, self._target = source, target
        self._shapes = shapes
        offsets = source.operands.offsets  # tensors without elements start where the next does
        self._names = [key for key in offsets if _count(shapes[0][key])]
        self._starts = torch.tensor([offsets[key] for key in self._names])
        self._drafts: dict[str, _Draft] = {}
        self._unpaired: set[str] = set()
        self._made: dict[str, Entry | None] = {}
        self.mismatched: dict[str, Mismatch] = {}
        self.ambiguous: dict[str, Ambiguity] = {}

    def enter_all(self, pairs: Mapping[int, Seen]) -> None:
        """Enter all pairs that there are.

        Args:
            pairs: for places of the target what they stand for.
        """
        self._unpaired = self._target.used(n for n in self._target.live() if n not in pairs)
        for number, seen in pairs.items():
            self.enter(number, seen)

    def restate(self, pairs: Mapping[int, Seen]) -> None:
        """Take for the same pairs other rules and evidence.

        Args:
            pairs: the pairs that were entered.
        """
        for draft in self._drafts.values():
            draft.rules.clear()
            draft.evidence.clear()
        for number, seen in pairs.items():
            for key in self._target.keys(number):
                if key in self._drafts:
                    self._draft(key, seen)

    def enter(self, number: int, seen: Seen) -> None:
        """Enter a pair of places."""
        place, other = self._target.places[number], self._source.places[seen.source]
        for name, slot in place.slots.items():
            there = other.slots.get(name)
            to = self._target.operands.of(slot.value)
            if seen.others:
                self._open(to, name, seen)
            elif there is not None:
                both = (slot, to), (there, self._source.operands.of(there.value))
                self._pair(*both, seen, plain=there.op >= 0 and name[0] != "p")
            elif (
                name == "b" and self._knows_bias(other) and other.shapes.get("w") in (place.shapes["w"], None)
            ):
                self._zeros(slot, to, seen)

    def _open(self, to: Operand, name: str, seen: Seen) -> None:
        places = (self._source.places[n] for n in dict.fromkeys((seen.source, *seen.others)))
        slots = (place.slots[name] for place in places if name in place.slots)
        keys = sorted({key for slot in slots for key in self._source.operands.leaves(slot.value)})
        for key in to.leaves:
            self.ambiguous.setdefault(key, Ambiguity(key, tuple(keys)))

    def _knows_bias(self, place: Place) -> bool:
        """Tell whether a layer without a bias is one: a state dict may have lost it, but for a part."""
        slot = place.slots["w"]
        return slot.op >= 0 or bool(place.hyper)

    def _pair(
        self, to: tuple[Slot, Operand], of: tuple[Slot, Operand], seen: Seen, *, plain: bool = True
    ) -> None:
        (slot, operand), (there, source) = to, of
        ours, theirs = _whole(slot, operand, self._shapes[1]), _whole(there, source, self._shapes[0])
        if ours and theirs and _formed(slot, operand) == _formed(there, source):
            self._set_whole(ours, theirs, seen)
            return
        labels, held = (
            _labels(slot, operand, self._target.operands),
            _labels(there, source, self._source.operands),
        )
        if plain and (labels is None) != (held is None):
            return  # one is computed with, the other used as it is
        if labels is None or held is None or labels.squeeze().shape != held.squeeze().shape:
            self._leaves(operand.leaves, source.leaves, seen)
        else:
            self._set(operand, labels.reshape(-1), held.reshape(-1), seen, source.leaves)

    def _zeros(self, slot: Slot, operand: Operand, seen: Seen) -> None:
        labels = _labels(slot, operand, self._target.operands)
        if labels is not None:
            self._set(operand, labels.reshape(-1), torch.full((labels.numel(),), ZERO), seen)

    def _leaves(self, ours: Sequence[str], theirs: Sequence[str], seen: Seen) -> None:
        """Pair what two expressions are computed from: by shape and by name."""
        of_shape: dict[Shape, list[str]] = {}
        for other in theirs:
            of_shape.setdefault(squeezed(self._shapes[0][other]), []).append(other)
        groups: dict[Shape, list[str]] = {}
        for key in ours:
            groups.setdefault(squeezed(self._shapes[1][key]), []).append(key)
        if {s: len(g) for s, g in groups.items()} != {s: len(g) for s, g in of_shape.items()}:
            self._differ(ours, theirs)
            return
        for shape, keys in groups.items():
            others = of_shape[shape]
            last = {key.rpartition(".")[2]: key for key in others}
            named = all(key.rpartition(".")[2] in last for key in keys) and len(last) == len(others)
            if len(keys) > 1 and not named:
                for key in keys:
                    self.ambiguous.setdefault(key, Ambiguity(key, tuple(sorted(others))))
                continue
            for key, other in zip(keys, others, strict=True):
                self._set_whole(key, last[key.rpartition(".")[2]] if named else other, seen)

    def _differ(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        if len(ours) == len(theirs) == 1 and self._shapes[1][ours[0]] != self._shapes[0][theirs[0]]:
            shapes = self._shapes[1][ours[0]], self._shapes[0][theirs[0]]
            self.mismatched.setdefault(ours[0], Mismatch(ours[0], theirs[0], *shapes))

    def _set_whole(self, key: str, other: str, seen: Seen) -> None:
        draft = self._draft(key, seen)
        if draft.whole and draft.whole != other:
            draft.clash |= {draft.whole, other}
        elif draft.labels is not None:
            offset = self._source.operands.offsets[other]
            self._merge(draft, torch.arange(_count(self._shapes[1][key])), offset, other)
        draft.whole = draft.whole or other

    def _merge(self, draft: _Draft, places: torch.Tensor, offset: int, other: str) -> None:
        assert draft.labels is not None
        known = draft.labels[places]
        if bool(((known != _UNSET) & (known != places + offset)).any()):
            draft.clash |= {other, *self._keys(known)}

    def _set(
        self,
        operand: Operand,
        labels: torch.Tensor,
        held: torch.Tensor,
        seen: Seen,
        sources: Sequence[str] = (),
    ) -> None:
        for key in operand.leaves:
            offset, count = self._target.operands.offsets[key], _count(self._shapes[1][key])
            if len(operand.leaves) == 1 and labels.numel() and int(labels.min()) >= offset:
                places, values = labels - offset, held
            else:
                mine = (labels >= offset) & (labels < offset + count)
                places, values = labels[mine] - offset, held[mine]
            draft = self._draft(key, seen)
            draft.sources.update(dict.fromkeys(sources))
            if draft.whole:
                first = self._source.operands.offsets[draft.whole]
                if bool((values != places + first).any()):
                    draft.clash |= {draft.whole, *self._keys(values)}
                continue
            if draft.labels is None:
                draft.labels = torch.full((count,), _UNSET)
            known = draft.labels[places]
            if bool(((known != _UNSET) & (known != values)).any()):
                draft.clash |= {*self._keys(known), *self._keys(values)}
            draft.labels[places] = values

    def _draft(self, key: str, seen: Seen) -> _Draft:
        draft = self._drafts.setdefault(key, _Draft())
        draft.rules[seen.rule] = None
        draft.evidence.add(seen.evidence)
        return draft

    def _keys(self, labels: torch.Tensor) -> list[str]:
        """Name the source tensors that labels point into, in their order."""
        present = torch.zeros(len(self._names), dtype=torch.bool)
        present[self._indices(labels[labels >= 0])] = True  # sorting them would take longer
        return [self._names[i] for i in present.nonzero().flatten().tolist()]

    def _indices(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self._starts, labels, right=True) - 1

    def entries(self) -> Iterable[Entry]:
        """Make the entries of all tensors that are known in full.

        Yields:
            The entries; tensors with several claims become ambiguous.
        """
        for key, draft in self._drafts.items():
            if key in self.ambiguous:
                continue
            if draft.clash:
                self.ambiguous[key] = Ambiguity(key, tuple(sorted(draft.clash)))
                continue
            if key not in self._made:
                self._made[key] = self._entry(key, draft)
            entry = self._made[key]
            if entry is not None:
                rule = next(one for one in _RULES if one in draft.rules)
                weakest = next(one for one in _EVIDENCE if one in draft.evidence)
                yield attrs.evolve(entry, rule=rule, evidence=weakest)

    def _entry(self, key: str, draft: _Draft) -> Entry | None:
        shape = self._shapes[1][key]
        if draft.labels is None:
            return Entry(key, (Part(draft.whole),))
        labels = draft.labels
        offsets = self._source.operands.offsets
        keys = [name for name in draft.sources if _count(self._shapes[0][name])]
        if len(keys) == 1 and self._shapes[0][keys[0]] == shape:
            read = labels != _UNSET  # what a table holds beyond what is looked up goes along
            if bool((labels == torch.arange(len(labels)) + offsets[keys[0]])[read].all()):
                return Entry(key, (Part(keys[0]),))
        if key not in self._unpaired:
            labels = torch.where(labels == _UNSET, ZERO, labels)  # nothing reads these elements
        if bool((labels <= UNKNOWN).any()):
            return None
        which, where = torch.full_like(labels, -1), torch.zeros_like(labels)
        for i, k in enumerate(keys):
            mine = (labels >= offsets[k]) & (labels < offsets[k] + _count(self._shapes[0][k]))
            which[mine], where[mine] = i, labels[mine] - offsets[k]
        return summarise(key, shape, keys, {k: self._shapes[0][k] for k in keys}, which, where)


def _whole(slot: Slot, operand: Operand, shapes: Mapping[str, Shape]) -> str:
    """Name the parameter that an operand is, as it stands and in full."""
    if operand.view is None or slot.rows is not None:
        return ""
    formed = slot.of(operand.view)
    plain = formed.is_contiguous() and formed.storage_offset() == 0
    return operand.key if plain and formed.numel() == _count(shapes[operand.key]) else ""


def _formed(slot: Slot, operand: Operand) -> Shape:
    assert operand.view is not None
    return squeezed(tuple(slot.of(operand.view).shape))


def _labels(slot: Slot, operand: Operand, operands: Operands) -> torch.Tensor | None:
    labels = operands.labels(operand)
    return None if labels is None else slot.of(labels)


def _count(shape: Shape) -> int:
    return torch.Size(shape).numel()

"""Compare two operations that stand for each other: settings, weights, what they take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import attrs
import torch

from torchgraft.alignment.check.divergence import Difference
from torchgraft.alignment.check.reading import is_view, keys_of, name_of, settings, site_of
from torchgraft.alignment.check.trail import Trail, mark_of
from torchgraft.alignment.match.places import Place
from torchgraft.alignment.match.structure import Proposal
from torchgraft.graph.deep.record import Op

_SLOTS = {"w": "weight", "b": "bias", "m": "running_mean", "v": "running_var"}
_NUMBERS = {"mul": "factor", "div": "divisor", "add": "addend", "sub": "subtrahend"}
# Settings that mean the same whichever function has them.
_ACROSS = ("eps", "stride", "padding", "dilation", "groups")
_COMMUTE = ("add", "mul")
# Weights that differ by less were rounded, not changed.
_SAME = 1e-7
# Of fewer values than that, two tensors can be the same by chance.
_FEW = 4


@attrs.frozen(eq=False)
class Both:
    """The runs of two models, and which place of the second is which of the first.

    Args:
        a: the run of the first model.
        b: the run of the second.
        proposals: for places of the second model those of the first.
        least: within this, two values are the same.
        ordered: of two values of one shape, the order counts.
    """

    a: Trail
    b: Trail
    proposals: Mapping[int, Proposal]
    least: float
    ordered: bool

    @property
    def sides(self) -> tuple[Trail, Trail]:
        """Both runs."""
        return self.a, self.b

    def places(self, number: int, side: int) -> frozenset[int]:
        """Return the places of the first model that an operation is, or stands for."""
        held = [place.number for place in self.sides[side].used.get(number, ())]
        return frozenset(
            held if side == 0 else (self.proposals[n].source for n in held if n in self.proposals)
        )

    def agreeing(self) -> list[Place]:
        """List the places with parameters of the second model that are given what their counterparts are."""
        own = [(self.a.places.places[p.source], self.b.places.places[t]) for t, p in self.proposals.items()]
        return [t for s, t in own if t.slots and self.apart(s.signal, t.signal) <= self.least]

    def known(self, value: int, side: int) -> bool:
        """Return True if the other run has a value like one of this run."""
        mark = self.sides[side].marks.get(value)
        return mark is not None and self.sides[1 - side].has(mark, self.least, ordered=self.ordered)

    def apart(self, a: int, b: int) -> float:
        """Say how far a value of the first run is from one of the second."""
        one, other = self.a.marks.get(a), self.b.marks.get(b)
        return float("inf") if one is None or other is None else one.apart(other, ordered=self.ordered)

    def cone(self, side: int) -> list[int]:
        """Return the operations that made the outputs of what the runs share, in order."""
        trail = self.sides[side]
        found: set[int] = set()
        stack = list(trail.record.outputs)
        while stack:
            value = stack.pop()
            if value in trail.maker and value not in found and not self.known(value, side):
                found.add(value)
                stack += trail.record.ops[trail.maker[value]].inputs
        return sorted({trail.maker[value] for value in found})


def differences(both: Both, a: int | None, b: int | None) -> list[Difference]:
    """Say what two operations do differently, each thing once; of a pair of one, nothing."""
    if a is None or b is None:
        return []
    one, other = both.a.record.ops[a], both.b.record.ops[b]
    told, there = settings(one, both.a), settings(other, both.b)
    names = [n for n in told if n in there and (name_of(one) == name_of(other) or n in _ACROSS)]
    found = [Difference(_called(one, n), told[n], there[n]) for n in names if told[n] != there[n]]
    places = both.a.used.get(a, []), both.b.used.get(b, [])
    for s, t in _mates(both, *places):
        found += _weights(both, s, t)
    if len(one.inputs) == len(other.inputs):
        found += _inputs(both, one, other, weights=not any(places))
    most: dict[tuple[object, ...], Difference] = {}
    for each in [one for one in found if one.what != "input"] or found:  # of parts of one tensor, the largest
        held = most.setdefault((each.what, each.a, each.b), each)
        most[each.what, each.a, each.b] = max(held, each, key=lambda one: one.apart or 0.0)
    return list(most.values())


def _mates(both: Both, ours: list[Place], theirs: list[Place]) -> Iterator[tuple[Place, Place]]:
    """Pair the places of two operations as structure does; what it does not know, in order."""
    known = {place.number: place for place in ours}
    for mine, place in itertools.zip_longest(ours[: len(theirs)], theirs):
        proposal = both.proposals.get(place.number)
        mate = mine if proposal is None else known.get(proposal.source)
        if mate is not None:
            yield mate, place


def _weights(both: Both, s: Place, t: Place) -> Iterator[Difference]:
    for name in dict.fromkeys((*s.slots, *t.slots)):
        one, other = both.a.formed(s, name), both.b.formed(t, name)
        a, b = _keys(both.a, s, name), _keys(both.b, t, name)
        far = _far(one, other)
        if far > _SAME:
            yield Difference(_SLOTS.get(name, "parameter"), a, b, far)
            yield from _moved(both, one, a)


def _keys(trail: Trail, place: Place, name: str) -> str | None:
    slot = place.slots.get(name)
    return None if slot is None else ", ".join(keys_of(slot.value, trail))


def _moved(both: Both, tensor: torch.Tensor | None, key: str | None) -> list[Difference]:
    """Look for a tensor of the first model among the others of the second."""
    if tensor is None or tensor.numel() < _FEW or not tensor.any():
        return []
    mark = mark_of(tensor)
    others = ((name, both.b.marks.get(value)) for value, name in both.b.record.given.items() if name != key)
    like = (name for name, other in others if other and mark.apart(other, ordered=False) <= _SAME)
    return [Difference("moved", key, name) for name in itertools.islice(like, 1)]


def _inputs(both: Both, one: Op, other: Op, *, weights: bool) -> Iterator[Difference]:
    """Compare where two operations take their tensors from."""
    same = [[both.apart(a, b) <= both.least for b in other.inputs] for a in one.inputs]
    if name_of(one) in _COMMUTE and all(map(any, same)):
        return
    for i, (a, b) in enumerate(zip(one.inputs, other.inputs, strict=True)):
        keys = keys_of(a, both.a), keys_of(b, both.b)
        if same[i][i]:
            continue
        if all(keys) and weights:
            yield Difference("parameter", ", ".join(keys[0]), ", ".join(keys[1]), both.apart(a, b))
        elif not any(keys) and both.known(a, 0) and both.known(b, 1):
            yield Difference("input", _from(both.a, a), _from(both.b, b))


def _from(trail: Trail, value: int) -> str:
    """Say which operation computed a value, whatever it was seen as since, and where."""
    ops = trail.record.ops
    number = trail.maker.get(value)
    while number is not None and is_view(ops[number]) and ops[number].inputs:
        number = trail.maker.get(ops[number].inputs[0])
    if number is None:
        return "the model's input"
    site = site_of(number, trail)
    return f"{site.kind} of {site}"


def _called(op: Op, name: str) -> str:
    """Name a setting; a number that is added or multiplied has a name of its own."""
    return _NUMBERS.get(name_of(op), name) if name == "other" else name


def _far(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    """Say how far two tensors are apart, as a share of the largest of the first; none is zeros."""
    if one is None or other is None:
        return float(any(bool(held.any()) for held in (one, other) if held is not None))
    if one.numel() != other.numel():
        return float("inf")
    if not one.numel():
        return 0.0
    size, far = one.abs().max().item(), (one.reshape(-1) - other.reshape(-1)).abs().max().item()
    return far / size if size else far

"""Compare two operations that stand for each other: settings, weights, what they take."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchgraft.alignment.check.cones import Both
from torchgraft.alignment.check.divergence import Difference
from torchgraft.alignment.check.reading import family, keys_of, name_of, quiet, settings, site_of
from torchgraft.alignment.check.trail import mark_of
from torchgraft.alignment.match.places import Place
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


def differences(both: Both, a: int | None, b: int | None, *, above: bool = True) -> list[Difference]:
    """Say what two operations do differently.

    Args:
        both: the two runs.
        a: number of the operation of the first.
        b: of the second.
        above: where both take something else, say what those who made it do differently.

    Returns:
        The differences, each once; none if there is no pair.
    """
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
        found += _inputs(both, one, other, weights=not any(places), above=above)
    return _joined(found)


def origin(both: Both, value: int, side: int) -> int | None:
    """Return the operation that computed a value, whatever it was seen as since."""
    trail = both.sides[side]
    number = trail.maker.get(value)
    while number is not None and quiet(trail.record.ops[number]) and trail.record.ops[number].inputs:
        number = trail.maker.get(trail.record.ops[number].inputs[0])
    return number


def _mates(both: Both, ours: list[Place], theirs: list[Place]) -> Iterator[tuple[Place, Place]]:
    """Pair the places of two operations as structure does; what it does not know, in order."""
    known = {
        place.number: both.proposals[place.number].source
        for place in theirs
        if place.number in both.proposals
    }
    spare = [place for place in ours if place.number not in known.values()]
    for place in theirs:
        if place.number in known:
            yield from ((one, place) for one in ours if one.number == known[place.number])
        elif spare:
            yield spare.pop(0), place


def _weights(both: Both, s: Place, t: Place) -> Iterator[Difference]:
    for name in dict.fromkeys((*s.slots, *t.slots)):
        one, other = both.a.formed(s, name), both.b.formed(t, name)
        a, b = _keys(both, s, name, 0), _keys(both, t, name, 1)
        far = _far(one, other)
        if far > _SAME:
            yield Difference(_SLOTS.get(name, "parameter"), a, b, far)
            yield from _moved(both, one, a)


def _keys(both: Both, place: Place, name: str, side: int) -> str | None:
    slot = place.slots.get(name)
    return None if slot is None else ", ".join(keys_of(slot.value, both.sides[side]))


def _moved(both: Both, tensor: torch.Tensor | None, key: str | None) -> Iterator[Difference]:
    """Look for a tensor of the first model among the others of the second."""
    if tensor is None or tensor.numel() < _FEW:
        return
    mark = mark_of(tensor)
    for value, name in both.b.record.given.items():
        other = both.b.marks.get(value)
        if name != key and other is not None and mark.told.size and mark.apart(other, ordered=False) <= _SAME:
            yield Difference("moved", key, name)
            return


def _inputs(both: Both, one: Op, other: Op, *, weights: bool, above: bool) -> Iterator[Difference]:
    """Compare where two operations take their tensors from."""
    if name_of(one) in _COMMUTE and all(any(_same(both, a, b) for b in other.inputs) for a in one.inputs):
        return
    for a, b in zip(one.inputs, other.inputs, strict=True):
        keys = keys_of(a, both.a), keys_of(b, both.b)
        if _same(both, a, b):
            continue
        if all(keys):
            if weights:
                yield Difference("parameter", ", ".join(keys[0]), ", ".join(keys[1]), both.apart(a, b))
        elif both.known(a, 0) and both.known(b, 1) and not any(keys):
            made = origin(both, a, 0), origin(both, b, 1)
            yield from (_taken(both, *made) if above else []) or [
                Difference("input", _from(both, made[0], 0), _from(both, made[1], 1))
            ]


def _taken(both: Both, a: int | None, b: int | None) -> list[Difference]:
    """Say what two operations do differently whose results the other run has elsewhere."""
    if a is None or b is None:
        return []
    kinds = family(both.a.record.ops[a], both.a), family(both.b.record.ops[b], both.b)
    return differences(both, a, b, above=False) if kinds[0] == kinds[1] else []


def _same(both: Both, a: int, b: int) -> bool:
    return both.apart(a, b) <= both.least


def _from(both: Both, number: int | None, side: int) -> str:
    """Say what an operation is and where."""
    if number is None:
        return "the model's input"
    site = site_of(number, both.sides[side])
    return f"{site.kind} of {site}"


def _called(op: Op, name: str) -> str:
    """Name a setting; a number that is added or multiplied has a name of its own."""
    return _NUMBERS.get(name_of(op), name) if name == "other" else name


def _far(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    """Say how far two tensors are apart, as a share of the largest of the first; none is zeros."""
    if one is None or other is None:
        held = one if other is None else other
        return 0.0 if held is None or not bool(held.any()) else 1.0
    if one.numel() != other.numel():
        return float("inf")
    if not one.numel():
        return 0.0
    size, far = one.abs().max().item(), (one.reshape(-1) - other.reshape(-1)).abs().max().item()
    return far / size if size else far


def _joined(found: list[Difference]) -> list[Difference]:
    """Keep of several differences of the same tensors, as of parts of one, the largest."""
    most: dict[tuple[object, ...], Difference] = {}
    for one in found:
        key = (one.what, one.a, one.b)
        if key not in most or (one.apart or 0.0) > (most[key].apart or 0.0):
            most[key] = one
    return list(most.values())

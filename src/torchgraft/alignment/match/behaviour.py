"""Confirm a pairing by running both models: places that are the same see the same.

The target runs with the parameters of the source put in where they are used, one place after
the other; so as long as the pairing is right, each place sees what its counterpart saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from torchgraft.alignment.match.places import Place, Places
from torchgraft.alignment.match.prints import Drawer, Print, print_of
from torchgraft.alignment.match.segments import Label, label
from torchgraft.alignment.match.structure import Proposal
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import Record
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import tensors_in

# Within this, structure is confirmed; within the second, structure is overruled.
_NEAR, _SAME = 2e-2, 1e-4
# What differs by no more than that many times what came before is drift, as of another eps.
_DRIFT = 4


@attrs.frozen
class Seen:
    """What was decided on a place of the target.

    Args:
        source: the place of the source.
        rule: what decided.
        evidence: ``"behaviour"`` where both saw the same, ``"contradicted"`` where they saw
            other things though all before it was the same, and behind it; else ``"structure"``.
        others: places that are as good.
    """

    source: int
    rule: str
    evidence: str
    others: tuple[int, ...] = ()


class DriftError(Exception):
    """Report that a model ran differently from the run that was recorded."""


class _Watched:
    """A run of the source: what each place saw and which parameters it used."""

    def __init__(self, model: nn.Module, arguments: Arguments, found: Places) -> None:
        self.places = found.places
        self.keys = found.keys
        self._record = found.record
        self.prints: dict[int, Print | None] = {}
        self.operands: dict[tuple[int, int], torch.Tensor] = {}
        self._begin, self._used = _agenda(found)
        record_live(model, arguments, self._step)
        self.drawer: Drawer[Label] = Drawer(_NEAR)
        for place in self.places:
            seen = self.prints.get(place.number)
            if seen is not None:
                self.drawer.put(label(place), place.number, seen)

    def value(self, place: Place, slot: str) -> torch.Tensor | None:
        """Return a parameter as a place uses it."""
        known = place.slots.get(slot)
        return None if known is None else known.of(self.operands[known.op, known.value])

    def _step(
        self,
        number: int,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        values: tuple[int, ...],
    ) -> object:
        if number in self._begin or number in self._used:
            _check(self._record, number, func)
            given = dict(zip(values, tensors_in((args, kwargs)), strict=True))
            for place in self._begin.get(number, ()):
                self.prints[place.number] = print_of(given[place.signal]) if place.signal in given else None
            for value in self._used.get(number, ()):
                self.operands[number, value] = given[value].detach()
        return func(*args, **kwargs)


def _check(record: Record, number: int, func: Callable[..., object]) -> None:
    if number >= len(record.ops) or record.ops[number].func is not func:
        raise DriftError


def _agenda(found: Places) -> tuple[dict[int, list[Place]], dict[int, list[int]]]:
    begin: dict[int, list[Place]] = {}
    used: dict[int, list[int]] = {}
    for place in found.places:
        if place.slots:
            begin.setdefault(place.op, []).append(place)
        for slot in place.slots.values():
            used.setdefault(slot.op, []).append(slot.value)
    return begin, used


def confirmed(
    source: tuple[nn.Module, Places],
    target: tuple[nn.Module, Places],
    arguments: Arguments,
    proposals: Mapping[int, Proposal],
    state: Mapping[str, torch.Tensor],
) -> dict[int, Seen]:
    """Run both models and settle which place is which.

    Args:
        source: the model that the parameters come from, and its places.
        target: the model that they go to, and its places.
        arguments: what both are given.
        proposals: the pairing that structure proposes.
        state: the target's tensors as those of ``proposals`` that are settled make them.

    Returns:
        The pairing, with what confirmed each part of it.

    Raises:
        DriftError: one of them does not run as it did before.
    """
    run = _Lockstep(_Watched(source[0], arguments, source[1]), target[1], proposals)
    record_live(target[0], arguments, run.step, state=state)
    return run.seen


def settled(target: Places, proposals: Mapping[int, Proposal]) -> dict[int, Seen]:
    """Take as settled what structure proposes, but for what an added layer makes doubtful.

    Args:
        target: places of the target.
        proposals: the pairing that structure proposes.

    Returns:
        The pairing; of twins, one of several.
    """
    doubtful = _doubtful(target, proposals)
    return {
        t: Seen(p.source, p.rule, "structure")
        for t, p in proposals.items()
        if label(target.places[t]) not in doubtful
    }


def _doubtful(target: Places, proposals: Mapping[int, Proposal]) -> set[Label]:
    """Return what an added layer is like: it may stand for what another of its like was taken for."""
    return {label(p) for p in target.places if p.slots and p.number not in proposals}


class _Lockstep:
    def __init__(self, source: _Watched, target: Places, proposals: Mapping[int, Proposal]) -> None:
        self.seen: dict[int, Seen] = {}
        self._source = source
        self._places = target.places
        self._keys = target.keys
        self._record = target.record
        self._proposals = dict(proposals)
        self._claimed = {p.source: t for t, p in proposals.items()}
        self._begin, self._used = _agenda(target)
        self._open = _doubtful(target, proposals)
        self._ready = settled(target, proposals)
        self._apart: dict[int, float] = {}
        self._children: dict[int, list[Place]] = {}
        for place in target.places:
            for parent, _ in place.parents:
                self._children.setdefault(parent, []).append(place)
        self._users: dict[tuple[int, int], list[tuple[Place, str]]] = {}
        for place in target.places:
            for name, slot in place.slots.items():
                self._users.setdefault((slot.op, slot.value), []).append((place, name))

    def step(
        self,
        number: int,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        values: tuple[int, ...],
    ) -> object:
        """Run an operation of the target with the parameters of the source."""
        if number not in self._begin and number not in self._used:
            return func(*args, **kwargs)
        _check(self._record, number, func)
        given = dict(zip(values, tensors_in((args, kwargs)), strict=True))
        for place in self._begin.get(number, ()):
            seen = print_of(given[place.signal]) if place.signal in given else None
            known = self._settled(place, seen, lambda: func(*args, **kwargs))
            if known is not None:
                self.seen[place.number] = known
        put = {value: self._filled(number, value, given[value]) for value in self._used.get(number, ())}
        exchanged = {id(given[value]): tensor for value, tensor in put.items()}
        args, kwargs = tree_map_only(torch.Tensor, lambda t: exchanged.get(id(t), t), (args, kwargs))
        return func(*args, **kwargs)

    def _filled(self, number: int, value: int, tensor: torch.Tensor) -> torch.Tensor:
        """Put the parameters of the source in the place of the target's."""
        made = tensor
        for place, name in self._users[number, value]:
            known = self.seen.get(place.number)
            ready = self._ready.get(place.number)
            if known is None or (ready is not None and ready.source == known.source):
                continue
            made = tensor.detach().clone(memory_format=torch.contiguous_format) if made is tensor else made
            slot = place.slots[name]
            there = self._source.value(self._source.places[known.source], name)
            if there is None:
                if name == "b":
                    slot.put(made, torch.zeros_like(slot.of(made)))
            elif there.numel() == slot.of(made).numel():
                slot.put(made, there.reshape(slot.of(made).shape).to(made))
        return made

    def _settled(self, place: Place, seen: Print | None, run: Callable[[], object]) -> Seen | None:
        proposal = self._proposals.get(place.number)
        near = self._near(place, seen)
        if proposal is None:
            return self._found(place, near)
        best = near[0][0] if near else 1.0
        self._apart[place.number] = next((d for d, s in near if s == proposal.source), 0.0)
        tight = [s for d, s in near if d <= 3 * best + 1e-5]
        new = proposal.source in tight and label(place) in self._open and self._followed(place)
        if new and _changes_nothing(seen, run):
            self._claimed.pop(proposal.source, None)
            return None
        if proposal.others and not any(self._untold(parent) for parent, _ in place.parents):
            left = [s for s in tight if s in (*proposal.others, proposal.source)]
            if len(left) == 1:
                return Seen(left[0], "input", "behaviour")
        if proposal.source in tight:
            return Seen(proposal.source, proposal.rule, "behaviour", proposal.others)
        named = self._source.keys(proposal.source) == self._keys(place.number)
        free = [s for s in tight if s not in self._claimed and not named]
        if best <= _SAME and len(tight) == 1 and free:
            self._claimed.pop(proposal.source, None)  # for the one that follows
            self._claimed[free[0]] = place.number
            return Seen(free[0], "input", "behaviour")
        evidence = "contradicted" if self._contradicted(place, proposal.source, seen) else "structure"
        return Seen(proposal.source, proposal.rule, evidence, proposal.others)

    def _contradicted(self, place: Place, source: int, seen: Print | None) -> bool:
        """Tell whether a place sees other things than its counterpart, for no reason that is seen."""
        there = self._source.prints.get(source)
        before = _before(self._places, place)
        known = [self.seen[n] for n in before if n in self.seen]
        if seen is None or there is None or seen.count != there.count or not 0 < len(before) == len(known):
            return False
        if any(one.evidence == "contradicted" for one in known):
            return True
        drift = _DRIFT * max((self._apart.get(n, 0.0) for n in before), default=0.0)
        paired = {one.source for one in known} == _before(self._source.places, self._source.places[source])
        firm = all(one.evidence == "behaviour" and not one.others for one in known)
        return firm and paired and seen.distance(there) > max(_NEAR, drift)

    def _followed(self, place: Place) -> bool:
        """Tell whether what follows a place could be what the place was taken for."""
        mine = label(place)
        return any(label(other) == mine for other in self._children.get(place.number, ()))

    def _untold(self, number: int) -> bool:
        """Tell whether a place is behind a twin that nothing told apart: what it sees is chance."""
        known, proposal = self.seen.get(number), self._proposals.get(number)
        if known is not None:
            return bool(known.others)
        ahead = self._places[number].parents if proposal is not None and proposal.others else []
        return any(self._untold(parent) for parent, _ in ahead)

    def _found(self, place: Place, near: list[tuple[float, int]]) -> Seen | None:
        """Find the counterpart of a place for which structure has none."""
        taken = {known.source for known in self.seen.values()}
        mine = [
            s
            for d, s in near
            if d <= _SAME and s not in taken and self._source.keys(s) == self._keys(place.number)
        ]
        if len(mine) == 1 and mine[0] in self._claimed:  # the one that claims it goes by another name
            self._proposals.pop(self._claimed.pop(mine[0]))
            return Seen(mine[0], "input", "behaviour")
        free = [(d, s) for d, s in near if s not in self._claimed and s not in taken and d <= _SAME]
        return Seen(free[0][1], "input", "behaviour") if len(free) == 1 else None

    def _near(self, place: Place, seen: Print | None) -> list[tuple[float, int]]:
        if seen is None:
            return []
        return self._source.drawer.near(label(place), seen)


def _before(places: Sequence[Place], place: Place) -> set[int]:
    """Return the uses of parameters that a place's signals come from."""
    found: set[int] = set()
    ahead = [parent for parent, _ in place.parents]
    while ahead:
        number = ahead.pop()
        if places[number].slots:
            found.add(number)
        else:
            ahead += [parent for parent, _ in places[number].parents]
    return found


def _changes_nothing(seen: Print | None, run: Callable[[], object]) -> bool:
    """Tell whether a layer, as it is, gives what it was given."""
    made = tensors_in(run())
    after = print_of(made[0]) if made else None
    return seen is not None and after is not None and seen.distance(after) <= _SAME

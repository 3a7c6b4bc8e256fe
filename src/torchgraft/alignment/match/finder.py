"""Find the places of a recorded run.

A product of a signal with something made of itself is an activation, however it is spelled;
attention is spelled out; and what a layer makes of a constant is a signal too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import torch

from torchgraft.alignment.match.kinds import Slot, flatten, kind_of, squeeze
from torchgraft.alignment.match.operands import Operands, Tensors
from torchgraft.alignment.match.operations import (
    FRESH,
    JOINS,
    MOVES,
    NOTHING,
    ORDERED,
    PARTS,
    PRODUCTS,
    SEEN_ANEW,
)
from torchgraft.alignment.match.parting import partings
from torchgraft.alignment.match.places import Place, Places, Way
from torchgraft.graph.deep.record import Op, Record


def find_places(record: Record, tensors: Tensors, mapped: Iterable[str]) -> Places:
    """Find the places of a record.

    Args:
        record: what ran.
        tensors: parameters and buffers of the model, by name.
        mapped: names of those that are moved; the rest are constants.

    Returns:
        The places, with the way back to the operands.
    """
    return _Finder(record, Operands(record, tensors, mapped)).found()


class _Finder:
    def __init__(self, record: Record, operands: Operands) -> None:
        self.record = record
        self.operands = operands
        self.places: list[Place] = []
        self.origin: dict[int, int] = {}
        self.layer: dict[int, int] = {}  # value that is a layer's result, seen anew at most
        self.consumers: dict[int, int] = {}
        for op in record.ops:
            for value in op.inputs:
                self.consumers[value] = self.consumers.get(value, 0) + 1
        self.parted: dict[int, list[int]] = {}
        self.parts: Mapping[tuple[int, int], int] = {}
        self.rows: Mapping[int, list[torch.Tensor]] = {}
        self.ways: dict[int, Way] = {}
        self.signals = set(record.inputs)

    def found(self) -> Places:
        for value in self.record.inputs:
            self._place("input", (len(self.places),), -1, value, [])
            self.origin[value] = len(self.places) - 1
        for op in self.record.ops:
            if op.name not in FRESH and (self.signals.intersection(op.inputs) or self._promoted(op)):
                self.signals.update(op.outputs)
            else:
                self.operands.note(op)
        self.parts, self.rows = partings(self.record, self.signals, self.operands.leaves)
        for number, op in enumerate(self.record.ops):
            if op.outputs and op.outputs[0] in self.signals and op.name not in FRESH:
                signals = [value for value in op.inputs if value in self.signals]
                self._follow(number, op, signals or [self._constant(number, op)])
        after = len(self.record.ops)
        ends = tuple(dict.fromkeys(self._from(after, v) for v in self.record.outputs if v in self.origin))
        return Places(self.places, self.operands, self.record, ends)

    def _promoted(self, op: Op) -> bool:
        """Tell whether an operation is a layer on a constant or on a parameter."""
        kind = kind_of(op, self.record.shapes, ())
        if kind is None or kind.signal >= len(op.args):
            return False
        signal = _value(op.args[kind.signal])
        weights = [_value(op.args[at]) for name, at, _ in kind.slots if name == "w" and at < len(op.args)]
        return signal >= 0 and any(self.operands.leaves(value) for value in weights if value != signal)

    def _constant(self, number: int, op: Op) -> int:
        """Make a place of the constant or the parameter that a layer is given."""
        kind = kind_of(op, self.record.shapes, ())
        assert kind is not None
        value = _value(op.args[kind.signal])
        self.signals.add(value)
        if value not in self.origin:
            place = self._place("constant", (), number, value, [])
            if self.operands.trained(value):
                self._slot(place, "p0", Slot(number, value, squeeze))
            self.origin[value] = place.number
        return value

    def _follow(self, number: int, op: Op, signals: list[int]) -> None:
        used = [v for v in op.inputs if self.operands.leaves(v) and v not in self.signals]
        before = self.origin[signals[0]]
        if op.name.startswith(("_scaled_dot_product", "scaled_dot_product")):
            made = self._attention(number, op, used)
        elif used:
            made = self._use(number, op, signals, used)
        else:
            made = self._meet(number, op, signals)
        for spot, value in enumerate(op.outputs):
            self.origin[value] = made
            self.ways[value] = self._way(op, signals, spot, passed=made in (before, ~before))
        if op.name in SEEN_ANEW and len(signals) == 1 and signals[0] in self.layer and self._once(signals[0]):
            self.layer[op.outputs[0]] = self.layer[signals[0]]

    def _way(self, op: Op, signals: list[int], spot: int, *, passed: bool) -> Way:
        way = self.ways.get(signals[0], Way()) if passed else Way()
        name = op.name.rstrip("_")
        if not passed or name in NOTHING or (name in MOVES and name not in PARTS):
            return way
        if name not in PARTS:
            return attrs.evolve(way, functions=(*way.functions, name))
        at = op.args[2] if name in ("select", "slice") and len(op.args) > 2 else spot
        return attrs.evolve(way, spots=(*way.spots, at)) if isinstance(at, int) else way

    def _from(self, number: int, value: int) -> int:
        """Return the place that a value comes from, as an operation sees it."""
        origin = self.origin[value]
        if origin >= 0:
            return origin
        return self.parted[~origin][self.parts.get((number, value), 0)]

    def _place(
        self, kind: str, hyper: tuple[object, ...], op: int, signal: int, parents: list[tuple[int, str]]
    ) -> Place:
        made = Place(len(self.places), kind, hyper, op, signal, parents)
        made.ways = [self.ways.get(signal, Way())] * len(parents)
        self.places.append(made)
        return made

    def _meet(self, number: int, op: Op, signals: list[int]) -> int:
        name = op.name.rstrip("_")
        if name in PRODUCTS and len(signals) >= 2:
            return self._product(number, signals[-2:], "lr")
        origins = [self._from(number, value) for value in signals]
        if len(set(origins)) == 1:
            return origins[0] if (number, signals[0]) in self.parts else self.origin[signals[0]]
        kind = JOINS.get(name, "join")
        sides = [str(i) if kind in ORDERED else "" for i in range(len(origins))]
        parents = list(zip(origins, sides, strict=True))
        made = self._place(kind, (), number, signals[0], parents)
        made.ways = [self.ways.get(value, Way()) for value in signals]
        return made.number

    def _product(self, number: int, signals: list[int], sides: str) -> int:
        parents = [(self._from(number, v), side) for v, side in zip(signals, sides, strict=True)]
        made = self._place("product", (), number, signals[0], parents)
        made.ways = [self.ways.get(value, Way()) for value in signals]
        return made.number

    def _attention(self, number: int, op: Op, used: list[int]) -> int:
        """Spell out attention: scores, what is added to them, and the mixing of values."""
        query, key, value = (_value(item) for item in op.args[:3])
        held = [(v, side) for v, side in ((query, "l"), (key, "r")) if v in self.origin]
        scores = self._product(number, [v for v, _ in held], "".join(side for _, side in held))
        for one in (query, key):
            if one in used:
                self._slot(self.places[scores], "p0", Slot(number, one, squeeze))
        added = [one for one in used if one not in (query, key, value)]
        if added:
            scores = self._operand(number, op, -1, added, [(scores, "")]).number
        biases = [v for v in op.inputs if v in self.origin and v not in (query, key, value)]
        if biases:
            both = [(scores, ""), *((self._from(number, v), "") for v in biases)]
            scores = self._place("add", (), number, biases[0], both).number
        if value not in self.origin:
            return scores
        mixed = self._place("product", (), number, value, [(scores, "l"), (self._from(number, value), "r")])
        mixed.ways = [Way(), self.ways.get(value, Way())]
        return mixed.number

    def _use(self, number: int, op: Op, signals: list[int], used: list[int]) -> int:
        name = op.name.rstrip("_")
        bias = self._bias_of(op, signals, used)
        if bias is not None:
            self._slot(bias, "b", Slot(number, used[0], flatten))
            if self._once(op.outputs[0]) and bias.kind != "linear":
                self.layer[op.outputs[0]] = bias.number
            return self.origin[signals[0]]
        kind = kind_of(op, self.record.shapes, self.origin)
        if kind is not None and kind.signal < len(op.args) and _value(op.args[kind.signal]) in self.origin:
            signal = _value(op.args[kind.signal])
            place = self._place(kind.name, kind.hyper, number, signal, [(self._from(number, signal), "")])
            for slot, at, form in kind.slots:
                operand = _value(op.args[at]) if at < len(op.args) else -1
                if operand in used and (op.name != "bmm" or self._one_matrix(operand)):
                    self._slot(place, slot, Slot(number, operand, form))
            if place.slots:
                if place.kind in ("linear", "conv"):
                    self.layer[op.outputs[0]] = place.number
                return self._part(number, place)
            self.places.pop()
        parents = list(dict.fromkeys((self._from(number, value), "") for value in signals))
        if name == "mul" and len(used) == 1 and len(parents) == 1 and self._channels(used[0]):
            place = self._place("affine", (), number, signals[0], parents)
            self._slot(place, "w", Slot(number, used[0], flatten))
            self.layer[op.outputs[0]] = place.number
            return place.number
        return self._operand(number, op, signals[0], used, parents).number

    def _operand(
        self, number: int, op: Op, signal: int, used: list[int], parents: list[tuple[int, str]]
    ) -> Place:
        """Make a place of an operation that takes its parameters anywhere."""
        name = op.name.rstrip("_")
        kind = "add" if signal < 0 else JOINS.get(name, name)
        place = self._place(kind, (), number, signal, parents)
        for i, value in enumerate(dict.fromkeys(used)):
            self._slot(place, f"p{i}", Slot(number, value, squeeze))
            # A table is looked up, masked and spread in many ways; what it is made of counts.
            shapes = [self.operands.shape(key) for key in self.operands.leaves(value)]
            place.shapes[f"p{i}"] = tuple(sorted(shapes))
        return place

    def _one_matrix(self, value: int) -> bool:
        """Tell whether all matrices of a batch are the same one."""
        operand = self.operands.of(value)
        if operand.view is not None:
            return operand.view.shape[0] == 1 or operand.view.stride(0) == 0
        labels = operand.labels
        return labels is not None and bool((labels == labels[:1]).all())

    def _slot(self, place: Place, name: str, slot: Slot) -> None:
        place.slots[name] = slot
        shape = self.record.shapes[slot.value]
        place.shapes[name] = tuple(slot.of(torch.empty(shape, device="meta")).shape)
        for number in self.parted.get(place.number, ()):
            other = self.places[number]
            if other is not place and name not in other.slots:
                self._take_rows(other, name, slot)
        if name == "b" and place.rows is not None:
            self._take_rows(place, name, slot)

    def _part(self, number: int, place: Place) -> int:
        """Make several places of a layer whose rows go different ways."""
        rows = self.rows.get(number)
        if not rows:
            return place.number
        whole = dict(place.slots)
        again = (place.kind, place.hyper, number, place.signal)
        parts = [place, *(self._place(*again, list(place.parents)) for _ in rows[1:])]
        for part, mine in zip(parts, rows, strict=True):
            part.rows = mine
            for name, slot in whole.items():
                self._take_rows(part, name, slot)
        self.parted[place.number] = [part.number for part in parts]
        return ~place.number  # which of them a value comes from is seen where it is used

    def _take_rows(self, place: Place, name: str, slot: Slot) -> None:
        assert place.rows is not None
        place.slots[name] = attrs.evolve(slot, rows=place.rows)
        shape = slot.form(torch.empty(self.record.shapes[slot.value], device="meta")).shape
        place.shapes[name] = (len(place.rows), *shape[1:])

    def _bias_of(self, op: Op, signals: list[int], used: list[int]) -> Place | None:
        """Return the layer whose bias an addition adds, if it is one."""
        if op.name.rstrip("_") != "add" or len(signals) != 1 or len(used) != 1:
            return None
        number = self.layer.get(signals[0])
        if number is None or not self._once(signals[0]) or not self._channels(used[0]):
            return None
        place = self.places[number]
        wide = self.record.shapes[used[0]].numel()
        parts = self.parted.get(number, (number,))
        total = sum(self._width(self.places[part]) for part in parts)
        return place if "b" not in place.slots and total == wide else None

    def _width(self, place: Place) -> int:
        slot = place.slots["w"]
        return slot.of(torch.empty(self.record.shapes[slot.value], device="meta")).shape[0]

    def _once(self, value: int) -> bool:
        return self.consumers.get(value, 0) == 1

    def _channels(self, value: int) -> bool:
        shape = self.record.shapes[value]
        return sum(size > 1 for size in shape) <= 1


def _value(item: object) -> int:
    return getattr(item, "value", -1)

"""The layers of a plain state dict, as far as names and shapes tell them.

There is no graph: what shares a prefix is one layer, numbers in names count blocks, and a
name such as ``qkv`` says that a layer does the work of several.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import torch

from torchgraft.alignment.entry import Shape, squeezed
from torchgraft.alignment.match.kinds import Slot, flatten, flatten_rows, squeeze
from torchgraft.alignment.match.operands import Operand
from torchgraft.alignment.match.places import Place, Places
from torchgraft.graph.deep.record import Record

Label = tuple[object, ...]
_SLOTS = {"weight": "w", "bias": "b", "running_mean": "m", "running_var": "v"}
_FUSED = {"qkv": "qkv", "kv": "kv", "in_proj": "qkv"}
_ROLE = re.compile(r"^(?:to|w|lin)?_?(q|k|v)(?:uery|ueries|eys?|alues?)?$")


@attrs.define(eq=False)
class Unit:
    """One layer of a state dict.

    Args:
        name: the prefix of its names, or the name of a tensor that stands alone.
        keys: its tensors, by the slot that they fill.
        rows: of a layer that does the work of several, the rows of this one.
        role: what it does in attention: ``q``, ``k``, ``v`` or nothing.
        label: what it has to have in common with its counterpart.
        own_bias: its bias is not a part of that of the layer that does the work of several.
    """

    name: str
    keys: dict[str, str]
    label: Label
    rows: torch.Tensor | None = None
    role: str = ""
    own_bias: bool = False


def words(name: str) -> tuple[str, ...]:
    """Split a name into words and numbers: ``layer1.0`` is ``layer 1 0``."""
    return tuple(re.findall(r"[A-Za-z]+|\d+", name))


def layer_of(key: str) -> str:
    """Return the name of the layer that a tensor belongs to."""
    slot = next((slot for slot in _SLOTS if re.search(rf"(^|[._]){slot}$", key)), "")
    return key.removesuffix(slot).rstrip("._") if slot else key


def role_of(name: str) -> str:
    """Return which part of attention a name speaks of."""
    found = ""
    for token in name.lower().split("."):
        roles = {match.group(1) for part in (token, *token.split("_")) if (match := _ROLE.match(part))}
        found = next(iter(roles)) if len(roles) == 1 else "" if roles else found
    return found


def units_of(shapes: Mapping[str, Shape], wholes: Mapping[Label, int] | None = None) -> list[Unit]:
    """Find the layers of a state dict, in its order.

    Args:
        shapes: shapes of its tensors, by name.
        wholes: how many layers of the model do the work of several: where the state dict has
            such, nothing says that their rows stand in another order, and they stay whole.

    Returns:
        The layers.
    """
    groups: dict[str, dict[str, str]] = {}
    for key in shapes:
        prefix, _, last = key.rpartition(".")
        groups.setdefault(prefix, {})[last] = key
    made: list[Unit] = []
    for prefix, held in groups.items():
        made += _layers(prefix, held, shapes)
    made = _kept_whole(_with_biases(made, shapes), wholes or {})
    order = {key: i for i, key in enumerate(shapes)}
    return sorted(
        made,
        key=lambda unit: (
            min(order[key] for key in unit.keys.values()),
            -1 if unit.rows is None else int(unit.rows[0]),
        ),
    )


def _layers(prefix: str, held: Mapping[str, str], shapes: Mapping[str, Shape]) -> list[Unit]:
    made: list[Unit] = []
    alone = dict(held)
    for name, slot_names in _pairs(alone):
        keys = {_SLOTS[slot]: alone.pop(last) for slot, last in slot_names.items()}
        made += _parted(f"{prefix}.{name}".strip("."), keys, shapes)
    if {"running_mean", "running_var"} <= alone.keys():  # a normalisation that learns nothing
        keys = {_SLOTS[last]: alone.pop(last) for last in ("running_mean", "running_var")}
        made.append(Unit(prefix, keys, ("n", shapes[keys["m"]], "bare")))
    for last, key in alone.items():
        if last != "num_batches_tracked":
            made.append(Unit(key, {"p0": key}, ("p", squeezed(shapes[key]))))
    return made


def _pairs(held: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Find ``weight`` and ``bias``, and what ends in them: ``in_proj_weight``."""
    found = []
    for last in held:
        if last == "weight" or last.endswith("_weight"):
            stem = last.removesuffix("weight")
            mine = {slot: stem + slot for slot in _SLOTS if stem + slot in held}
            found.append((stem.strip("_"), mine))
    return found


def _parted(name: str, keys: dict[str, str], shapes: Mapping[str, Shape]) -> list[Unit]:
    shape = shapes[keys["w"]]
    if (
        len(squeezed(shape)) < 2
        and max(shape, default=1) == torch.Size(shape).numel()
        and not _matrix_like(keys, shapes)
    ):
        flat = (torch.Size(shape).numel(),)
        label = ("n", flat) if "m" in keys else ("a", flat) if "b" in keys else ("p", squeezed(shape))
        return [Unit(name, keys, label) if label[0] != "p" else Unit(keys["w"], {"p0": keys["w"]}, label)]
    wide = shape[0]
    each = torch.Size(shape[1:]).numel()
    last = name.rpartition(".")[2]
    roles = next((roles for token, roles in _FUSED.items() if last.endswith(token)), "")
    if not roles or not wide or wide % len(roles):
        return [Unit(name, keys, ("w", wide, each), role=role_of(name))]
    part = wide // len(roles)
    return [
        Unit(name, keys, ("w", part, each), torch.arange(i * part, (i + 1) * part), role)
        for i, role in enumerate(roles)
    ]


def _matrix_like(keys: Mapping[str, str], shapes: Mapping[str, Shape]) -> bool:
    """Tell a layer with one output, or one input, from a scale: its bias has another size."""
    shape = shapes[keys["w"]]
    return (
        len(shape) in (2, 4)
        and "b" in keys
        and shapes[keys["b"]] != shape
        and shape[0] == shapes[keys["b"]][0]
    )


def _with_biases(units: list[Unit], shapes: Mapping[str, Shape]) -> list[Unit]:
    """Give biases that stand alone, ``q_bias`` and ``v_bias``, to the layers that they belong to."""
    owners = {(unit.name.rpartition(".")[0], unit.role): unit for unit in units if unit.role}
    kept = []
    for unit in units:
        home, _, last = unit.name.rpartition(".")
        owner = owners.get((home, role_of(last))) if last.endswith("bias") and "p0" in unit.keys else None
        if owner is not None and "b" not in owner.keys and shapes[unit.keys["p0"]] == (owner.label[1],):
            owner.keys = {**owner.keys, "b": unit.keys["p0"]}
            owner.own_bias = owner.rows is not None
        else:
            kept.append(unit)
    return kept


def _kept_whole(units: list[Unit], wholes: Mapping[Label, int]) -> list[Unit]:
    """Join the parts of layers again that the model has as they are, and that share their bias."""
    joined: dict[str, Unit] = {}
    for name, some in itertools.groupby(units, lambda unit: unit.name):
        parts = list(some)
        wide = sum(len(unit.rows) for unit in parts if unit.rows is not None)
        if wide and not any(unit.own_bias for unit in parts):
            label = ("w", wide, parts[0].label[-1])
            joined[name] = Unit(name, parts[0].keys, label, role="".join(unit.role for unit in parts))
    held = Counter(unit.label for unit in joined.values())
    whole = {
        name: unit for name, unit in joined.items() if 0 < wholes.get(unit.label, 0) <= 2 * held[unit.label]
    }
    return [*(unit for unit in units if unit.name not in whole), *whole.values()]


class Held:
    """Operands of a state dict: every value is one of its tensors.

    Args:
        shapes: shapes of its tensors, by name.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.offsets: dict[str, int] = {}
        total = 0
        for key, shape in shapes.items():
            self.offsets[key] = total
            total += torch.Size(shape).numel()
        self._keys = list(shapes)
        self._shapes = shapes

    def value(self, key: str) -> int:
        """Return the number that stands for a tensor."""
        return self._keys.index(key)

    def leaves(self, value: int) -> tuple[str, ...]:
        """Name the tensor that a value is."""
        return (self._keys[value],)

    def of(self, value: int) -> Operand:
        """Lay a value over its tensor."""
        key = self._keys[value]
        return Operand((key,), key, torch.empty(self._shapes[key], device="meta"))

    def labels(self, operand: Operand) -> torch.Tensor:
        """Return the label of every element."""
        shape = self._shapes[operand.key]
        return (torch.arange(torch.Size(shape).numel()) + self.offsets[operand.key]).reshape(shape)


def places_of(units: Sequence[Unit], shapes: Mapping[str, Shape]) -> Places:
    """Make a place of every layer, so that what pairs places can pair them.

    Args:
        units: the layers.
        shapes: shapes of the tensors, by name.

    Returns:
        The places, numbered as the layers are.
    """
    held = Held(shapes)
    places = []
    for number, unit in enumerate(units):
        place = Place(number, str(unit.label[0]), (unit.role,) if unit.role else (), -1, -1, [])
        for slot, key in unit.keys.items():
            rows = None if slot == "b" and unit.own_bias else unit.rows
            form = (
                flatten_rows
                if unit.label[0] == "w" and slot == "w"
                else squeeze
                if slot[0] == "p"
                else flatten
            )
            place.slots[slot] = Slot(-1, held.value(key), form, rows)
            place.shapes[slot] = None
        if "p0" in place.slots:  # a tensor alone may scale as well as be added
            place.slots["w"] = place.slots["p0"]
        places.append(place)
    empty = Record((), (), (), {}, (), ())
    return Places(places, held, empty, ())  # type: ignore[arg-type]  # it answers as operands do

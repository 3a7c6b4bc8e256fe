"""Layers that do the work of several: which rows go where.

A fused query-key-value layer is three layers whose rows stand in one matrix, in any order.
Its output is followed through whatever only moves elements, until something else is done
with them; rows that end in different places are different layers, and the order in which
they arrive there is the order in which separate layers would have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import cast

import torch

from torchgraft.alignment.match.kinds import kind_of
from torchgraft.alignment.match.operands import called
from torchgraft.alignment.match.operations import MOVES, PARTS
from torchgraft.graph.deep.record import Op, Record

Leaves = Callable[[int], tuple[str, ...]]
Stop = tuple[int, int, torch.Tensor]


def partings(
    record: Record, signals: AbstractSet[int], leaves: Leaves
) -> tuple[Mapping[tuple[int, int], int], Mapping[int, list[torch.Tensor]]]:
    """Find the layers that do the work of several.

    Args:
        record: what ran.
        signals: the values that come from the inputs.
        leaves: names the parameters that a value is made of.

    Returns:
        For an operation and a value that it takes, which part of a layer that is; and for
        the operation that is such a layer, the rows of each part.
    """
    consumers: dict[int, list[int]] = {}
    for number, op in enumerate(record.ops):
        for value in dict.fromkeys(op.inputs):
            consumers.setdefault(value, []).append(number)
    parts: dict[tuple[int, int], int] = {}
    rows: dict[int, list[torch.Tensor]] = {}
    for number, op in enumerate(record.ops):
        kind = kind_of(op, record.shapes, signals)
        if kind is None or kind.name not in ("linear", "conv") or op.outputs[0] not in signals:
            continue
        region = _region(record, op.outputs[0], consumers, signals, leaves)
        if not any(record.ops[n].name in PARTS for n in region):
            continue
        stops = _stops(record, op.outputs[0], region, consumers, axis=1 if "conv" in op.name else -1)
        groups, of = _groups(stops)
        if len(groups) > 1:
            rows[number] = groups
            parts.update({(stop, value): index for (stop, value, _), index in zip(stops, of, strict=True)})
    return parts, rows


def _region(
    record: Record, start: int, consumers: Mapping[int, list[int]], signals: AbstractSet[int], leaves: Leaves
) -> list[int]:
    """List the operations, in order, that only move what a layer gives."""
    inside, found, seen = {start}, [], set()
    ahead = list(consumers.get(start, ()))
    while ahead:
        number = min(ahead)
        ahead.remove(number)
        if number in seen:
            continue
        seen.add(number)
        op = record.ops[number]
        if _moves(record, op, inside, signals, leaves):
            found.append(number)
            inside.update(op.outputs)
            ahead += [n for value in op.outputs for n in consumers.get(value, ())]
    return found


def _moves(
    record: Record, op: Op, inside: AbstractSet[int], signals: AbstractSet[int], leaves: Leaves
) -> bool:
    mine = [value for value in op.inputs if value in signals]
    if not mine or not all(value in inside for value in mine) or op.func is None:
        return False
    used = [value for value in op.inputs if leaves(value)]
    if used and not (op.name in ("add", "add_") and len(used) == 1):
        return False
    if op.name in MOVES:
        return not any(value not in mine for value in op.inputs)
    shape = record.shapes[mine[0]]
    return all(record.shapes[v] == shape for v in (*mine, op.outputs[0]))


def _stops(
    record: Record, start: int, region: list[int], consumers: Mapping[int, list[int]], axis: int
) -> list[Stop]:
    """Follow the numbers of the rows through a region to where it is left."""
    shape = record.shapes[start]
    wide = shape[axis]
    spread = [1] * len(shape)
    spread[axis] = wide
    labels = {start: torch.arange(wide).reshape(spread).expand(shape).contiguous()}
    moved, lost = set(), set[int]()
    for number in region:
        op = record.ops[number]
        mine = [value for value in dict.fromkeys(op.inputs) if value in labels]
        made = None if lost.intersection(op.inputs) else _labels(op, mine, labels)
        if made is None:
            lost.update(op.outputs)
        else:
            moved.add(number)
            labels.update(zip(op.outputs, made, strict=False))
    return [
        (number, value, known)
        for value, known in labels.items()
        for number in consumers.get(value, ())
        if number not in moved
    ]


def _labels(op: Op, mine: list[int], labels: Mapping[int, torch.Tensor]) -> list[torch.Tensor] | None:
    if op.name not in MOVES:
        one = labels[mine[0]]
        same = all(torch.equal(_kept(labels[value]), _kept(one)) for value in mine[1:])
        return [one] if same else None
    kwargs = {
        name: value for name, value in op.kwargs.items() if not isinstance(value, (torch.dtype, torch.device))
    }
    try:
        made = called(op, labels, kwargs)
    except RuntimeError:
        return None
    return list(made) if isinstance(made, (tuple, list)) else [cast("torch.Tensor", made)]


def _kept(labels: torch.Tensor) -> torch.Tensor:
    kept: torch.Tensor = torch.unique(labels)
    return kept


def _groups(stops: list[Stop]) -> tuple[list[torch.Tensor], list[int]]:
    """Group rows by the places where they arrive, each group in the order of arrival."""
    arrivals: dict[int, list[int]] = {}
    orders = []
    for index, (_, _, labels) in enumerate(stops):
        order = _first_seen(labels)
        orders.append(order)
        for row in order:
            arrivals.setdefault(row, []).append(index)
    groups: dict[tuple[int, ...], list[int]] = {}
    for order in orders:
        for row in order:
            group = groups.setdefault(tuple(arrivals[row]), [])
            group.append(row)
    unique = [list(dict.fromkeys(group)) for group in groups.values()]
    keys = list(groups)
    of = [next((i for i, key in enumerate(keys) if index in key), 0) for index in range(len(stops))]
    return [torch.tensor(group) for group in unique], of


def _first_seen(labels: torch.Tensor) -> list[int]:
    flat = labels.reshape(-1)
    first = torch.full((int(flat.max()) + 1,), flat.numel())
    first.scatter_reduce_(0, flat, torch.arange(flat.numel()), "amin")
    known = (first < flat.numel()).nonzero().flatten()
    return [int(row) for row in known[first[known].argsort()]]

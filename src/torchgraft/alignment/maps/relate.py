"""Alignments turned round and one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from torchgraft.alignment.entry import (
    Ambiguity,
    Entry,
    Mismatch,
    Part,
    Shape,
    joined_shape,
    part_shape,
    seen_shape,
)
from torchgraft.alignment.maps.pieces import grain_of, index_map, summarise

Places = tuple[tuple[Entry, ...], tuple[Mismatch, ...], tuple[Ambiguity, ...]]


def inverted(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    entries: Sequence[Entry],
    mismatched: Iterable[Mismatch],
    ambiguous: Iterable[Ambiguity],
) -> Places:
    """Say for every source tensor where it went, where all of it went somewhere."""
    users: dict[str, list[Entry]] = {}
    for entry in entries:
        for key in entry.keys:
            users.setdefault(key, []).append(entry)
    made = {key: _back(key, source, target, users[key]) for key in source if key in users}
    turned = {one.source: Mismatch(one.source, one.target, one.found, one.asked) for one in mismatched}
    candidates: dict[str, set[str]] = {}
    for doubt in ambiguous:
        for key in doubt.candidates:
            candidates.setdefault(key, set()).add(doubt.target)
    taken = {key for key, entry in made.items() if entry is not None}
    return (
        tuple(entry for entry in made.values() if entry is not None),
        tuple(one for key, one in turned.items() if key not in taken),
        tuple(
            Ambiguity(key, tuple(sorted(names)))
            for key, names in candidates.items()
            if key not in taken and key not in turned
        ),
    )


def _back(
    key: str, source: Mapping[str, Shape], target: Mapping[str, Shape], users: Sequence[Entry]
) -> Entry | None:
    """Make a source tensor out of the targets that took from it: of one alone where that can be."""
    for entry in users:
        if entry.whole:
            return Entry(key, (Part(entry.target),), rule=entry.rule, evidence=entry.evidence)
    for entry in users:
        part = _turned_back(entry, source, target)
        if part is not None:
            return Entry(key, (part,), rule=entry.rule, evidence=entry.evidence)
    alone = ([entry] for entry in users)
    tries = (_gathered(key, source, target, some) for some in (*alone, users))
    return next((entry for entry in tries if entry is not None), None)


def _turned_back(entry: Entry, source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Part | None:
    """Turn one tensor's axes back, where that is all that was done: no index map is needed then."""
    part = entry.parts[0]
    if len(entry.parts) > 1 or part.rows is not None or (part.axes and entry.axes):
        return None
    axes = entry.axes or part.axes
    seen = joined_shape(entry, source) if entry.axes else seen_shape(part, source)
    view = tuple(seen[axis] for axis in axes)
    back = tuple(map(axes.index, range(len(axes))))
    if back == tuple(range(len(axes))):
        return Part(entry.target)
    return Part(entry.target, () if view == target[entry.target] else view, back)


def _gathered(
    key: str, source: Mapping[str, Shape], target: Mapping[str, Shape], users: Sequence[Entry]
) -> Entry | None:
    parts = [part for entry in users for part in entry.parts if part.key == key]
    if sum(math.prod(part_shape(part, source)) for part in parts) < math.prod(source[key]):
        return None
    names = [entry.target for entry in users]
    grain = math.gcd(math.prod(source[key]), *(grain_of(entry, source) for entry in users))
    which = torch.full((math.prod(source[key]) // grain,), -1)
    where = torch.zeros_like(which)
    for index, entry in enumerate(users):
        of, place = index_map(entry, source, grain)
        held = (of == entry.keys.index(key)).nonzero().flatten()
        which[place[held]], where[place[held]] = index, held
    if bool((which < 0).any()):
        return None
    rule, evidence = _words(users, "rule"), _words(users, "evidence")
    return summarise(key, source[key], names, target, which, where, rule, evidence, grain)


def composed(
    source: Mapping[str, Shape],
    middle: Mapping[str, Shape],
    target: Mapping[str, Shape],
    first: Places,
    second: Places,
) -> Places:
    """Say where the tensors of the second's target come from in the first's source."""
    ways = {entry.target: entry for entry in first[0]}
    # What is whole in the middle passes on what the first could not decide.
    odd = {one.target: one.source for one in first[1]}
    doubts = {one.target: one.candidates for one in first[2]}
    entries: list[Entry] = []
    mismatched: list[Mismatch] = []
    ambiguous: list[Ambiguity] = []
    for entry in second[0]:
        name, only = entry.target, entry.keys[0] if entry.whole else ""
        if all(key in ways for key in entry.keys):
            made = _through(entry, ways, source, middle, target[name])
            entries += [made] if made is not None else []
        elif only in odd:
            mismatched.append(Mismatch(name, odd[only], target[name], source[odd[only]]))
        elif only in doubts:
            ambiguous.append(Ambiguity(name, doubts[only]))
    for one in second[1]:
        if one.source in ways and ways[one.source].whole:
            key = ways[one.source].keys[0]
            mismatched.append(Mismatch(one.target, key, one.asked, source[key]))
    for doubt in second[2]:
        found = {key for name in doubt.candidates if name in ways for key in ways[name].keys}
        if found:
            ambiguous.append(Ambiguity(doubt.target, tuple(sorted(found))))
    return tuple(entries), tuple(mismatched), tuple(ambiguous)


def _through(
    entry: Entry,
    ways: Mapping[str, Entry],
    source: Mapping[str, Shape],
    middle: Mapping[str, Shape],
    shape: Shape,
) -> Entry | None:
    """Make a tensor out of the tensors that its own sources are made of."""
    used = [ways[key] for key in entry.keys]
    rule, evidence = _words([*used, entry], "rule"), _words([*used, entry], "evidence")
    if entry.whole:
        return attrs.evolve(used[0], target=entry.target, rule=rule, evidence=evidence)
    parts = [_renamed(part, ways, source, middle) for part in entry.parts]
    if None not in parts:
        known = tuple(part for part in parts if part is not None)
        view = joined_shape(entry, middle) if entry.axes else entry.view  # parts may now have other shapes
        return attrs.evolve(entry, parts=known, view=view, rule=rule, evidence=evidence)
    names = tuple(dict.fromkeys(key for way in used for key in way.keys))
    grain = math.gcd(grain_of(entry, middle), *(grain_of(way, source) for way in used))
    which, where = index_map(entry, middle, grain)
    of, place = torch.full_like(which, -1), torch.zeros_like(where)
    for index, way in enumerate(used):
        held = which == index
        inner, at = index_map(way, source, grain)
        index_of = torch.tensor([*map(names.index, way.keys), -1])  # the last stands for zeros
        of[held], place[held] = index_of[inner[where[held]]], at[where[held]]
    return summarise(entry.target, shape, names, source, of, place, rule, evidence, grain)


def _renamed(
    part: Part, ways: Mapping[str, Entry], source: Mapping[str, Shape], middle: Mapping[str, Shape]
) -> Part | None:
    """Take a part from where its own tensor comes from, where no index map is needed for that."""
    if not part.key:
        return part
    way = ways[part.key]
    first = way.parts[0]
    seen = seen_shape(part, middle)
    if way.whole:
        return attrs.evolve(part, key=first.key, view=() if seen == source[first.key] else seen)
    pure = len(way.parts) == 1 and first.rows is None and bool(first.axes) and not way.axes
    if not pure or seen != part_shape(first, source):
        return None
    axes = tuple(first.axes[axis] for axis in part.axes or range(len(seen)))
    if axes == tuple(range(len(axes))):
        return Part(first.key, first.view if part.rows else (), rows=part.rows)
    return Part(first.key, first.view, axes, part.rows)


def _words(entries: Sequence[Entry], field: str) -> str:
    """Write each rule, or each evidence, once."""
    return ", ".join(dict.fromkeys(word for entry in entries if (word := getattr(entry, field))))

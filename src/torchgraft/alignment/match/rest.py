"""Tensors that no signal reaches: counters, further names, constants, layers that a forward leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import nn

from torchgraft.alignment.alignment import Ambiguity, Entry, Part
from torchgraft.alignment.match.behaviour import Seen
from torchgraft.alignment.match.places import Places
from torchgraft.paths import join_path, last_of

_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNTER)
Tensors = Mapping[str, torch.Tensor]


def counters(
    source: Places, target: Places, seen: Mapping[int, Seen], tensors: tuple[Tensors, Tensors]
) -> Iterable[Entry | Ambiguity]:
    """Pair the counters of normalisations that are paired.

    Args:
        source: places of the source.
        target: places of the target.
        seen: which is which.
        tensors: the tensors of both, by name.

    Yields:
        Their entries; ambiguities where the normalisations are.
    """
    for number, pair in seen.items():
        if target.places[number].kind != "norm":
            continue
        ours = _beside(target.keys(number))
        beside = {_beside(source.keys(n)) for n in (pair.source, *pair.others)}
        theirs = sorted(beside & tensors[0].keys())
        if ours in tensors[1] and pair.others and theirs:
            yield Ambiguity(ours, tuple(theirs))
        elif ours in tensors[1] and theirs:
            yield Entry(ours, (Part(theirs[0]),), rule=pair.rule, evidence=pair.evidence)


def _beside(keys: tuple[str, ...]) -> str:
    return join_path(keys[-1].rpartition(".")[0], _COUNTER) if keys else ""


def aliases(
    tensors: tuple[Tensors, Tensors], entries: Mapping[str, Entry], ambiguous: Mapping[str, Ambiguity]
) -> Iterable[Entry | Ambiguity]:
    """Pair the further names of tensors that are paired by one of their names.

    Args:
        tensors: the tensors of both, by name.
        entries: what is known, by target.
        ambiguous: what is not.

    Yields:
        Their entries, from a further name of the source's tensor where that has as many;
        ambiguities where the first name has several candidates.
    """
    ours, theirs = _names(tensors[1]), _names(tensors[0])
    taken = {key for entry in entries.values() for key in entry.keys}
    for key, entry in entries.items():
        new = [name for name in ours[id(tensors[1][key])] if name not in entries]
        held = theirs[id(tensors[0][entry.keys[0]])] if entry.whole else []
        free = [name for name in held if name not in taken]
        others = [name for name in free if name not in new] if len(free) == len(new) else []
        for name in new:
            other = name if name in free else others.pop(0) if others else ""
            yield attrs.evolve(entry, target=name, parts=(Part(other),) if other else entry.parts)
    for key, one in ambiguous.items():
        candidates = {name for other in one.candidates for name in theirs[id(tensors[0][other])]}
        for name in ours[id(tensors[1][key])]:
            if name not in ambiguous and name not in entries:
                yield Ambiguity(name, tuple(sorted(candidates)))


def _names(tensors: Tensors) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(key)
    return names


def constants(tensors: tuple[Tensors, Tensors], left: tuple[Iterable[str], Iterable[str]]) -> Iterable[Entry]:
    """Pair tables that are no parameters and hold the same.

    Args:
        tensors: the tensors of both, by name.
        left: names of those of either side that are no part of a layer.

    Yields:
        Their entries.
    """
    held: dict[tuple[object, ...], list[str]] = {}
    for key in left[0]:
        tensor = tensors[0][key]
        if _constant(key, tensor):
            held.setdefault((tuple(tensor.shape), tensor.dtype), []).append(key)
    for key in left[1]:
        tensor = tensors[1][key]
        if _constant(key, tensor):
            alike = held.get((tuple(tensor.shape), tensor.dtype), [])
            same = [other for other in alike if _equal(tensors[0][other], tensor)]
            same.sort(key=lambda other: other != key)
            if same:
                yield Entry(key, (Part(same[0]),), rule="constant", evidence="values")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    strided = one.layout == other.layout == torch.strided
    return strided and torch.equal(one.detach().cpu(), other.detach().cpu())


def _constant(key: str, tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, nn.Parameter) and not tensor.is_meta and not key.endswith(_COUNTER)


def by_name(key: str, tensor: torch.Tensor) -> bool:
    """Tell whether a name is enough to move a tensor: a table of which the values are at hand is not."""
    return isinstance(tensor, nn.Parameter) or tensor.is_meta or last_of(key) in _STATISTICS


def unreached(
    tensors: tuple[Tensors, Tensors], left: tuple[Iterable[str], Iterable[str]]
) -> Iterable[Entry | Ambiguity]:
    """Pair by their names tensors that no run reaches.

    Args:
        tensors: the tensors of both, by name.
        left: names of those of the source and of the target that no run reaches.

    Yields:
        An entry where the names are equal, or where there is but one of that shape and
        kind on both sides; an ambiguity where there are several.
    """
    ours = _by_kind(tensors[0], left[0])
    theirs = _by_kind(tensors[1], left[1])
    for what, keys in theirs.items():
        others = ours.get(what, [])
        for key in keys:
            if key in others or len(others) == len(keys) == 1:
                other = key if key in others else others[0]
                yield Entry(key, (Part(other),), rule="names", evidence="names")
            elif others:
                yield Ambiguity(key, tuple(sorted(others)))


def _by_kind(tensors: Tensors, keys: Iterable[str]) -> dict[tuple[object, ...], list[str]]:
    kinds: dict[tuple[object, ...], list[str]] = {}
    for key in keys:
        kinds.setdefault((last_of(key), tuple(tensors[key].shape)), []).append(key)
    return kinds

"""Layers that nothing but their names tells apart."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

Names = tuple[str, ...]
Mark = tuple[tuple[str, ...], ...]

_MOST = 5  # more twins than that are told apart by equal words alone


def told_by_names(source: Sequence[Names], target: Sequence[Names]) -> list[int] | None:
    """Pair twins by the parts of their names in which they differ from each other.

    Args:
        source: names of the parameters of each twin.
        target: likewise, as many.

    Returns:
        For each of the target which of the source it is; ``None`` where the names do not
        say, or say it of some only.
    """
    ours, theirs = _marks(source), _marks(target)
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        return None
    if set(ours) == set(theirs):
        return [ours.index(mark) for mark in theirs]
    if len(ours) > _MOST:
        return None
    ways = sorted(
        (sum(_alike(ours[s], mark) for s, mark in zip(way, theirs, strict=True)), way)
        for way in itertools.permutations(range(len(ours)))
    )
    return list(ways[-1][1]) if ways[-1][0] > ways[-2][0] + 0.5 else None


def _alike(one: Mark, other: Mark) -> float:
    """Count the words that two names share; a word and its beginning are shared in half."""
    ours, theirs = ({word for name in mark for word in name if not word.isdigit()} for mark in (one, other))
    if not ours or not theirs:
        return float(not ours and not theirs)
    common = len(ours & theirs)
    begun = sum(
        min(len(a), len(b)) > 2 and (a.startswith(b) or b.startswith(a))
        for a in ours - theirs
        for b in theirs - ours
    )
    return common + begun / 2


def _marks(twins: Sequence[Names]) -> list[Mark]:
    """Keep of the names what the twins do not all have."""
    words = [[tuple(re.split(r"[._]", name)) for name in names] for names in twins]
    counted = [frozenset(word for name in names for word in name) for names in words]
    common = frozenset.intersection(*counted) if counted else frozenset()
    return [
        tuple(sorted(tuple(word for word in name if word not in common) for name in names)) for names in words
    ]

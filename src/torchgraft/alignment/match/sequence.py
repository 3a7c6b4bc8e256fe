"""Align two sequences so that what corresponds keeps its order and as much as possible does."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

Pairs = list[tuple[int, int]]

_LARGEST = 4_000_000


def aligned(
    source: Sequence[Hashable], target: Sequence[Hashable], score: Callable[[int, int], float]
) -> Pairs:
    """Pair the items of two sequences in order, for the highest sum of scores.

    Of several ways the one is taken that pairs the earliest items: where a run has grown,
    what is new stands at its end.

    Args:
        source: what each item of the source is; equal items are paired at both ends first.
        target: likewise for the target.
        score: what a pair is worth; nothing for pairs that do not correspond.

    Returns:
        Pairs of positions, in order.
    """
    first = 0
    while first < min(len(source), len(target)) and source[first] == target[first]:
        first += 1
    last = 0
    while last < min(len(source), len(target)) - first and source[-1 - last] == target[-1 - last]:
        last += 1
    middle = _middle(range(first, len(source) - last), range(first, len(target) - last), score)
    ends = [(len(source) - i, len(target) - i) for i in range(last, 0, -1)]
    return _earliest([*((i, i) for i in range(first)), *middle, *ends], source, target)


def _middle(source: range, target: range, score: Callable[[int, int], float]) -> Pairs:
    if not source or not target or len(source) * len(target) > _LARGEST:
        return []
    wide = len(target)
    best = [[0.0] * (wide + 1) for _ in range(len(source) + 1)]
    worth = [[score(s, t) for t in target] for s in source]
    for i in reversed(range(len(source))):
        row, below, mine = best[i], best[i + 1], worth[i]
        for j in reversed(range(wide)):
            row[j] = max(below[j], row[j + 1], mine[j] + below[j + 1] if mine[j] > 0 else 0.0)
    pairs, i, j = [], 0, 0
    while i < len(source) and j < wide:
        if worth[i][j] > 0 and best[i][j] <= worth[i][j] + best[i + 1][j + 1] + 1e-9:
            pairs.append((source[i], target[j]))
            i, j = i + 1, j + 1
        elif best[i][j] <= best[i][j + 1] + 1e-9:
            j += 1
        else:
            i += 1
    return pairs


def _earliest(pairs: Pairs, source: Sequence[Hashable], target: Sequence[Hashable]) -> Pairs:
    """Move pairs forward as far as equal items allow."""
    moved: Pairs = []
    for pair in pairs:
        s, t = pair
        least = moved[-1] if moved else (-1, -1)
        while s - 1 > least[0] and source[s - 1] == source[s] == target[t]:
            s -= 1
        while t - 1 > least[1] and target[t - 1] == target[t] == source[s]:
            t -= 1
        moved.append((s, t))
    return moved

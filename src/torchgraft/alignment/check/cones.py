"""What two runs did since the last values that they share, and the first of it that differs."""

from __future__ import annotations

from torchgraft.alignment.check.comparing import Both, differences
from torchgraft.alignment.check.divergence import Difference, Divergence, Site
from torchgraft.alignment.check.reading import family, is_draw, is_view, keys_of, said, site_of
from torchgraft.alignment.check.trail import Trail
from torchgraft.alignment.match.sequence import aligned

Pair = tuple[int | None, int | None]
# What parts two runs stands near the beginning of what they do not share.
_MOST = 1000


def diverged(both: Both) -> Divergence | None:
    """Find the first site where two runs part for a reason.

    What computes and what picks is looked at first; then how values are seen, too.

    Args:
        both: the two runs.

    Returns:
        The first site with a reason; without any, the first; ``None`` where all is the same.
    """
    cones = both.cone(0), both.cone(1)
    for views in (False, True):
        pairs = _paired(both, cones, views=views)
        told = _first(both, pairs)
        if told:
            return _written(both, told, _reasons(both, told))
    return _written(both, pairs[:1], ()) if pairs else None


def _paired(both: Both, cones: tuple[list[int], list[int]], *, views: bool) -> list[Pair]:
    """Pair the operations of two cones, in order; where one has no counterpart, ``None``."""
    ours, theirs = (
        [n for n in cone if views or not is_view(trail.record.ops[n])][:_MOST]
        for cone, trail in zip(cones, both.sides, strict=True)
    )
    mine = [(family(both.a.record.ops[n], both.a), both.places(n, 0)) for n in ours]
    others = [(family(both.b.record.ops[n], both.b), both.places(n, 1)) for n in theirs]
    matched = aligned(
        mine, others, lambda i, j: (mine[i][0] == others[j][0]) * (1.0 + 2 * bool(mine[i][1] & others[j][1]))
    )
    made: list[Pair] = []
    i = j = 0
    for s, t in [*matched, (len(ours), len(theirs))]:
        made += [(n, None) for n in ours[i:s]]
        made += [(None, n) for n in theirs[j:t]]
        made += [(ours[s], theirs[t])] if s < len(ours) else []
        i, j = s + 1, t + 1
    return made


def _first(both: Both, pairs: list[Pair]) -> list[Pair]:
    """Return the first stretch of pairs that differ: lone operations, and the pair that they lead to."""
    for first, pair in enumerate(pairs):
        if None in pair or differences(both, *pair):
            last = next((i for i in range(first, len(pairs)) if None not in pairs[i]), len(pairs))
            return pairs[first : last + 1]
    return []


def _reasons(both: Both, told: list[Pair]) -> tuple[Difference, ...]:
    lone = [pair for pair in told if None in pair]
    a, b = (_chain(trail, [pair[side] for pair in lone]) for side, trail in enumerate(both.sides))
    found = [Difference("function", a, b)] if lone else []
    return tuple(dict.fromkeys([*found, *(one for pair in told for one in differences(both, *pair))]))


def _chain(trail: Trail, numbers: list[int | None]) -> str | None:
    """Write what only one of the runs does; of what drops values out, what draws them."""
    ops = [trail.record.ops[n] for n in numbers if n is not None]
    return ", ".join(said(op, trail) for op in list(filter(is_draw, ops)) or ops) or None


def _written(both: Both, told: list[Pair], reasons: tuple[Difference, ...]) -> Divergence:
    a, b = (_number(trail, [pair[side] for pair in told]) for side, trail in enumerate(both.sides))
    one, other = _given(both.a, told[0][0]), _given(both.b, told[0][1])
    seen = 0.0 if one is None or other is None else both.apart(one, other)
    ends = told[-1] if None not in told[-1] else (None, None)
    made = both.apart(_made(both.a, ends[0]), _made(both.b, ends[1]))
    agree = sum(place.op < (b or 0) for place in both.agreeing())
    total = sum(bool(place.slots) for place in both.b.places.places)
    return Divergence(_site(both.a, a), _site(both.b, b), reasons, seen, made, agree, total)


def _number(trail: Trail, numbers: list[int | None]) -> int | None:
    """Return the first operation, or the one that draws what is dropped out; of none, the model's last."""
    known = [n for n in numbers if n is not None] or [
        trail.maker[value] for value in trail.record.outputs if value in trail.maker
    ]
    return next((n for n in known if is_draw(trail.record.ops[n])), known[0] if known else None)


def _site(trail: Trail, number: int | None) -> Site:
    return Site("", (), "input") if number is None else site_of(number, trail)


def _given(trail: Trail, number: int | None) -> int | None:
    """Return the first value that an operation is given and the model does not hold."""
    inputs = () if number is None else trail.record.ops[number].inputs
    return next((value for value in inputs if not keys_of(value, trail)), None)


def _made(trail: Trail, number: int | None) -> int:
    """Return what comes of an operation; without any, what comes of the model."""
    return (trail.record if number is None else trail.record.ops[number]).outputs[0]

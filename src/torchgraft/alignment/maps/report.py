"""An alignment as text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torchgraft.alignment.entry import Ambiguity, Mismatch, Shape
from torchgraft.text import columns, plural, write_dims

_SHOWN = 12
_CANDIDATES = 4


def headline(coverage: float, total: int, operations: Iterable[str], counts: Mapping[str, int]) -> str:
    """Write how much is aligned and by what, and how many tensors of each kind are not."""
    done = ", ".join(f"{count:,} {name}" for name, count in Counter(operations).most_common()) or "nothing"
    left = "; ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{percent(coverage)} of {plural(total, 'value')} aligned: {done}; {left}"


def percent(share: float) -> str:
    """Write a share so that only all of it is 100 % and only none of it is 0 %."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{100 * share:.1f} %"


def groups(
    mismatched: Sequence[Mismatch],
    ambiguous: Sequence[Ambiguity],
    missing: Mapping[str, Shape],
    unused: Mapping[str, Shape],
) -> list[str]:
    """Write the tensors that nothing was found for, group by group."""
    pairs = [(m.target, write_dims(m.asked), "<-", m.source, write_dims(m.found)) for m in mismatched]
    doubts = [(a.target, "<-", _candidates(a.candidates)) for a in ambiguous]
    tables: list[tuple[str, Sequence[tuple[str, ...]]]] = [
        ("differ in shape", pairs),
        ("ambiguous", doubts),
        ("missing", [(key, write_dims(shape)) for key, shape in missing.items()]),
        ("unused", [(key, write_dims(shape)) for key, shape in unused.items()]),
    ]
    lines: list[str] = []
    for title, rows in tables:
        if rows:
            table = columns(rows[:_SHOWN]).splitlines()
            more = [f"... and {len(rows) - _SHOWN:,} more"] if len(rows) > _SHOWN else []
            lines += [f"  {title}", *(f"    {line}" for line in (*table, *more))]
    return lines


def _candidates(names: Sequence[str]) -> str:
    more = f" and {len(names) - _CANDIDATES} more" if len(names) > _CANDIDATES else ""
    return ", ".join(names[:_CANDIDATES]) + more

"""The two trees as rows of a page: one row for both sides, folded where nothing differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from torchgraft.show.difference.facts import Look
from torchgraft.show.difference.tree import ModuleDiff, Spread
from torchgraft.show.difference.words import clean, evenly, holds, noted
from torchgraft.text import plural

MARKS = {
    "same": "",
    "added": "+",
    "removed": "\N{MINUS SIGN}",
    "changed": "~",
    "moved": "\N{RIGHTWARDS ARROW}",
}
_SHORTEST = 3
_LONG = 20
_Known = frozenset[Spread]


def rows(tree: ModuleDiff) -> str:
    """Write the rows of a tree.

    Args:
        tree: the pair of the two roots.

    Returns:
        The rows, in elements that open and close without a script.
    """
    return _Rows(tree).branch(tree, frozenset(), 0, opened=True)


def safe(text: object) -> str:
    """Write a text that may hold anything into a page."""
    return escape(clean(str(text)))


def short(count: int | None) -> str:
    """Write a large number with a unit: ``4.09 G``."""
    if count is None:
        return "unknown"
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {unit}"
    return str(count)


class _Rows:
    def __init__(self, tree: ModuleDiff) -> None:
        self._most = max(look.macs or 0 for look in (tree.before, tree.after) if look) or 1

    def branch(self, module: ModuleDiff, known: _Known, depth: int, *, opened: bool, like: str = "") -> str:
        """Write a module and those below it."""
        opened &= not module.path or holds(module, known)
        notes = noted(module, known=known, folded=not opened, figures=False)
        notes += [f"as in {like}"] * bool(like)
        cells = self._cells(module, notes)
        mild = bool(module.changes) and all(change.aspect == "shape" for change in module.changes)
        name = (
            f"row {module.status}"
            + " mild" * mild
            + " within" * (module.status == "same" and holds(module, known))
        )
        if not module.under:
            return f'<div class="{name}" style="--d:{depth}">{cells}</div>\n'
        below = "".join(self._children(module, evenly(module, known), depth + 1))
        return (
            f"<details{' open' if opened else ''}>"
            f'<summary class="{name}" style="--d:{depth}">{cells}</summary>\n{below}</details>\n'
        )

    def _children(self, module: ModuleDiff, known: _Known, depth: int) -> Iterator[str]:
        last: tuple[object, str] = (None, "")
        for same, group in groupby(
            module.under, key=lambda m: (m.touched or holds(m, known), _said(m, known))
        ):
            held = list(group)
            if not same[0] and len(held) >= _SHORTEST and module.touched:
                yield self._run(held, known, depth)
                continue
            for child in held:
                form = _form(child)
                like = last[1] if holds(child, known) and form == last[0] else ""
                yield self.branch(child, known, depth, opened=not like, like=like)
                last = form, like or child.path.rpartition(".")[2]

    def _run(self, held: Sequence[ModuleDiff], known: _Known, depth: int) -> str:
        """Fold neighbours in which nothing differs into one row."""
        first, end = (m.path.rpartition(".")[2] for m in (held[0], held[-1]))
        label = (
            f"<b>{safe(first)} \N{HORIZONTAL ELLIPSIS} {safe(end)}</b> <i>{plural(len(held), 'module')}</i>"
        )
        sums = [(m.before or m.look, m.after or m.look) for m in held]
        sides = [
            self._side(label, "", sum(s[i].parameters for s in sums), _sum([s[i].macs for s in sums]))
            for i in (0, 1)
        ]
        inner = "".join(self.branch(m, known, depth, opened=False) for m in held)
        cells = self._pair(sides[0], sides[1], "same", noted(held[0], known=known))
        summary = f'<summary class="row same run" style="--d:{depth}">{cells}</summary>'
        return f"<details>{summary}\n{inner}</details>\n"

    def _cells(self, module: ModuleDiff, notes: Sequence[str]) -> str:
        before, after = module.before, module.after
        sides = [self._look(look, other) for look, other in ((before, after), (after, before))]
        return self._pair(sides[0], sides[1], module.status, notes)

    def _pair(self, before: str, after: str, status: str, notes: Sequence[str]) -> str:
        label = f' role="img" aria-label="{status}"' if status != "same" else ""
        said = "".join(f"<span>{safe(note)}</span>" for note in notes)
        more = f'<span class="notes">{said}</span>' if said else ""
        before, after = (before, after + more) if after else (before + more, "")
        return (
            f'<span class="side b">{before}</span><span class="mark"{label}>{MARKS[status]}</span>'
            f'<span class="side a">{after}</span>'
        )

    def _look(self, look: Look | None, other: Look | None) -> str:
        if look is None:
            return ""
        name = look.path.rpartition(".")[2] or "the model"
        options = f" <em>{safe(look.options)}</em>" if look.options else ""
        opened = ' <u title="its forward is a graph">opened</u>' if look.opened else ""
        label = f"<b>{safe(name)}</b> <i>{safe(look.kind)}</i>{opened}{options}"
        return self._side(label, look.shape, look.parameters, look.macs, other, look.options)

    def _side(
        self,
        label: str,
        shape: str,
        parameters: int,
        macs: int | None,
        other: Look | None = None,
        options: str = "",
    ) -> str:
        changed = [other is not None and a != b for a, b in _figures(shape, parameters, macs, other)]
        marks = [" x" if one else "" for one in changed]
        whole = f' title="{safe(options)}"' if len(options) > _LONG else ""
        share = f' style="--w:{100 * macs / self._most:.2f}%"' if macs else ""
        return (
            f'<span class="name"{whole}>{label}</span><span class="shape{marks[0]}">{safe(shape)}</span>'
            f'<span class="count{marks[1]}">{f"{parameters:,}" if parameters else ""}</span>'
            f'<span class="macs{marks[2]}"{share}>{short(macs) if macs else ""}</span>'
        )


def _figures(
    shape: str, parameters: int, macs: int | None, other: Look | None
) -> Iterator[tuple[object, object]]:
    yield shape, other and other.shape
    yield parameters, other and other.parameters
    yield macs, other and other.macs


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _said(module: ModuleDiff, known: _Known) -> tuple[str, ...]:
    return tuple(noted(module, known=known))


def _form(module: ModuleDiff) -> object:
    """Give what has to be equal for two neighbours to differ in the same way."""
    below = [(child.path.rpartition(".")[2], _form(child)) for child in module.under]
    return module.status, module.look.kind, module.changes, below

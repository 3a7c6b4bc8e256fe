"""Draw a model as a tree with some of its lines marked, short enough to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from torchgraft.graph.draft import Draft
from torchgraft.paths import join_path, parents_of
from torchgraft.select.site import Site
from torchgraft.text import columns, plural

_LONGEST = 60
_DEEP = 40
"""Rows of a tree that is drawn as deep as it can be read."""

_DEEPEST = 40
"""Levels of a tree; names come from files."""

_MARK = ">"

Row = tuple[str, str, str]
"""Mark and indented name, class and how many are alike, what else is said."""


@attrs.frozen
class Line:
    """One line and those under it; alike lines that follow each other are drawn as one."""

    names: tuple[str, ...]
    mark: str
    kind: str
    shapes: str
    under: tuple[Line, ...]

    def like(self) -> object:
        """Return what has to be equal for two lines to be drawn as one."""
        return self.mark, self.kind, self.shapes, [(u.names, u.like()) for u in self.under]


def draw_sites(draft: Draft, sites: Sequence[Site]) -> list[str]:
    """Draw the tree around some sites.

    Lines of the sites are marked, with their shapes at the right; what holds none of them
    is drawn in one line, and so are neighbours that are alike.

    Args:
        draft: the model.
        sites: the sites.

    Returns:
        The lines.
    """
    meant = {path for site in sites for path in (site.path, site.owner) if path is not None}
    shown = {around for path in meant for around in (path, *parents_of(path))}
    marked = {site.path: site for site in sites}
    rows = rows_of(_lines_under(draft, "", shown, marked))
    return draw_rows(rows, "  ... {}; .paths lists all").splitlines()


def _lines_under(draft: Draft, path: str, shown: set[str], marked: dict[str, Site]) -> tuple[Line, ...]:
    lines = []
    for name, module in draft.get(path)._modules.items():
        if module is None:
            continue
        child = join_path(path, name)
        site = marked.get(child)
        if child not in shown:
            lines.append(Line((name,), "", "", "", ()))
        else:
            under = _lines_under(draft, child, shown, marked)
            shapes = site.shapes() if site else ""
            lines.append(Line((name,), _MARK if site else "", type(module).__name__, shapes, under))
    for site in marked.values():
        if site.owner == path:
            short = site.path[len(path) :].lstrip(".")
            lines.append(Line((short,), _MARK, site.kind, site.shapes(), ()))
    return join_alike(lines)


def join_alike(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Make one line of neighbours that are alike."""
    found: list[Line] = []
    for line in lines:
        if found and found[-1].like() == line.like():
            found[-1] = attrs.evolve(found[-1], names=(*found[-1].names, *line.names))
        else:
            found.append(line)
    return tuple(found)


def lines_by_path(said: Mapping[str, tuple[str, str]]) -> tuple[Line, ...]:
    """Make a tree of lines: class and the rest by path; what is around a path alone has its name alone."""
    tree: dict[str, Any] = {}
    for path in said:
        held = tree
        for part in path.split(".", _DEEPEST):
            held = held.setdefault(part, {})

    def grow(held: dict[str, Any], around: str) -> tuple[Line, ...]:
        paths = {name: f"{around}{name}" for name in held}
        below = {name: grow(held[name], f"{path}.") for name, path in paths.items()}
        return join_alike([Line((n,), "", *said.get(path, ("", "")), below[n]) for n, path in paths.items()])

    return grow(tree, "")


def rows_of(lines: tuple[Line, ...], deepest: int = 99, depth: int = 1) -> list[Row]:
    """Write lines, and those under them down to some depth, as rows."""
    rows = []
    for line in lines:
        text = line.names[0] if len(line.names) == 1 else f"{line.names[0]} ... {line.names[-1]}"
        alike = line.kind if len(line.names) == 1 else f"{line.kind}, {len(line.names)} alike".lstrip(", ")
        if not line.kind:
            alike = "" if len(line.names) == 1 else plural(len(line.names), "module")
        rows.append((f"{line.mark:<2}" + "  " * (depth - 1) + text, alike, line.shapes))
        if depth < deepest:
            rows += rows_of(line.under, deepest, depth + 1)
    return rows


def draw_rows(rows: Sequence[Row], rest: str) -> str:
    """Write rows in columns; of very many the first, and how many more there are.

    Args:
        rows: the rows.
        rest: the line for the others, with ``{}`` for how many lines these are.
    """
    drawn, more = columns(rows[:_LONGEST]), len(rows) - _LONGEST
    return f"{drawn}\n{rest.format(plural(more, 'more line'))}" if more > 0 else drawn


def draw_as_deep(lines: tuple[Line, ...], rest: str, *, every: bool = False) -> str:
    """Write lines and those under them as deep as they can be read.

    Args:
        lines: the lines.
        rest: how to see what is deeper.
        every: as deep as it goes, however long that is.
    """
    whole, deepest = len(rows_of(lines)), 1
    rows = rows_of(lines, deepest)
    while len(rows) < whole:
        deeper = rows_of(lines, deepest + 1)
        if len(deeper) > _DEEP and not every:
            break
        rows, deepest = deeper, deepest + 1
    return columns(rows) if len(rows) == whole else f"{columns(rows)}\n  ... deeper: {rest}"

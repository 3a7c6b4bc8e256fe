"""Draw a model as a tree with some of its lines marked, short enough to read."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from torchgraft.graph.draft import Draft
from torchgraft.select.region import above
from torchgraft.select.site import Site
from torchgraft.text import columns, plural

_LONGEST = 60
_MARK = ">"


@attrs.frozen
class Line:
    """One line and those under it; alike lines that follow each other are drawn as one."""

    names: tuple[str, ...]
    mark: str
    kind: str
    shapes: str
    under: tuple[Line, ...]

    def like(self) -> object:
        """What has to be equal for two lines to be drawn as one."""
        return self.mark, self.kind, self.shapes, [(u.names, u.like()) for u in self.under]


def drawn(draft: Draft, sites: Sequence[Site]) -> list[str]:
    """Draw the tree around some sites.

    Lines of the sites are marked, with their shapes at the right; what holds none of them
    is drawn in one line, and so are neighbours that are alike.

    Args:
        draft: the model.
        sites: the sites.

    Returns:
        The lines.
    """
    shown = {path for site in sites for path in (site.path, *above(site.path))}
    shown.update(
        path for site in sites if site.owner is not None for path in (site.owner, *above(site.owner))
    )
    marked = {site.path: site for site in sites}
    rows = list(lines_of(_under(draft, "", shown, marked), 1))
    if len(rows) > _LONGEST:
        rows = [*rows[:_LONGEST], ("", f"  ... {len(rows) - _LONGEST} more lines; .paths lists all", "", "")]
    return columns([(m + t, k, s) for m, t, k, s in rows]).splitlines()


def _under(draft: Draft, path: str, shown: set[str], marked: dict[str, Site]) -> tuple[Line, ...]:
    lines = []
    for name, module in draft.get(path)._modules.items():
        if module is None:
            continue
        child = f"{path}.{name}".lstrip(".")
        site = marked.get(child)
        if child not in shown:
            lines.append(Line((name,), "", "", "", ()))
        else:
            under = _under(draft, child, shown, marked)
            shapes = site.shapes() if site else ""
            lines.append(Line((name,), _MARK if site else "", type(module).__name__, shapes, under))
    for site in marked.values():
        if site.owner == path:
            short = site.path[len(path) :].lstrip(".")
            lines.append(Line((short,), _MARK, site.kind, site.shapes(), ()))
    return joined(lines)


def joined(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Make one line of neighbours that are alike."""
    found: list[Line] = []
    for line in lines:
        if found and found[-1].like() == line.like():
            found[-1] = attrs.evolve(found[-1], names=(*found[-1].names, *line.names))
        else:
            found.append(line)
    return tuple(found)


def lines_of(lines: tuple[Line, ...], depth: int, deepest: int = 99) -> list[tuple[str, str, str, str]]:
    """Write lines and those under them as rows: mark, indented name, class and how many are alike, shapes."""
    rows = []
    for line in lines:
        text = line.names[0] if len(line.names) == 1 else f"{line.names[0]} ... {line.names[-1]}"
        alike = line.kind if len(line.names) == 1 else f"{line.kind}, {len(line.names)} alike".lstrip(", ")
        if not line.kind:
            alike = "" if len(line.names) == 1 else plural(len(line.names), "module")
        rows.append((f"{line.mark:<2}", "  " * (depth - 1) + text, alike, line.shapes))
        if depth < deepest:
            rows += lines_of(line.under, depth + 1, deepest)
    return rows

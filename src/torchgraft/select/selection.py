"""The selection: what a selector finds in one model, as a value that prints well."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from torchgraft.errors import AnalysisError
from torchgraft.graph.draft import Draft
from torchgraft.select.drawing import draw_sites
from torchgraft.select.site import Site
from torchgraft.text import columns, plural, some


@attrs.frozen(eq=False, repr=False)
class Selection:
    """The sites of a model that a selector means, in the order of execution.

    Args:
        asked: the selector as written.
        sites: the sites.
        draft: the clone of the model that they belong to.
        unknown: why the order is that of registration; ``None`` where a run told it.
    """

    asked: str
    sites: tuple[Site, ...]
    draft: Draft
    unknown: AnalysisError | None = None

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __getitem__(self, index: int) -> Site:
        return self.sites[index]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the modules and the names of the operations."""
        return tuple(site.path for site in self.sites)

    def table(self) -> str:
        """Write a line for each site: path, class or operation, shapes, layout, call sites."""
        rows = [("path", "kind", "shapes", "layout", "called at")]
        for site in self.sites:
            called = some(site.calls, 3) or "nowhere"
            rows.append((site.path, site.kind, site.shapes(), site.layout or "", called))
        return columns(rows)

    def __repr__(self) -> str:
        name = type(self.draft.root).__name__
        lines = [f"{self.asked} on {name}: {plural(len(self), 'site')}"]
        if self.unknown is not None:
            lines.append(f"in the order of registration, as {self.unknown.summary}")
        return "\n".join([*lines, *draw_sites(self.draft, self.sites)])

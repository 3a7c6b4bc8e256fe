"""The query: one question to one draft, with what its parts share."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import attrs

from torchgraft.errors import TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.order import Moment, Order
from torchgraft.select.site import Site


@attrs.frozen(eq=False, slots=False)
class Query:
    """Ask a draft for sites.

    Args:
        draft: the draft.
        own: also return what hangs directly on a module of which parts were taken away.
        strict: nothing found is an error.
        scope: paths to look under, for selectors that would have to follow every forward.
    """

    draft: Draft
    own: bool = False
    strict: bool = True
    scope: tuple[str, ...] = ("",)

    @functools.cached_property
    def order(self) -> Order:
        """When the parts of the model run."""
        return Order(self.draft)

    def require(self, sites: list[Site], summary: str, said: str, part: str) -> list[Site]:
        """Return the sites.

        Args:
            sites: what was found.
            summary: what is to be said if that is nothing.
            said: the selector as an argument.
            part: the same as part of a selector.

        Raises:
            TargetError: there are none, and the query is strict.
        """
        if not sites and self.strict:
            raise TargetError(summary, found="no match", swap=(said, f"{part}.maybe()"))
        return sites

    def once(self, sites: Iterable[Site]) -> list[Site]:
        """Keep the first of the sites that are the same."""
        return list({(s.path, s.owner, s.own, *map(id, s.nodes)): s for s in sites}.values())

    def span(self, site: Site) -> tuple[Moment, Moment]:
        """Return when a site starts to run and when it has run."""
        if site.is_module:
            return self.order.module(site.path)
        return self.order.node(site.owner or "", site.nodes)

    def ordered(self, sites: Iterable[Site]) -> list[Site]:
        """Sort by execution; what never runs keeps the order of registration, at the end."""
        return sorted(sites, key=lambda site: self.span(site)[0])

    def in_scope(self, path: str) -> bool:
        """Return True if a path stands under one of those to look under."""
        return any(not top or path == top or path.startswith(f"{top}.") for top in self.scope)

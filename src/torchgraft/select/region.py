"""Regions: what a list of sites covers, so that selections can be joined, met and taken away."""

from __future__ import annotations

from collections.abc import Sequence

from torchgraft.graph.draft import Draft
from torchgraft.paths import join_path, parents_of
from torchgraft.select.site import Site


class Region:
    """The modules and operations that some sites mean, with all that stands inside them.

    A selection covers the leaves under its sites. Union, meet and complement are those of
    the leaves covered, so the algebra of selectors is that of sets.

    Args:
        sites: the sites.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._modules: set[str] = set()
        self._nodes: set[int] = set()
        self._above: set[str] = set()
        for site in sites:
            for path in _paths(site):
                self._above.update(parents_of(path))
            if site.is_module:
                self._modules.update(_paths(site))
            else:
                self._nodes.update(map(id, site.nodes))
                self._above.add(site.owner or "")

        self._share(next((site.draft for site in sites), None))

    def _share(self, draft: Draft | None) -> None:
        """Take in the other names of modules that stand under several, where one of them is meant."""
        for names in draft.shared() if draft is not None else ():
            if any(p in self._modules for name in names for p in (name, *parents_of(name))):
                self._modules.update(names)
                self._above.update(p for name in names for p in parents_of(name))

    def covers(self, site: Site) -> bool:
        """Return True if a site is one of them or stands inside one."""
        if any(id(node) in self._nodes for node in site.nodes):
            return True
        paths = set(_paths(site))
        if not site.is_module:
            paths = {site.owner or "", *_called_paths(site)}
        return any(p in self._modules for path in paths for p in (path, *parents_of(path)))

    def splits(self, site: Site) -> bool:
        """Return True if one of them stands inside a site."""
        return site.is_module and any(path in self._above for path in _paths(site))


def without(sites: Sequence[Site], region: Region, *, own: bool) -> list[Site]:
    """Take a region away: a site around it is broken up into the largest parts outside.

    Args:
        sites: the sites.
        region: what to take away.
        own: also return what hangs directly on a module that was broken up.
    """
    left: list[Site] = []
    waiting = list(reversed(sites))
    while waiting:
        site = waiting.pop()
        if region.covers(site):
            continue
        if site.own or not region.splits(site):
            left.append(site)
            continue
        module = site.draft.get(site.path)
        if own and (any(p is not None for p in module._parameters.values()) or module._buffers):
            left.append(Site(site.path, site.draft, own=True))
        waiting += reversed(children(site.draft, site.path))
    return left


def within(sites: Sequence[Site], region: Region) -> list[Site]:
    """Keep what a region covers: a site around it is broken up into the largest parts inside."""
    found: list[Site] = []
    waiting = list(reversed(sites))
    while waiting:
        site = waiting.pop()
        if region.covers(site):
            found.append(site)
        elif region.splits(site):
            waiting += reversed(children(site.draft, site.path))
    return found


def children(draft: Draft, path: str) -> list[Site]:
    """Return the modules registered directly in one, a shared one once."""
    return [Site(join_path(path, name), draft) for name, _ in draft.get(path).named_children()]


def outermost(sites: Sequence[Site]) -> list[Site]:
    """Drop the sites that stand inside another one of them."""
    paths = {site.path for site in sites if site.is_module and not site.own}
    return [
        site
        for site in sites
        if not any(p in paths for p in parents_of(site.path)) and (site.is_module or site.owner not in paths)
    ]


def innermost(sites: Sequence[Site]) -> list[Site]:
    """Drop the sites that hold another one of them."""
    around = {
        p for site in sites for p in (*parents_of(site.path), *([] if site.is_module else [site.owner]))
    }
    return [site for site in sites if site.path not in around]


def _paths(site: Site) -> list[str]:
    if not site.is_module:
        return [site.owner or ""]
    return site.draft.names(site.draft.get(site.path)) or [site.path]


def _called_paths(site: Site) -> list[str]:
    module = site.module
    return [] if module is None else site.draft.names(module)

"""Wrap: make a target mean the target followed by a block."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection, Iterable, Iterator
from typing import ClassVar

import attrs

from torchgraft.blocks.block import Block
from torchgraft.blocks.described import Described
from torchgraft.blocks.parse import BlockLike, parse_block
from torchgraft.edits.on_weight import put_on_weight
from torchgraft.edits.placing import check_name, put_each
from torchgraft.errors import TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge, after, around, called, exits, output, relative
from torchgraft.graph.kinds import is_container
from torchgraft.select import Selector, Site, Target, outermost, parse
from torchgraft.select.globs import matches
from torchgraft.text import spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Wrap(Transform):
    """Put a block behind each target, as part of it."""

    name: ClassVar[str] = "wrap"
    target: Selector
    block: Block
    module_name: str | None = attrs.field(kw_only=True, default=None, alias="name")

    def _edit(self, draft: Draft) -> None:
        refused: dict[str, TargetError] = {}
        sites = outermost(self.target.find(draft))
        levels: set[int] = set()
        for site in sites:
            try:
                self._put(draft, site, levels)
            except TargetError as error:
                if not self._on_weight(site):
                    raise
                refused[site.path] = error
        for first in refused.values():
            first.outside = None
            if len(refused) < len(sites):
                rest = functools.reduce(operator.sub, _patterns(refused, sites), self.target)
                first.write = repr(attrs.evolve(self, target=rest))
            raise first

    def _on_weight(self, site: Site) -> bool:
        return site.is_module and isinstance(self.block, Described) and self.block.kind.on_weight

    def _put(self, draft: Draft, site: Site, levels: set[int]) -> None:
        block, name = self.block, self.module_name
        if not (self._on_weight(site) and put_on_weight(draft, site.path, block, name)):
            put_each(draft, _places(draft, site, block.label()), block, name, levels)


def _patterns(refused: Collection[str], sites: Iterable[Site]) -> list[str]:
    """Write the paths to leave out, those that differ in numbers alone as one pattern."""
    taken = [tuple(site.path.split(".")) for site in sites if site.path not in refused]
    found: dict[str, None] = {}
    for path in refused:
        pattern = re.sub(r"(?<![^._])\d+(?![^._])", "*", path)
        too_wide = any(matches(other, tuple(pattern.split("."))) for other in taken)
        found[path if too_wide else pattern] = None
    return list(found)


def _places(draft: Draft, site: Site, label: str) -> Iterator[tuple[list[Edge], str, str]]:
    """Yield, for each level concerned, the edges, a name for the module and its neighbour."""
    if not site.is_module:
        yield [after(site.owner or "", n.graph, n) for n in site.nodes], f"{site.short}_{label}", ""
    elif not is_container(draft.get(site.path)):
        for owner, edges in around(draft.calls(site.path), after).items():
            child = relative(site.path, owner)
            yield edges, f"{child.replace('.', '_')}_{label}", child.partition(".")[0]
    elif called(draft, site.path):
        yield output(draft, site.path), label, ""
    else:
        edges = exits(draft, site.path)
        child = relative(site.path, edges[0].owner)
        yield edges, f"{child.replace('.', '_')}_{label}", child.partition(".")[0]


@spelled
def wrap(target: Target, block: BlockLike, *, name: str | None = None) -> Wrap:
    """Make a target mean the target followed by a block.

    A container is opened and the block becomes its last child (``layer4.se``), so an
    original checkpoint still loads with only the new keys missing. A layer is wrapped where
    it is called, and the block is registered beside it (``conv1_se``), one for all its calls.
    Wrapped again, a container runs the new block last; a layer runs it first, next to itself.

    Args:
        target: path, glob, module class, node name, or a selector.
        block: a block such as ``se``, a module (a copy of it is put in, and the transform is
            equal to itself alone), a module class, or a function from a channel count to a
            module; it has to keep the shape.
        name: name of the new module; by default that of the block, numbered if taken.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> from torchgraft.blocks import se
        >>> wrap("layer4", se(reduction=8))
        wrap("layer4", se(reduction=8))
    """
    check_name(name)
    return Wrap(parse(target), parse_block(block), name=name)

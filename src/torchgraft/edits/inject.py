"""Inject: put a named step on the edge before or behind a target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import attrs

from torchgraft.blocks.block import Block
from torchgraft.blocks.parse import BlockLike, parse_block
from torchgraft.edits.placing import check_name, put_each
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge, after, around, before, relative
from torchgraft.select import Selector, Site, Target, parse
from torchgraft.text import spelled, wrong
from torchgraft.transform import Transform

_SIDES = {"after": after, "before": before}


@attrs.frozen(repr=False)
class Inject(Transform):
    """Put a block on the edge beside each target."""

    name: ClassVar[str] = "inject"
    target: Selector
    block: Block
    where: str = attrs.field(kw_only=True, default="after")
    module_name: str | None = attrs.field(kw_only=True, default=None, alias="name")

    def _edit(self, draft: Draft) -> None:
        places = (place for site in self.target.find(draft) for place in self._places(draft, site))
        put_each(draft, places, self.block, self.module_name, set())

    def _places(self, draft: Draft, site: Site) -> Iterator[tuple[list[Edge], str, str]]:
        side, label = _SIDES[self.where], self.block.label()
        if not site.is_module:
            edges = [side(site.owner or "", node.graph, node) for node in site.nodes]
            yield edges, f"{site.short}_{label}", ""
            return
        for owner, edges in around(draft.calls(site.path), side).items():
            child = relative(site.path, owner)
            yield edges, f"{child.replace('.', '_')}_{label}", child.partition(".")[0]


@spelled
def inject(
    target: Target, block: BlockLike, *, where: Literal["after", "before"] = "after", name: str | None = None
) -> Inject:
    """Put a block on the edge behind or before a target, which stays as it is.

    The block is registered beside the target, in the level that calls it
    (``layer4_se``), one for all calls of the target in that level.

    Args:
        target: path, glob, module class, node name, or a selector.
        block: a block such as ``se``, a module, a module class, or a function from a
            channel count to a module; it has to keep the shape.
        where: ``"after"`` the target or ``"before"`` it.
        name: name of the new module; by default the target's and the block's, numbered if
            taken.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> from torchgraft.blocks import eca
        >>> inject("layer1.0.add", eca, where="before")
        inject("layer1.0.add", eca(), where="before")
    """
    if where not in _SIDES:
        raise wrong('where must be "after" or "before"', where, name="where", known=_SIDES)
    check_name(name)
    return Inject(parse(target), parse_block(block), where=where, name=name)

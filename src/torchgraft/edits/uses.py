"""Uses: where a site is used, whether in place, and what a block in its place is built for."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.errors import AnalysisError, LayoutError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import spec_of
from torchgraft.graph.nodes import Node, is_in_place, name_of
from torchgraft.select import Site
from torchgraft.spec import TensorSpec


@attrs.frozen(eq=False)
class Use:
    """A node that uses a site.

    Args:
        owner: path of the level.
        node: the call or the operation.
    """

    owner: str
    node: Node


def uses_of(draft: Draft, site: Site) -> list[Use]:
    """Return the calls of a module, or the nodes of an operation.

    Raises:
        TargetError: no forward calls the module.
        TraceError: the forward that should call it cannot be followed.
    """
    if site.is_module:
        return [Use(call.owner, call.node) for call in draft.calls(site.path)]
    return [Use(site.owner or "", node) for node in site.nodes]


def inplace(use: Use, module: nn.Module | None) -> bool:
    """Return True if a use writes into what it takes."""
    return inplace_module(module) if module is not None else is_in_place(use.node)


def inplace_module(module: nn.Module | None) -> bool:
    """Return True if a module writes into what it takes."""
    return getattr(module, "inplace", False) is True


def place_for(draft: Draft, site: Site, block: Block) -> TensorSpec:
    """Describe what a block in the place of a site has to take and to give.

    Raises:
        TargetError: the site is used on values of different kinds.
        LayoutError: nothing tells where the channels are.
    """
    uses = uses_of(draft, site)
    specs: dict[TensorSpec, str] = {}
    for use in uses:
        specs.setdefault(_place(draft, use, block), name_of(use.node, use.owner))
    if len(specs) > 1:
        raise TargetError(
            f"{site.path!r} is called on {len(specs)} kinds of values, and {block!r} is made for one",
            found="; ".join(f"{name}: {spec!r}" for spec, name in specs.items()),
            write=f'node("{next(iter(specs.values()))}") as the target, one step for each call',
        )
    return attrs.evolve(next(iter(specs)), layer=site.module)


def _place(draft: Draft, use: Use, block: Block) -> TensorSpec:
    source = next(iter(use.node.all_input_nodes), None)
    if source is None:
        raise TargetError(
            f"{use.node.name!r} takes no value of the graph, so no block can be built for it",
            found=f"a node of {use.owner or 'the root'}",
            write="a target that takes a value",
        )
    taken = spec_of(draft, use.owner, source, needs_rank=block.needs_rank, mixes=block.channels_first)
    if block.keeps_shape:
        return taken
    try:
        given = spec_of(draft, use.owner, use.node)
        stride = _stride(draft, use, source, taken)
    except (AnalysisError, LayoutError):
        return taken
    return attrs.evolve(taken, out_channels=given.channels, stride=stride)


def _stride(draft: Draft, use: Use, source: Node, taken: TensorSpec) -> int:
    """Return how many places of the input there are for one of the output, along the last axis of places."""
    one, other = draft.value(use.owner, source), draft.value(use.owner, use.node)
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor) or one.ndim != other.ndim:
        return 1
    places = list(range(2, one.ndim)) if taken.axis == 1 else list(range(1, one.ndim - 1))
    return max((round(one.shape[axis] / max(1, other.shape[axis])) for axis in places), default=1) or 1

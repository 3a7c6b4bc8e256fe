"""What wrap and inject share: build a block for a value and put its call behind it."""

from __future__ import annotations

from collections.abc import Iterable
from keyword import iskeyword

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.errors import AnalysisError, NameClashError, ShapeError, TargetError
from torchgraft.graph.constant_values import reads_values
from torchgraft.graph.deep.record import output_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge, insert_child, set_beside
from torchgraft.graph.layout import spec_of
from torchgraft.paths import join_path
from torchgraft.spec import TensorSpec, drawn, shape_text
from torchgraft.text import literal, write_error, wrong


def put_each(
    draft: Draft,
    places: Iterable[tuple[list[Edge], str, str]],
    block: Block,
    name: str | None,
    levels: set[int],
) -> None:
    """Build a module for each of some places and call it there.

    Args:
        draft: the draft.
        places: the edges of a level, a name to start from, and the child to register it after.
        block: what to build.
        name: name of the module; numbered from that of its place if ``None``.
        levels: the levels that got one by the same step, by identity; more are added.

    Raises:
        NameClashError: several modules of one level would have the name.
        GraftError: as ``put`` does.
    """
    for edges, default, beside in places:
        owner = edges[0].owner
        if name is not None and id(draft.get(owner)) in levels:
            raise NameClashError(
                f"{name!r} is the name of one module, and several are put into {owner or 'the root'}",
                found=join_path(owner, name),
                swap=(f", name={literal(name)}", ""),
            )
        levels.add(id(draft.get(owner)))
        put(draft, edges, block, name, default, beside)


def put(draft: Draft, edges: list[Edge], block: Block, name: str | None, default: str, beside: str) -> None:
    """Build one module and call it on every edge given, all of one level.

    Args:
        draft: the draft.
        edges: where the value flows that the module takes; all in one level.
        block: what to build.
        name: name of the module in the level; numbered from ``default`` if ``None``.
        default: name to start from.
        beside: child that the module is registered after.

    Raises:
        ShapeError: the module does not take the value, or does not keep its shape.
        NameClashError: the name is in use.
        TargetError: the value is not a tensor, or differs between the edges.
    """
    owner, adapt = edges[0].owner, False
    if block.takes_input:
        _check_entries(edges, block)
    with drawn(draft.like.device):
        module = block.fixed()
    if module is None:
        specs = {_spec(draft, edge, block) for edge in edges}
        if len(specs) > 1:
            raise TargetError(
                f"the value has {len(specs)} shapes where {beside or default!r} is called",
                found=", ".join(sorted(map(repr, specs))),
                write="one edit for each call site, by node name",
            )
        site = attrs.evolve(specs.pop(), layer=_layer(draft, edges[0]))
        module = block.build(site)
        adapt = site.channels_last and block.channels_first
    if not block.keeps_shape:
        for edge in edges:
            check_keeps(draft, edge, module, block, channels_last=adapt)
    if block.takes_input:
        set_beside(module)
    chosen = register(draft, owner, module, name, default, beside)
    insert_child(draft, edges, chosen, channels_last=adapt, with_entry=block.takes_input)


def register(
    draft: Draft, owner: str, module: nn.Module, name: str | None, default: str, beside: str = ""
) -> str:
    """Register a new module, in the mode of its owner, and return its name."""
    module.train(draft.get(owner).training)
    chosen = name if name is not None else draft.fresh(owner, default)
    draft.place(owner, chosen, module, beside=beside)
    return chosen


def check_name(name: str | None) -> None:
    """Check a name for a new module before any model is seen.

    Raises:
        OptionError: it is not an identifier.
    """
    if name is not None and not (isinstance(name, str) and name.isidentifier() and not iskeyword(name)):
        raise wrong("a name must be an identifier", name, '"se"', name="name")


def check_keeps(draft: Draft, edge: Edge, module: nn.Module, block: Block, *, channels_last: bool) -> None:
    """Run a module on the value of an edge and compare the shapes.

    Raises:
        ShapeError: it fails, or returns another shape.
    """
    try:
        value = draft.value(edge.owner, edge.value)
    except AnalysisError as error:
        if isinstance(error.__cause__, Exception) and reads_values(error.__cause__):
            return  # it depends on values what there is: it is taken on trust
        raise
    taken = [draft.value(edge.owner, edge.entry), value] if block.takes_input and edge.entry else [value]
    consumer = edge.consumer()
    try:
        given = [
            torch.movedim(v, -1, 1) if channels_last and isinstance(v, torch.Tensor) else v for v in taken
        ]
        output = output_of(module, tuple(given))
        if channels_last and isinstance(output, torch.Tensor):
            output = torch.movedim(output, 1, -1)
    except Exception as error:
        raise ShapeError(
            f"{block!r} does not take a value of shape {shape_text(value)}",
            found=f"{write_error(error)}; the value goes to {consumer}",
            write="a target that gives the shape it takes"
            if block.takes_input
            else "a function of the channels: lambda channels: nn.Conv2d(channels, channels, 1)",
        ) from error
    if shape_text(output) != shape_text(value) or not isinstance(output, torch.Tensor):
        raise ShapeError(
            f"{block!r} turns {shape_text(value)} into {shape_text(output)}",
            found=f"{consumer} takes {shape_text(value)}",
            write="a block that keeps the shape",
        )


def _check_entries(edges: list[Edge], block: Block) -> None:
    if any(edge.entry is None for edge in edges):
        raise TargetError(
            f"{block!r} looks at what its target takes, and that is no one value here",
            found="a container whose children are called one by one",
            write="one of its children as the target",
        )


def _layer(draft: Draft, edge: Edge) -> nn.Module | None:
    """Return the layer whose output the value is; the last child of a container is none."""
    value = edge.value
    if value.op != "call_module" or edge.entry is not next(iter(value.all_input_nodes), None):
        return None
    return draft.get(join_path(edge.owner, str(value.target)))


def _spec(draft: Draft, edge: Edge, block: Block) -> TensorSpec:
    return spec_of(draft, edge.owner, edge.value, needs_rank=block.needs_rank, mixes=block.channels_first)

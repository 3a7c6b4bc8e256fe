"""Replace: exchange modules or operations, where the rest of the model still fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, cast

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.norms import both_normalise, carry, exchangeable
from torchgraft.blocks.parse import BlockLike, OfOld, parse_block
from torchgraft.edits.uses import Use, inplace, inplace_module, place_for, uses_of
from torchgraft.errors import AnalysisError, ShapeError, TargetError, TraceError
from torchgraft.graph.anchor import Anchor, anchor_of
from torchgraft.graph.deep.record import output_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import after, feeds_output_only
from torchgraft.graph.layout_rules import SAME
from torchgraft.graph.rewrites import Exchange, Redirect, Rewrite, Turn, later_users
from torchgraft.graph.run import ModuleCall
from torchgraft.select import Selector, Site, Target, outermost, parse
from torchgraft.spec import drawn, shape_text
from torchgraft.text import check_flags, spelled, write_error
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Replace(Transform):
    """Exchange each target for another module."""

    name: ClassVar[str] = "replace"
    target: Selector
    new: Block
    keep_shape: bool = attrs.field(kw_only=True, default=True)
    keep_weights: bool = attrs.field(kw_only=True, default=False)

    def _edit(self, draft: Draft) -> None:
        draft.reshaped |= not self.keep_shape
        kept = [self._exchange(draft, site) for site in _once(outermost(self.target.find(draft)), draft)]
        if not all(kept):
            draft.rerun()

    def _exchange(self, draft: Draft, site: Site) -> bool:
        """Exchange one site, and return True if it is sure to give what it gave before."""
        new, turned = self._build(draft, site)
        new.train(draft.get(site.path if site.is_module else site.owner or "").training)
        elementwise = isinstance(site.module, SAME) and isinstance(new, SAME) and not any(new.parameters())
        alike = site.module is not None and (elementwise or exchangeable(site.module, new))
        records = self._records(draft, site) if self.keep_shape and not alike else []
        if self.keep_shape and site.is_module and not records and not alike:
            draft.calls(site.path)  # says why it is never called
        kept = [self._check(draft, site, record, new, turned=turned) for record in records]
        redirected = _writes_in_place(draft, site, new)
        uses = uses_of(draft, site) if turned or redirected or not site.is_module else []
        if site.is_module:
            draft.exchange(site.path, new)
        else:
            name = draft.fresh(site.owner or "", site.short)
            draft.place(site.owner or "", name, new)
        for use in uses:
            at = anchor_of(use.node)
            steps: list[Rewrite] = []
            if not site.is_module:
                steps.append(Exchange(name, at))
                calls = [n for n in use.node.graph.nodes if n.op == "call_module" and n.target == name]
                at = Anchor("call_module", name, (), len(calls), len(calls) + 1)
            steps += [Redirect(at)] if redirected else []
            steps += [Turn(at)] if turned else []
            draft.rewrite(use.owner, [(use.node.graph, step) for step in steps])
        draft.changed()
        return alike or (bool(kept) and all(kept))

    def _build(self, draft: Draft, site: Site) -> tuple[nn.Module, bool]:
        """Make the new module; tell whether the channels have to be moved to axis 1 for it."""
        old = site.module
        if isinstance(self.new, OfOld):
            new, turned = self.new.make(old or nn.Identity(), site), False
        else:
            with drawn(draft.like.device):
                fixed = self.new.fixed()
            spec = None if fixed is not None else place_for(draft, site, self.new)
            new = self.new.build(spec) if spec is not None else cast("nn.Module", fixed)
            turned = spec is not None and spec.channels_last and self.new.channels_first
        made_for_it = not isinstance(self.new, OfOld) and not self.new.ready
        if old is not None and (self.keep_weights or (made_for_it and both_normalise(old, new))):
            carry(old, new)
        return new, turned

    def _records(self, draft: Draft, site: Site) -> list[ModuleCall]:
        if not site.is_module:
            owner, node = site.owner or "", site.nodes[0]
            if not node.all_input_nodes:
                raise TargetError(
                    f"{site.path!r} takes no value of the graph, so a module cannot take its place",
                    found=site.kind,
                    write="a target that takes a value",
                )
            given = tuple(draft.value(owner, source) for source in node.all_input_nodes)
            return [ModuleCall(site.path, nn.Identity(), given, {}, draft.value(owner, node))]
        try:
            return draft.record(site.path)
        except AnalysisError as error:
            free = repr(attrs.evolve(self, keep_shape=False))
            helps = draft.example is None and "..." in error.write
            error.write = f"{free}, or {error.write.replace('...', repr(self))}" if helps else free
            raise

    def _check(self, draft: Draft, site: Site, call: ModuleCall, new: nn.Module, *, turned: bool) -> bool:
        consumer, free = _consumer(draft, site)
        args = tuple(_moved(a, -1, 1) for a in call.args) if turned else call.args
        try:
            output = output_of(new, args, call.kwargs)
            output = _moved(output, 1, -1) if turned else output
        except Exception as error:
            raise ShapeError(
                f"{self.new!r} does not take what {site.path!r} takes: {shape_text(call.args)}",
                found=write_error(error),
                write="a module for that shape",
            ) from error
        kept = shape_text(output) == shape_text(call.output)
        if not kept and not free:
            raise ShapeError(
                f"{site.path!r} gives {shape_text(call.output)} and {self.new!r} gives {shape_text(output)}",
                found=f"{consumer} takes {shape_text(call.output)}",
                write="a module that gives that shape; keep_shape=False to change it on purpose",
            )
        return kept


@spelled
def replace(
    target: Target,
    new: BlockLike | Callable[[nn.Module], nn.Module] | Callable[[nn.Module, Site], nn.Module],
    *,
    keep_shape: bool = True,
    keep_weights: bool = False,
) -> Replace:
    """Exchange a module, or one operation, for another module.

    A module is exchanged for all its calls and under all its names. The new one has to take
    what the old one took and give what it gave, unless only the model's output is concerned.
    A block is built for what flows in there, with the width and the stride of what it
    replaces. A normalisation takes over the affine values and the statistics of the one it
    replaces, where it has them.

    Args:
        target: path, glob, module class, operation, or a selector.
        new: a block or its name, a module, a module class (called with the channel count if
            it needs one value), or a function of the old module, or of it and its site.
        keep_shape: refuse another output shape; ``False`` to change it on purpose.
        keep_weights: copy the old tensors that have the same name and shape.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> from torch import nn
        >>> from torchgraft import op
        >>> replace(nn.ReLU, nn.SiLU) >> replace(op("relu"), nn.SiLU)
        compose(replace(nn.ReLU, nn.SiLU), replace(op("relu"), nn.SiLU))
    """
    plain = callable(new) and not isinstance(new, (Block, str, nn.Module, type)) and not hasattr(new, "kind")
    made = OfOld(cast("Callable[..., object]", new)) if plain else parse_block(new, "old")
    check_flags(keep_shape=keep_shape, keep_weights=keep_weights)
    return Replace(parse(target), made, keep_shape=keep_shape, keep_weights=keep_weights)


def _once(sites: list[Site], draft: Draft) -> Iterator[Site]:
    seen: set[int] = set()
    for site in sites:
        key = id(draft.get(site.path)) if site.is_module else id(site)
        if key not in seen:
            seen.add(key)
            yield site


def _writes_in_place(draft: Draft, site: Site, new: nn.Module) -> bool:
    """Return True if later users of what a site takes see what it writes into it.

    They have to take what the new module gives instead.

    Raises:
        TargetError: the value belongs to a caller that goes on to use it.
    """
    if getattr(new, "inplace", False) is True or (site.is_module and not inplace_module(site.module)):
        return False
    try:
        uses = [use for use in uses_of(draft, site) if inplace(use, site.module)]
    except (TargetError, TraceError):
        return False
    for use in uses:
        if _callers_use(draft, use):
            raise TargetError(
                f"{site.path!r} writes in place what the caller of {use.owner!r} goes on to use",
                found=f"{use.node.name} on an argument of its forward",
                write=f'pipe(model, replace("{site.path}", <the same without inplace>), ...) first',
            )
    return any(later_users(use.node) for use in uses)


def _callers_use(draft: Draft, use: Use) -> bool:
    """Tell whether the value that a use takes is an argument that the caller uses later."""
    source = next(iter(use.node.all_input_nodes), None)
    if source is None or source.op != "placeholder" or not use.owner:
        return False
    return any(later_users(call.node) for call in draft.calls(use.owner))


def _consumer(draft: Draft, site: Site) -> tuple[str, bool]:
    """Name what takes the output, and tell whether it is nothing but the model's output."""
    try:
        edges = [after(use.owner, use.node.graph, use.node) for use in uses_of(draft, site)]
    except (TargetError, TraceError):
        return "its caller", False
    return edges[0].consumer(), all(feeds_output_only(draft, edge) for edge in edges)


def _moved(value: object, source: int, destination: int) -> object:
    return torch.movedim(value, source, destination) if isinstance(value, torch.Tensor) else value

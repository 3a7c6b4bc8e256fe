"""Replace: exchange modules or operations, where the rest of the model still fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, cast

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.parse import BlockLike, made_by, parse_block
from torchgraft.errors import AnalysisError, OptionError, ShapeError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import after, exchange_node, feeds_output_only
from torchgraft.graph.layout import spec_of
from torchgraft.graph.run import ModuleCall, run_on_meta
from torchgraft.select.selector import Selector, Site, Target, outermost, parse
from torchgraft.spec import TensorSpec, shape_text
from torchgraft.text import check_flags, function_name, kind, spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class OfOld(Block):
    """A function that makes a module from the one it replaces."""

    function: Callable[[nn.Module], nn.Module]

    def __repr__(self) -> str:
        return function_name(self.function)


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
        for site in _once(outermost(self.target.find(draft)), draft):
            if site.is_module:
                self._module(draft, site.path)
            else:
                self._node(draft, site)

    def _module(self, draft: Draft, path: str) -> None:
        old = draft.get(path)
        calls = self._record(draft, path) if self.keep_shape else []
        if self.keep_shape and not calls:
            draft.calls(path)  # says why it is never called
        new = self._build(old, lambda: _spec(draft, path))
        if self.keep_weights:
            _carry(old, new)
        new.train(old.training)
        for call in calls:
            self._check(draft, path, call, new)
        draft.exchange(path, new)

    def _record(self, draft: Draft, path: str) -> list[ModuleCall]:
        try:
            return draft.record(path)
        except AnalysisError as error:
            error.write = (
                f"{attrs.evolve(self, keep_shape=False)!r}, which checks no shape; or example=<an input>"
            )
            raise

    def _node(self, draft: Draft, site: Site) -> None:
        owner, node = site.owner or "", site.nodes[0]
        sources = node.all_input_nodes
        if not sources:
            raise TargetError(f"{site.path!r} takes no value of the graph, so a module cannot take its place")
        old = draft.get(f"{owner}.{node.target}".lstrip(".")) if node.op == "call_module" else nn.Identity()
        new = self._build(old, lambda: spec_of(draft, owner, sources[0], needs_rank=self.new.needs_rank))
        new.train(draft.get(owner).training)
        if self.keep_shape:
            given = tuple(draft.value(owner, source) for source in sources)
            call = ModuleCall(site.path, old, given, {}, draft.value(owner, node))
            self._check(draft, site.path, call, new)
        draft.open(owner)
        name = draft.fresh(owner, site.short)
        draft.place(owner, name, new)
        for found in site.nodes:
            exchange_node(found, name)
        draft.changed()

    def _build(self, old: nn.Module, spec: Callable[[], TensorSpec]) -> nn.Module:
        if isinstance(self.new, OfOld):
            new = made_by(self.new.function, old, "replace(target, lambda old: ...)")
            if not isinstance(new, nn.Module):
                raise OptionError(
                    "the function given to replace did not return a module",
                    found=kind(new),
                    write="replace(target, lambda old: nn.Identity())",
                )
            return new
        return self.new.fixed() or self.new.build(spec())

    def _check(self, draft: Draft, path: str, call: ModuleCall, new: nn.Module) -> None:
        consumer, free = _consumer(draft, path)
        try:
            output = run_on_meta(new, call.args, call.kwargs, training=False).output
        except Exception as error:
            raise ShapeError(
                f"{self.new!r} does not take what {path!r} takes: {shape_text(call.args)}",
                found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                write="a module for that shape",
            ) from error
        if shape_text(output) != shape_text(call.output) and not free:
            raise ShapeError(
                f"{path!r} gives {shape_text(call.output)} and {self.new!r} gives {shape_text(output)}",
                found=f"{consumer} takes {shape_text(call.output)}",
                write="a module that gives that shape; keep_shape=False to change it on purpose",
            )


@spelled
def replace(
    target: Target,
    new: BlockLike | Callable[[nn.Module], nn.Module],
    *,
    keep_shape: bool = True,
    keep_weights: bool = False,
) -> Replace:
    """Exchange a module, or one operation, for another module.

    A module is exchanged for all its calls and under all its names. The new one has to take
    what the old one took and give what it gave, unless only the model's output is concerned.

    Args:
        target: path, glob, module class, node name, or a selector.
        new: a block, a module, a module class (called with the channel count if it needs one
            value), or a function of the old module.
        keep_shape: refuse another output shape; ``False`` to change it on purpose.
        keep_weights: copy the old tensors that have the same name and shape.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> from torch import nn
        >>> replace(nn.ReLU, nn.SiLU)
        replace(nn.ReLU, nn.SiLU)
    """
    plain = callable(new) and not isinstance(new, (Block, str, nn.Module, type)) and not hasattr(new, "kind")
    made = OfOld(cast("Callable[[nn.Module], nn.Module]", new)) if plain else parse_block(new)
    step = Replace(parse(target), made, keep_shape=keep_shape, keep_weights=keep_weights)
    check_flags(step, keep_shape=keep_shape, keep_weights=keep_weights)
    return step


def _once(sites: list[Site], draft: Draft) -> Iterator[Site]:
    seen: set[int] = set()
    for site in sites:
        key = id(draft.get(site.path)) if site.is_module else id(site)
        if key not in seen:
            seen.add(key)
            yield site


def _spec(draft: Draft, path: str) -> TensorSpec:
    call = draft.calls(path)[0]
    return spec_of(draft, call.owner, call.node)


def _consumer(draft: Draft, path: str) -> tuple[str, bool]:
    """Name what takes the output, and tell whether it is nothing but the model's output."""
    try:
        if not draft.has(path):
            return "its consumer", False
        edges = [after(call.owner, call.graph, call.node) for call in draft.calls(path)]
    except (TargetError, TraceError):
        return "its caller", False
    return edges[0].consumer(), all(feeds_output_only(draft, edge) for edge in edges)


def _carry(old: nn.Module, new: nn.Module) -> None:
    """Copy the tensors that have the same name and shape."""
    held = old.state_dict()
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name in held and held[name].shape == tensor.shape:
                tensor.copy_(held[name])

"""Remove: take a step out where its input fits in the place of its output."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch

from torchgraft.blocks.lora import WeightLoRA
from torchgraft.blocks.on_weight import is_adapted, release
from torchgraft.errors import ShapeError, TargetError
from torchgraft.graph.anchor import anchor_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import after, is_beside
from torchgraft.graph.nodes import Node
from torchgraft.graph.rewrites import Bypass
from torchgraft.paths import parent_of
from torchgraft.select import Selector, Site, Target, outermost, parse
from torchgraft.spec import shape_text
from torchgraft.text import spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Remove(Transform):
    """Take each target out."""

    name: ClassVar[str] = "remove"
    target: Selector

    def _edit(self, draft: Draft) -> None:
        for site in outermost(self.target.find(draft)):
            if not site.is_module:
                self._node(draft, site)
            elif draft.has(site.path):
                self._module(draft, site.path)

    def _module(self, draft: Draft, path: str) -> None:
        module, above = draft.get(path), draft.get(parent_of(path))
        if isinstance(module, WeightLoRA) and is_adapted(above):
            draft.discard(path)
            release(above)
            return
        calls = draft.calls(path)
        beside = is_beside(module)
        for call in calls:
            _source(call.node, path, beside=beside)
        for record in draft.record(path):
            taken = (*record.args, *record.kwargs.values(), None)
            given = taken[1 if beside else 0]
            consumer = after(calls[0].owner, calls[0].graph, calls[0].node).consumer()
            _check(path, given, record.output, consumer)
        for call in calls:
            # Looked up again: of two calls in a row the second now takes what the first took.
            _bypass(draft, call.owner, call.node, _source(call.node, path, beside=beside))
        if not draft.is_added(path):  # the forward of the class calls it, so no trace finds it again
            for owner in dict.fromkeys(call.owner for call in calls):
                draft.open(owner)
        draft.discard(path)
        draft.changed()

    def _node(self, draft: Draft, site: Site) -> None:
        owner = site.owner or ""
        beside = is_beside(site.module)
        sources = [_source(node, site.path, beside=beside) for node in site.nodes]
        for node, source in zip(site.nodes, sources, strict=True):
            given = draft.value(owner, source)
            _check(site.path, given, draft.value(owner, node), after(owner, node.graph, node).consumer())
        for node, source in zip(site.nodes, sources, strict=True):
            _bypass(draft, owner, node, source)
        draft.changed()


@spelled
def remove(target: Target) -> Remove:
    """Take a module, or one operation, out; what it was given flows on in its place.

    A module is taken out at all its calls, and its parameters are gone.

    Args:
        target: path, glob, module class, node name, or a selector.

    Returns:
        The transform.

    Raises:
        OptionError: the target is of a wrong kind.

    Example:
        >>> remove("layer4.se")
        remove("layer4.se")
    """
    return Remove(parse(target))


def _bypass(draft: Draft, owner: str, node: Node, source: Node) -> None:
    draft.rewrite(owner, [(node.graph, Bypass(anchor_of(node), node.all_input_nodes.index(source)))])


def _source(node: Node, path: str, *, beside: bool) -> Node:
    """Return the input that takes the place of a node.

    What stands beside a target was called with its input and its output, and the output stays.

    Raises:
        TargetError: it is open which one that is.
    """
    if beside and len(node.all_input_nodes) == 2:
        return node.all_input_nodes[1]
    if len(node.all_input_nodes) != 1:
        names = ", ".join(n.name for n in node.all_input_nodes) or "none"
        raise TargetError(
            f"{path!r} takes {len(node.all_input_nodes)} values, so it is open what would take its place",
            found=names,
            write="edit(<a function of the draft>, name=...)",
        )
    return node.all_input_nodes[0]


def _check(path: str, given: object, output: object, consumer: str) -> None:
    if shape_text(given) != shape_text(output):
        raise ShapeError(
            f"{path!r} cannot be taken out: it turns {shape_text(given)} into {shape_text(output)}",
            found=f"{consumer} takes {shape_text(output)}",
            write=f'replace("{path}", nn.Identity(), keep_shape=False)'
            if isinstance(output, torch.Tensor)
            else f'replace("{path}", <a module that gives {shape_text(output)}>)',
        )

"""Remove: take a step out where its input fits in the place of its output."""

from __future__ import annotations

from typing import ClassVar

import attrs

from torchgraft.errors import ShapeError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import after, bypass
from torchgraft.select.selector import Selector, Site, Target, outermost, parse
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
        calls = draft.calls(path)
        for call in calls:
            if not call.node.all_input_nodes:
                raise TargetError(f"{path!r} takes no value, so nothing can take its place")
        for record in draft.record(path):
            given = record.args[0] if record.args else next(iter(record.kwargs.values()), None)
            consumer = after(calls[0].owner, calls[0].graph, calls[0].node).consumer()
            _check(path, given, record.output, consumer)
        for call in calls:
            draft.open(call.owner)
            bypass(call.node)
        draft.discard(path)
        draft.changed()

    def _node(self, draft: Draft, site: Site) -> None:
        owner = site.owner or ""
        for node in site.nodes:
            if not node.all_input_nodes:
                raise TargetError(f"{site.path!r} takes no value, so nothing can take its place")
            given = draft.value(owner, node.all_input_nodes[0])
            _check(site.path, given, draft.value(owner, node), after(owner, node.graph, node).consumer())
        draft.open(owner)
        for node in site.nodes:
            bypass(node)
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


def _check(path: str, given: object, output: object, consumer: str) -> None:
    if shape_text(given) != shape_text(output):
        raise ShapeError(
            f"{path!r} cannot be taken out: it turns {shape_text(given)} into {shape_text(output)}",
            found=f"{consumer} takes {shape_text(output)}",
            write="replace(target, <a module that gives that shape>)",
        )

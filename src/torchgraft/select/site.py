"""The site: one place that a selector found, and what is known of it."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from torchgraft.errors import AnalysisError, GraftError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import layout_at, spec_of
from torchgraft.graph.nodes import Node, canonical, name_of
from torchgraft.graph.proxy import tensors_in
from torchgraft.paths import join_path
from torchgraft.spec import layout_name


@attrs.frozen(eq=False, repr=False)
class Site:
    """One place that a selector found: a module with all its calls, or one operation.

    Args:
        path: path of a module, or qualified name of a node.
        draft: the clone of the model in which it was found.
        owner: for a node, path of the level it stands in; ``None`` for a module.
        nodes: for a node, the node in each graph of its level.
        own: the module without its children: only what hangs on it directly is meant.
    """

    path: str
    draft: Draft
    owner: str | None = None
    nodes: tuple[Node, ...] = ()
    own: bool = False

    @property
    def is_module(self) -> bool:
        """Return True if the site is a module with all its call sites."""
        return self.owner is None

    @property
    def short(self) -> str:
        """The last part of a node's name, as part of another name."""
        return self.path[len(self.owner or "") :].lstrip(".").replace(".", "_")

    @property
    def module(self) -> nn.Module | None:
        """The module, or the one that a call site calls; ``None`` for another operation."""
        if self.is_module:
            return self.draft.get(self.path)
        node = self.nodes[0]
        if node.op != "call_module":
            return None
        return self.draft.get(join_path(self.owner or "", str(node.target)))

    @property
    def cls(self) -> type[nn.Module] | None:
        """The class of the module; ``None`` for an operation."""
        return None if self.module is None else type(self.module)

    @property
    def op(self) -> str | None:
        """The name of the operation, the same for a function and a method; ``None`` for a module."""
        return None if self.module is not None else canonical(self.nodes[0])

    @property
    def kind(self) -> str:
        """The name of the class or of the operation."""
        return self.cls.__name__ if self.cls is not None else str(self.op)

    @property
    def calls(self) -> tuple[str, ...]:
        """The qualified names of the places where the forward calls it; empty where there are none."""
        if not self.is_module:
            return (self.path,)
        try:
            calls = self.draft.calls(self.path)
        except (TargetError, TraceError):
            return ()
        return tuple(dict.fromkeys(name_of(call.node, call.owner) for call in calls))

    @property
    def inputs(self) -> tuple[torch.Size, ...]:
        """The shapes of the tensors that its first call takes, for the usual input.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        if not self.is_module:
            given = [self.draft.value(self.owner or "", node) for node in self.nodes[0].all_input_nodes]
            return tuple(t.shape for t in tensors_in(given))
        calls = self.draft.record(self.path)
        return tuple(t.shape for t in tensors_in((calls[0].args, calls[0].kwargs))) if calls else ()

    @property
    def outputs(self) -> tuple[torch.Size, ...]:
        """The shapes of the tensors that its first call gives, for the usual input.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        if not self.is_module:
            value = self.draft.value(self.owner or "", self.nodes[0])
            return tuple(t.shape for t in tensors_in(value))
        calls = self.draft.record(self.path)
        return tuple(t.shape for t in tensors_in(calls[0].output)) if calls else ()

    @property
    def output(self) -> torch.Size | None:
        """The shape of the one tensor that it gives; ``None`` where that is not one."""
        shapes = self.outputs
        return shapes[0] if len(shapes) == 1 else None

    @property
    def layout(self) -> str | None:
        """How the output is laid out: ``NCHW``, ``NHWC``, ``NLC``, ``NC``; ``None`` if nothing tells."""
        try:
            if self.is_module:
                told = layout_at(self.draft, self.path)
                return told.name if told is not None else None
            spec = spec_of(self.draft, self.owner or "", self.nodes[0], needs_rank=True)
            return layout_name(spec.rank or 0, spec.axis)
        except GraftError:
            return None

    def shapes(self) -> str:
        """Write what it takes and gives: ``n 64 56 56 -> n 256 56 56``; empty where it is unknown."""
        try:
            sides = [" ".join(["n", *map(str, s[1:])]) for s in (self.inputs[:1] + self.outputs[:1])]
        except AnalysisError:
            return ""
        return " -> ".join(sides) if len(sides) == 2 else ""

    def __repr__(self) -> str:
        return f"<{self.path or 'the root'}: {self.kind}>"

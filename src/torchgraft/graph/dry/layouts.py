"""Tell how the outputs of modules are laid out, where their shapes are known already."""

from __future__ import annotations

import inspect

import torch
from torch import fx, nn

from torchgraft.errors import GraftError, LayoutError
from torchgraft.graph.deep.axes import Layout, follow, layout_of
from torchgraft.graph.deep.record import record
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import Search
from torchgraft.graph.layout_rules import given
from torchgraft.spec import TensorSpec, layout_name


class Layouts:
    """Tell the layouts of a model's outputs, by the axes of its values or by the graphs around them.

    Args:
        model: the model; it is only read.
        args: positional arguments that it takes.
        kwargs: keyword arguments, likewise.
    """

    def __init__(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        ran = record(model, (args, kwargs))
        axes = follow(ran)
        self._told: dict[str, Layout] = {}
        for scope in ran.scopes:
            way, value = scope.outputs[0] if len(scope.outputs) == 1 else ((), -1)
            layout = layout_of(axes[value]) if value in axes and not way else None
            if layout is not None and scope.number == 0:
                self._told[scope.path] = layout
        if kwargs:
            kwargs = dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments)
        self._draft = Draft(model, kwargs or args)
        self._search = Search(self._draft)

    def of(self, path: str, output: object) -> Layout | None:
        """Return the layout of what a module gives; ``None`` if nothing tells."""
        if path in self._told or not isinstance(output, torch.Tensor) or output.ndim < 2:
            return self._told.get(path)
        try:
            fact = self._search.find(*self._node(path))
        except GraftError:  # a forward that cannot be followed; its layers still say what they give
            fact = given(self._draft.get(path))
        axis = fact.axis if fact is not None else 1 if output.ndim == 2 else None
        if axis is None:
            return None
        name = layout_name(TensorSpec(output.shape[axis], axis, output.ndim, output.dtype, output.device))
        return Layout(name, output.shape[axis]) if name else None

    def _node(self, path: str) -> tuple[str, fx.Node]:
        """Find the node whose value a module gives."""
        if path:
            call = self._draft.calls(path)[0]
            return call.owner, call.node
        (result,) = next(n for n in self._draft.graphs("")[0].nodes if n.op == "output").args
        if not isinstance(result, fx.Node):
            raise LayoutError("the output is no single value")
        return "", result

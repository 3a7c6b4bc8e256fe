"""Levels: modules whose own forward is a graph, one for each mode where the modes differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import fx, nn

from torchgraft.graph.clone import copy_graph
from torchgraft.graph.proxy import rebuilt
from torchgraft.graph.trace import Traced

_OWN = ("_graph", "_train_graph", "_code", "_lineno_map", "_prologue_start", "_inlined")
_PLAIN = (int, float, bool, str, type(None), tuple)


class Level(fx.GraphModule):
    """A GraphModule that took the place of a module, with everything the module held.

    It keeps what a plain GraphModule drops: modules and parameters that the forward does
    not reach, attributes, hooks, and the difference between training and evaluation.

    Args:
        module: the module whose place it takes; its state is moved here.
        traced: what following its forward gave.
    """

    _train_graph: fx.Graph

    def __init__(self, module: nn.Module, traced: Traced) -> None:
        super().__init__(nn.Module(), _empty(), class_name=type(module).__name__)
        held = {k: v for k, v in vars(module).items() if k not in _OWN}
        for cls in reversed(type(module).__mro__):
            if cls.__module__.startswith("torch.nn") or cls is object:
                continue
            for name, value in vars(cls).items():
                if (
                    isinstance(value, _PLAIN)
                    and not name.startswith("__")
                    and not hasattr(fx.GraphModule, name)
                ):
                    held.setdefault(name, value)
        vars(self).update(held)
        vars(self)["_version"] = module._version
        vars(self).update(traced.constants)
        self._graph = traced.evaluate
        self._train_graph = traced.train
        self._inlined = traced.inlined
        for graph in self.graphs:
            graph.owning_module = self

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs of the forward: one, or that of evaluation and that of training."""
        if self._train_graph is self._graph:
            return (self._graph,)
        return (self._graph, self._train_graph)

    def recompile(self) -> fx.graph.PythonCode:
        """Generate the forward from the graphs."""
        train = vars(self).get("_train_graph", self._graph)
        if train is self._graph:
            return super().recompile()
        evaluation, cls = self._graph, type(self)
        self._graph = train
        super().recompile()
        train_forward = cls.forward
        self._graph = evaluation
        code = super().recompile()
        cls._forward_train, cls._forward_eval = train_forward, cls.forward  # type: ignore[attr-defined]  # class of this instance alone
        cls.forward = _by_mode(cls.forward)
        return code

    def __len__(self) -> int:
        return len(self._modules)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[nn.Module | None]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice | str) -> object:
        if isinstance(index, str):
            return self._modules[index]
        return list(self._modules.values())[index]

    def __deepcopy__(self, memo: dict[int, object]) -> Level:
        new: Level = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in vars(self).items():
            vars(new)[name] = (
                memo.setdefault(id(value), copy_graph(value))
                if isinstance(value, fx.Graph)
                else copy.deepcopy(value, memo)
            )
        return new._rebuilt(type(self).__name__)

    def __copy__(self) -> Level:
        new: Level = type(self).__new__(type(self))
        vars(new).update(vars(self))
        for name in ("_parameters", "_buffers", "_modules"):
            vars(new)[name] = vars(self)[name].copy()
        same = self._train_graph is self._graph
        new._graph = copy_graph(self._graph)
        new._train_graph = new._graph if same else copy_graph(self._train_graph)
        return new._rebuilt(type(self).__name__)

    def __reduce__(self) -> tuple[object, ...]:
        state = dict(vars(self))
        same = self._train_graph is self._graph
        state["_graph"] = _rows(self._graph)
        state["_train_graph"] = None if same else _rows(self._train_graph)
        return _unpickled, (type(self).__name__,), state

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._graph = _graph(state["_graph"])
        train = state["_train_graph"]
        self._train_graph = self._graph if train is None else _graph(train)
        self._rebuilt(type(self).__name__)

    def _rebuilt(self, name: str) -> Level:
        type(self).__name__ = name
        for graph in self.graphs:
            graph.owning_module = self
        self.recompile()
        return self


def as_level(module: fx.GraphModule) -> Level:
    """Turn a GraphModule of any origin into a level that takes over its graph; none is traced again."""
    if isinstance(module, Level):
        return module
    graph = module.graph
    return Level(module, Traced(graph, graph, {}, frozenset()))


def _by_mode(evaluation: Callable[..., object]) -> Callable[..., object]:
    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202 - the signature is that of the module
        if self.training:
            return self._forward_train(*args, **kwargs)
        return self._forward_eval(*args, **kwargs)

    forward.__signature__ = inspect.signature(evaluation)  # type: ignore[attr-defined]  # read by inspect
    return forward


def _empty() -> fx.Graph:
    graph = fx.Graph()
    graph.output(None)
    return graph


def _unpickled(name: str) -> Level:
    level: Level = Level.__new__(Level)
    type(level).__name__ = name
    return level


class _Ref:
    """Name a node inside pickled arguments."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return _Ref, (self.name,)


def _rows(graph: fx.Graph) -> list[tuple[object, ...]]:
    """Write a graph as rows, which pickle without deep recursion."""
    ref = cast("Callable[[fx.Node], fx.node.Argument]", lambda node: _Ref(node.name))
    return [
        (n.op, n.name, n.target, fx.map_arg(n.args, ref), fx.map_arg(n.kwargs, ref), n.type)
        for n in graph.nodes
    ]


def _graph(rows: object) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def back(value: object) -> object:
        if isinstance(value, _Ref):
            return made[value.name]
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            items = [back(item) for item in value]
            return rebuilt(value, items)
        if isinstance(value, dict):
            return {key: back(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(back(value.start), back(value.stop), back(value.step))
        return value

    for op, name, target, args, kwargs, type_expr in rows:  # type: ignore[attr-defined]  # a list of rows
        made[name] = graph.create_node(op, target, back(args), back(kwargs), name, type_expr)  # type: ignore[arg-type]  # rows come from a graph
    return graph

"""Levels: modules whose own forward is a graph, one for each mode where the modes differ.

A level is the module itself under another class: a GraphModule that is also of the class
the module had. So hooks that are bound to it, its other methods, its properties and its own
idea of ``train`` or ``state_dict`` go on to work.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import ClassVar, Self, cast

from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.clone import copy_graph
from torchgraft.graph.guard import same_mode
from torchgraft.graph.modes import enter, unwinding
from torchgraft.graph.nodes import MADE_LATE, function_named
from torchgraft.graph.proxy import rebuilt
from torchgraft.graph.trace import Traced


class Level(fx.GraphModule):
    """A GraphModule that took the place of a module and kept all that the module held.

    It keeps what a plain GraphModule drops: modules and parameters that the forward does
    not reach, attributes, hooks, methods, and the difference between the modes.
    """

    _origin: ClassVar[type[nn.Module]]
    _train_graph: fx.Graph
    _inlined: frozenset[str]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Make an instance of the class that the module had: levels are made from modules alone."""
        return cls._origin(*args, **kwargs)  # type: ignore[return-value]  # as a slice of a Sequential does

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode that the level is in."""
        return self._train_graph if self.training else self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self._graph = self._train_graph = graph
        graph.owning_module = self
        self.recompile()

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs of the forward: one, or that of evaluation and that of training."""
        if self._train_graph is self._graph:
            return (self._graph,)
        return (self._graph, self._train_graph)

    def recompile(self) -> fx.graph.PythonCode:
        """Generate the forward from the graphs."""
        if self._train_graph is self._graph:
            return self._generated()
        evaluation, cls = self._graph, type(self)
        self._graph = self._train_graph
        self._generated()
        train_forward = cls.forward
        self._graph = evaluation
        code = self._generated()
        cls.forward = _by_mode(train_forward, cls.forward, self._inlined)
        return code

    def _generated(self) -> fx.graph.PythonCode:
        code = super().recompile()
        if any(node.target is enter for node in self._graph.nodes):
            type(self).forward = unwinding(type(self).forward)
        return code

    def _recompile_submodules(self) -> list[tuple[str, fx.graph.PythonCode]]:
        return []  # each level is compiled by whoever edits it

    @classmethod
    def _fresh(cls) -> type[Level]:
        """Make a class for a clone."""
        return level_class(cls._origin)

    def __deepcopy__(self, memo: dict[int, object]) -> Level:
        new = empty_level(self)
        memo[id(self)] = new
        for name, value in vars(self).items():
            if isinstance(value, fx.Graph):
                vars(new)[name] = memo.setdefault(id(value), copy_graph(value))
            else:
                vars(new)[name] = copy.deepcopy(value, memo)
        return _ready(new)

    def __copy__(self) -> Level:
        new = empty_level(self)
        vars(new).update(vars(self))
        for name in ("_parameters", "_buffers", "_modules"):
            vars(new)[name] = vars(self)[name].copy()
        copies = {id(graph): copy_graph(graph) for graph in self.graphs}
        new._graph, new._train_graph = copies[id(self._graph)], copies[id(self._train_graph)]
        return _ready(new)

    def __reduce__(self) -> tuple[object, ...]:
        state = dict(vars(self))
        same = self._train_graph is self._graph
        state["_graph"] = _rows(self._graph)
        state["_train_graph"] = None if same else _rows(self._train_graph)
        return _unpickled, (self._origin,), state

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._graph = _graph(state["_graph"])
        train = state["_train_graph"]
        self._train_graph = self._graph if train is None else _graph(train)
        _ready(self)


def level_class(origin: type[nn.Module]) -> type[Level]:
    """Make the class of one level: generated code belongs to the class, so none is shared."""
    bases = (Level,) if issubclass(origin, fx.GraphModule) else (Level, origin)
    body = {"_origin": origin, "__module__": origin.__module__}
    metaclass = max((type(base) for base in bases), key=lambda kind: len(kind.__mro__))
    return cast("type[Level]", type.__new__(metaclass, origin.__name__, bases, body))


def empty_level(like: Level) -> Level:
    """Make a level with a class of its own and no state."""
    return object.__new__(level_class(like._origin))


def make_level(module: nn.Module, traced: Traced, path: str) -> Level:
    """Turn a module into a level, in place.

    Args:
        module: the module; it keeps its identity.
        traced: what following its forward gave.
        path: where it stands.

    Raises:
        TraceError: a child or tensor has a name that a GraphModule needs.
    """
    cls = level_class(type(module))
    own = {name for base in type(module).__mro__ if not issubclass(nn.Module, base) for name in vars(base)}
    taken = {*module._modules, *module._parameters, *module._buffers} & (_RESERVED | set(_TEMPLATE))
    if not isinstance(module, fx.GraphModule):
        taken |= {*vars(module), *own} & {name for name in _RESERVED if not name.startswith("__")}
    if taken:
        raise TraceError(
            f"{type(module).__name__} at {path!r} uses the name {min(taken)!r}, which a GraphModule needs",
            module=path,
            found=f"{min(taken)!r} in {type(module).__name__}",
            write="an edit at a place outside this forward",
        )
    held = vars(module)
    held.pop("forward", None)
    for name, value in _TEMPLATE.items():
        held.setdefault(name, copy.copy(value))
    held.update(traced.constants)
    held.update(_graph=traced.evaluate, _train_graph=traced.train, _inlined=traced.inlined)
    object.__setattr__(module, "__class__", cls)
    level = cast("Level", module)
    for graph in level.graphs:
        graph.owning_module = level
    return level


def traced_of(module: fx.GraphModule) -> Traced:
    """Take the graphs of a GraphModule of any origin; none is traced again."""
    graph = module._graph
    train, evaluation = getattr(module, "train_graph", graph), getattr(module, "eval_graph", graph)
    return Traced(train, evaluation, {}, frozenset())


def _template() -> dict[str, object]:
    """Return what a GraphModule holds beyond a module."""
    graph = fx.Graph()
    graph.output(None)
    plain = vars(nn.Module())
    return {
        k: v for k, v in vars(fx.GraphModule(nn.Module(), graph)).items() if k not in plain and k != "_graph"
    }


_TEMPLATE = _template()
_RESERVED = {"_graph", "_train_graph", "_inlined", "_code"} | set(dir(Level)) - set(dir(nn.Module))


def _ready(level: Level) -> Level:
    for graph in level.graphs:
        graph.owning_module = level
    level.recompile()
    return level


def _by_mode(
    train: Callable[..., object], evaluation: Callable[..., object], inlined: frozenset[str]
) -> Callable[..., object]:
    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202 - the signature is that of the module
        for path in inlined:
            same_mode(self.get_submodule(path).training, self.training, path)
        if self.training:
            return train(self, *args, **kwargs)
        return evaluation(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(evaluation)  # type: ignore[attr-defined]  # read by inspect
    return forward


def _unpickled(origin: type[nn.Module]) -> Level:
    return object.__new__(level_class(origin))


class _Ref:
    """Name a node inside pickled arguments."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return _Ref, (self.name,)


class _Late(_Ref):
    """Name a function that pickle does not find; it is read back as the function."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        return function_named, (self.name,)


def _rows(graph: fx.Graph) -> list[tuple[object, ...]]:
    """Write a graph as rows, which pickle without deep recursion."""
    ref = cast("Callable[[fx.Node], fx.node.Argument]", lambda node: _Ref(node.name))
    return [
        (
            n.op,
            n.name,
            _Late(MADE_LATE[id(n.target)]) if id(n.target) in MADE_LATE else n.target,
            fx.map_arg(n.args, ref),
            fx.map_arg(n.kwargs, ref),
            n.type,
            n.meta.get("line"),
        )
        for n in graph.nodes
    ]


def _graph(rows: object) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def back(value: object) -> object:
        if isinstance(value, _Ref):
            return made[value.name]
        if isinstance(value, (tuple, list)):
            items = [back(item) for item in value]
            return rebuilt(value, items)
        if isinstance(value, dict):
            return {key: back(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(back(value.start), back(value.stop), back(value.step))
        return value

    for op, name, target, args, kwargs, type_expr, line in rows:  # type: ignore[attr-defined]  # a list of rows
        made[name] = graph.create_node(op, target, back(args), back(kwargs), name, type_expr)  # type: ignore[arg-type]  # rows come from a graph
        made[name].meta["line"] = line
    return graph

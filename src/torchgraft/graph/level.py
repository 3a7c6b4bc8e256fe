"""Levels: modules whose own forward is there as a graph, or can be had as one.

A level is the module itself under another class: a GraphModule that is also of the class
the module had. So hooks that are bound to it, its other methods, its properties and its own
idea of ``train`` or ``state_dict`` go on to work. A level whose graph no step wrote into runs
the forward of its class; its graph is made when somebody asks for it.
"""

from __future__ import annotations

import copy
import functools
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import attrs
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.arguments import spell_keywords
from torchgraft.graph.dispatch import (
    Forward,
    Way,
    choose_by_pattern,
    make_entry,
    methods_with_entries,
    names_in_forward,
    refuse_children,
    watch_grown,
)
from torchgraft.graph.following import LEVEL, follow_again, follow_alone
from torchgraft.graph.pattern import Pattern
from torchgraft.graph.rewrites import Rewrite
from torchgraft.graph.settings import ADDED, rebind_settings
from torchgraft.graph.trace import Traced
from torchgraft.graph.verifying import check_call
from torchgraft.graph.watched import is_shadow, mark

_MOST_PATTERNS = 8


@attrs.define(eq=False)
class LevelState:
    """What a level knows of its graphs.

    Args:
        patterns: the graphs for each way of calling it; edits write into those of the first.
        runs_graph: the graphs are run, and not the forward of the class.
        rewrites: what edits did to the graphs, with the modes that they did it in.
        fixed: why the forward cannot be followed again with its edits; empty where it can.
        is_checked: the graph was compared with the forward.
        ways: the generated code of the patterns.
        methods: that of other methods, by name; ``None`` where no edit shows in what they compute.
        watched: methods that cannot be followed, and are run for as long as they call no child.
        has_grown: a level below got a new child, which no method must meet.
        lock: held while the forward is followed for another way of calling it.
    """

    patterns: list[Pattern] = attrs.field(factory=list)
    runs_graph: bool = False
    rewrites: tuple[tuple[Rewrite, frozenset[bool]], ...] = ()
    fixed: str = ""
    is_checked: bool = True
    ways: tuple[Way, ...] = ()
    methods: dict[str, list[Way | None]] = attrs.field(factory=dict)
    watched: dict[str, Forward] = attrs.field(factory=dict)
    has_grown: bool = False
    lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)

    def __deepcopy__(self, memo: dict[int, object]) -> LevelState:
        # Patterns beyond the first are found again where they are needed.
        patterns = [copy.deepcopy(pattern, memo) for pattern in self.patterns[:1]]
        return attrs.evolve(self, patterns=patterns, ways=(), methods={}, watched={}, lock=threading.RLock())

    def __reduce__(self) -> tuple[object, ...]:
        held = (self.patterns[:1], self.runs_graph, self.rewrites, self.fixed, self.is_checked)
        return LevelState, (*held, (), {}, {}, self.has_grown)


class Level(fx.GraphModule):
    """A GraphModule that took the place of a module and kept all that the module held.

    It keeps what a plain GraphModule drops: modules and parameters that the forward does
    not reach, attributes, hooks, methods, and the difference between the modes.
    """

    if TYPE_CHECKING:  # TorchScript would try to understand the annotation
        _origin: ClassVar[type[nn.Module]]

    __jit_unused_properties__ = ["graph", "graphs", "code", "_graph", "_boxed_call", "__deepcopy__"]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Make an instance of the class that the module had: levels are made from modules alone."""
        return cls._origin(*args, **kwargs)  # type: ignore[return-value]  # as a slice of a Sequential does

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode that the level is in, for the attributes that it has now.

        Raises:
            TraceError: the forward cannot be followed by torch.fx.
        """
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        graph.owning_module = self
        self._graph = graph
        self.recompile()

    @property
    def _graph(self) -> fx.Graph:
        return _pattern_of_now(self).graph(training=self.training)

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        state_of(self).patterns = [Pattern(graph, graph)]

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs of the forward: one, or that of evaluation and that of training."""
        state = state_of(self)
        return (state.patterns[0] if state.runs_graph else _pattern_of_now(self)).graphs

    @property
    def code(self) -> str:
        """Return the Python code of the graph."""
        spell_keywords(self._graph)
        return str(self._graph.python_code(root_module="self").src)

    @property
    def _boxed_call(self) -> bool:
        return False

    def recompile(self) -> fx.graph.PythonCode:
        """Generate the forward from the graphs, and run it from now on."""
        state = state_of(self)
        if not state.runs_graph:
            state.patterns = [_pattern_of_now(self)]
        state.fixed = state.fixed or "its graph was edited by hand"
        start_graph(self)
        return self._graph.python_code(root_module="self")

    def _recompile_submodules(self) -> list[tuple[str, fx.graph.PythonCode]]:
        return []  # each level is compiled by whoever edits it

    def _ready(self) -> None:
        """Bring a copy into the state that the level was in."""
        for pattern in state_of(self).patterns:
            pattern.settings = rebind_settings(self, pattern.settings)
            for graph in pattern.graphs:
                graph.owning_module = self
        if runs_graph(self):
            start_graph(self)
        if state_of(self).has_grown:
            watch_methods(self)

    @classmethod
    def _fresh(cls) -> type[Level]:
        """Make a class for a clone."""
        return level_class(cls._origin)

    @property
    def __deepcopy__(self) -> object:  # type: ignore[override]  # noqa: PLE0302 - hides that of GraphModule
        """Raise: ``copy`` looks for it on instances, and would find it through a wrapper around this one."""
        raise AttributeError("__deepcopy__")

    def __copy__(self) -> Level:
        new = empty_level(self)
        vars(new).update(vars(self))
        for name in ("_parameters", "_buffers", "_modules"):
            vars(new)[name] = vars(self)[name].copy()
        state = state_of(self)
        vars(new)[LEVEL] = attrs.evolve(
            state,
            patterns=[copy.deepcopy(p) for p in state.patterns[:1]],
            ways=(),
            methods={},
            watched={},
            lock=threading.RLock(),
        )
        new._ready()
        return new

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self._origin,), dict(vars(self))

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._ready()


def state_of(level: nn.Module) -> LevelState:
    """Return what a level knows of its graphs."""
    return cast("LevelState", vars(level)[LEVEL])


def runs_graph(module: nn.Module) -> bool:
    """Return True if a module is a level whose graph was edited, so that it is what runs."""
    return isinstance(module, Level) and state_of(module).runs_graph


def check_followed(module: nn.Module) -> None:
    """Check that the forward of a module is there as a graph.

    Raises:
        TraceError: it cannot be followed.
    """
    if isinstance(module, Level):
        _pattern_of_now(module)


def edited_graphs(module: nn.Module) -> tuple[fx.Graph, ...]:
    """Return the graphs of a level that are run, those of every pattern; none of another module."""
    return tuple(g for p in state_of(module).patterns for g in p.graphs) if runs_graph(module) else ()


def level_class(origin: type[nn.Module]) -> type[Level]:
    """Make the class of one level: generated code belongs to the class, so none is shared."""
    bases = (Level,) if issubclass(origin, fx.GraphModule) else (Level, origin)
    body = {"_origin": origin, "__module__": origin.__module__, "__doc__": origin.__doc__}
    metaclass = max((type(base) for base in bases), key=lambda kind: len(kind.__mro__))
    return cast("type[Level]", type.__new__(metaclass, origin.__name__, bases, body))


def empty_level(like: Level) -> Level:
    """Make a level with a class of its own and no state."""
    return object.__new__(level_class(like._origin))


def make_level(module: nn.Module, path: str) -> Level:
    """Turn a module into a level, in place; it goes on to run its own forward.

    Args:
        module: the module; it keeps its identity.
        path: where it stands.

    Raises:
        TraceError: a child or tensor has a name that a GraphModule needs.
    """
    if isinstance(module, Level):
        return module
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
    held.pop("_graph", None)  # of a GraphModule of another origin
    for name, value in _TEMPLATE.items():
        held.setdefault(name, copy.copy(value))
    held[LEVEL] = LevelState()
    object.__setattr__(module, "__class__", level_class(type(module)))
    return cast("Level", module)


def write_graphs(level: Level, traced: Traced) -> None:
    """Give a level the graphs that following its forward gave, to be edited and run."""
    state, held = state_of(level), vars(level)
    if held.pop("forward", None) is not None:
        state.fixed = "that forward was set on the instance"
    held.update(traced.constants)
    state.patterns, state.runs_graph = [Pattern.of(traced)], True
    for graph in state.patterns[0].graphs:
        graph.owning_module = level


def traced_of(module: fx.GraphModule) -> Traced:
    """Take the graphs of a GraphModule of any origin; none is traced again."""
    graph = module._graph
    train, evaluation = getattr(module, "train_graph", graph), getattr(module, "eval_graph", graph)
    return Traced(train, evaluation, {}, frozenset())


def start_graph(level: Level) -> tuple[Way, ...]:
    """Generate the forward of a level from its graphs and run it from now on."""
    state, cls = state_of(level), type(level)
    state.runs_graph = True
    ways = state.ways = tuple(map(Way.of, state.patterns))
    free = state.patterns[0].is_free
    cls.forward = ways[0].evaluate if free else choose_by_pattern(ways, _another_way)
    for name, function in methods_with_entries(cls._origin):
        if name not in vars(cls):
            setattr(cls, name, make_entry(function, functools.partial(_method_way, name)))
    return ways


def watch_methods(level: Level) -> None:
    """Let the methods of a level that its forward does not use raise where they meet new children below."""
    cls = type(level)
    state_of(level).has_grown = True
    used = names_in_forward(cls._origin)
    for name, function in methods_with_entries(cls._origin):
        if name not in used:
            setattr(cls, name, watch_grown(vars(cls).get(name, function), _grown_below))


def _grown_below(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(path, part) for path, part in module.named_modules() if ADDED in vars(part)]
    return [(path, part) for path, part in found if part is not module and runs_graph(part)]


def _another_way(level: Level, args: tuple[object, ...], kwargs: dict[str, object]) -> Forward:
    """Follow the forward for another pattern of arguments, and put the edits in again."""
    if is_shadow(level):  # of a run on meta tensors
        return _another_way(cast("Level", mark(level).source), args, kwargs)
    state = state_of(level)
    with state.lock:
        for (
            way
        ) in state.ways:  # another thread may have been first; and what is fixed guards sizes as it runs
            if way.fits(level, args, kwargs, sizes=not state.fixed):
                return way.forward(level)
        _make_room(state.patterns)
        first = state.patterns[0]
        given = (args, kwargs)
        pattern, _ = follow_again(level, first, state.rewrites, state.fixed, given, check=check_call)
        state.patterns.append(pattern)
        return start_graph(level)[-1].forward(level)


def _method_way(
    name: str, level: Level, args: tuple[object, ...], kwargs: dict[str, object]
) -> Forward | None:
    """Follow another method for a pattern of arguments, and put in those edits that it runs through."""
    state = state_of(level)
    with state.lock:
        ways = state.methods.setdefault(name, [])
        for way in ways:
            if way is None or way.fits(level, args, kwargs):
                return None if way is None else way.forward(level)
        if name in state.watched:
            return state.watched[name]
        _make_room(ways)
        try:
            pattern, edited = follow_again(
                level,
                state.patterns[0],
                state.rewrites,
                state.fixed,
                (args, kwargs),
                method=name,
                check=check_call,
            )
        except TraceError as error:
            if error.called:
                raise
            # It may call children further on, where the trace did not come to.
            state.watched[name] = refuse_children(getattr(level._origin, name), error)
            return state.watched[name]
        ways.append(Way.of(pattern) if edited else None)
        return None if ways[-1] is None else ways[-1].forward(level)


def _make_room(known: list[Any]) -> None:
    """Forget the oldest pattern, but for the first, which edits write into; it is found again at need."""
    while len(known) >= _MOST_PATTERNS:
        del known[1]


def _pattern_of_now(level: Level) -> Pattern:
    """Return the pattern for the attributes and modes of now, with the arguments left out that can be."""
    state = state_of(level)
    for pattern in state.patterns:
        if pattern.holds_for_state(level):
            return pattern
    if state.runs_graph:
        return follow_again(level, state.patterns[0], state.rewrites, state.fixed, None)[0]
    pattern = follow_alone(level)
    for graph in pattern.graphs:
        graph.owning_module = level
    state.patterns = [pattern]
    return pattern


def _template() -> dict[str, object]:
    """Return what a GraphModule holds beyond a module."""
    graph = fx.Graph()
    graph.output(None)
    plain = vars(nn.Module())
    return {
        k: v for k, v in vars(fx.GraphModule(nn.Module(), graph)).items() if k not in plain and k != "_graph"
    }


_TEMPLATE = _template()
_RESERVED = {"_graph", LEVEL, "_code"} | set(dir(Level)) - set(dir(nn.Module))


def _unpickled(origin: type[nn.Module]) -> Level:
    return object.__new__(level_class(origin))

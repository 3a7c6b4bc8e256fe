"""Patterns: the ways of calling a level that one trace of its forward holds for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import attrs
import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten

from torchgraft.errors import SpecialisedError
from torchgraft.graph.clone import copy_graph
from torchgraft.graph.evaluate import run_guards
from torchgraft.graph.graph_rows import read_rows, write_rows
from torchgraft.graph.guard import are_counted, baked, counted, is_same, kind_name, passed_on, typed
from torchgraft.graph.hooking import run_quietly
from torchgraft.graph.settings import GLOBALS, Kept, Setting, is_plain, settings_hold
from torchgraft.graph.trace import Traced

_MOST_SIZES = 64
Parameters = tuple[tuple[str, object], ...]
"""Names, with their stars, and defaults."""

Check = tuple[object, str, tuple[object, ...], object]
"""A function that guards, the parameter, the item of it if it is variable, and what it was."""


@attrs.define(eq=False)
class Pattern:
    """The graphs of a level for one way of calling it.

    Args:
        evaluate: graph in evaluation mode.
        train: graph in training mode; the same object where the modes do not differ.
        inlined: paths of the descendants whose mode the forward reads itself.
        settings: the attributes that the forward read, with their values.
        sized: sizes decided, so every new size of the inputs is tried on meta tensors first.
    """

    evaluate: fx.Graph
    train: fx.Graph
    inlined: frozenset[str] = frozenset()
    settings: tuple[Setting, ...] = ()
    sized: bool = False
    _known_sizes: set[object] = attrs.field(factory=set, repr=False)

    @classmethod
    def of(cls, traced: Traced) -> Self:
        """Make the pattern of what following a forward gave."""
        return cls(traced.evaluate, traced.train, traced.inlined, traced.settings, traced.by_values)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs: one, or that of evaluation and that of training."""
        return (self.evaluate,) if self.train is self.evaluate else (self.evaluate, self.train)

    def graph(self, *, training: bool) -> fx.Graph:
        """Return the graph of a mode."""
        return self.train if training else self.evaluate

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules below the level whose modes or attributes decided."""
        known = (*self.inlined, *(s.path for s in self.settings if not s.path.startswith(GLOBALS)))
        return tuple(dict.fromkeys(path for path in known if path))

    def move(self, paths: Mapping[str, str]) -> None:
        """Take note that modules stand elsewhere now, or nowhere where they are not named."""
        self.inlined = frozenset(paths[path] for path in self.inlined if path in paths)
        self.settings = tuple(
            attrs.evolve(s, path=paths.get(s.path, s.path))
            for s in self.settings
            if s.path in paths or not s.path or s.path.startswith(GLOBALS)
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Pattern:
        copies = {id(graph): copy_graph(graph) for graph in self.graphs}
        memo.update(copies)
        return attrs.evolve(
            self, evaluate=copies[id(self.evaluate)], train=copies[id(self.train)], known_sizes=set()
        )

    def __reduce__(self) -> tuple[object, ...]:
        train = None if self.train is self.evaluate else write_rows(self.train)
        # Which objects there are is found out again where it is read.
        settings = tuple(s if is_plain(s.value) else attrs.evolve(s, value=Kept(None)) for s in self.settings)
        return _read_back, (write_rows(self.evaluate), train, self.inlined, settings, self.sized)

    # Does it hold? -----------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether it holds for every call there can be."""
        return not (
            self.settings or self.inlined or len(self.graphs) > 1 or self.sized or self.checks(self.evaluate)
        )

    def checks(self, graph: fx.Graph) -> tuple[Check, ...]:
        """Return what a graph checks of its arguments."""
        found: list[Check] = []
        for node in graph.nodes:
            if node.target in (baked, counted, passed_on, typed):
                given = cast("fx.Node", node.args[0])
                item = () if given.op == "placeholder" else given.args[1:]
                name = str(given.target if not item else cast("fx.Node", given.args[0]).target)
                expected = None if node.target is passed_on else node.args[1]
                found.append((node.target, name.lstrip("*"), item, expected))
        return tuple(found)

    def holds_for_state(self, level: nn.Module) -> bool:
        """Return True if modes and attributes of a level are those that it was made for."""
        return settings_hold(level, self.settings) is None and all(
            level.get_submodule(path).training is level.training for path in self.inlined
        )

    def holds_for_sizes(
        self, level: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> bool:
        """Return True if the decisions on sizes fall the same way, as far as meta tensors tell."""
        leaves, structure = tree_flatten((args, dict(kwargs)))
        key = level.training, structure, tuple(map(_look, leaves))
        if key in self._known_sizes:
            return True
        try:
            run_quietly(run_guards, self.graph(training=level.training), (args, dict(kwargs)), level)
        except SpecialisedError:
            return False
        except Exception:  # noqa: BLE001 - what does not run on meta tensors is guarded while it runs
            return True
        if len(self._known_sizes) < _MOST_SIZES:
            self._known_sizes.add(key)
        return True


def checks_hold(checks: tuple[Check, ...], given: Mapping[str, object]) -> bool:
    """Return True if arguments are of the kind that a graph was made for."""
    for function, name, item, expected in checks:
        value = given.get(name)
        for key in item:
            value = value[key]  # type: ignore[index]  # of variable arguments that were counted
        if function is baked:
            if not is_same(value, expected):
                return False
        elif function is counted:
            if not are_counted(value, expected):  # type: ignore[arg-type]  # variable arguments
                return False
        elif function is typed:
            if kind_name(value) != expected:
                return False
        elif value is None:
            return False
    return True


def parameters_of(graph: fx.Graph) -> Parameters:
    """Return the parameters of a graph as plain data, which compilers can look through."""
    nodes = graph.find_nodes(op="placeholder")
    return tuple((str(node.target), node.args[0] if node.args else None) for node in nodes)


def bind_arguments(
    parameters: Parameters, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Name the arguments of a call."""
    bound: dict[str, object] = {}
    rest = dict(kwargs)
    position = 0
    for target, default in parameters:
        name = target.lstrip("*")
        if target.startswith("**"):
            bound[name], rest = rest, {}
        elif target.startswith("*"):
            bound[name], position = args[position:], len(args)
        elif position < len(args):
            bound[name] = args[position]
            position += 1
        else:
            bound[name] = rest.pop(name, default)
    return bound


def _look(value: object) -> object:
    """Return what decisions go by in an argument; of what may be anything, which object it is."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device, value.requires_grad
    return type(value), value if isinstance(value, (int, float, str)) else id(value)


def _read_back(
    evaluate: list[tuple[object, ...]],
    train: list[tuple[object, ...]] | None,
    inlined: frozenset[str],
    settings: tuple[Setting, ...],
    sized: bool,
) -> Pattern:
    graph = read_rows(evaluate)
    return Pattern(graph, graph if train is None else read_rows(train), inlined, settings, sized)

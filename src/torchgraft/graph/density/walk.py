"""Walk over the forwards of a model and note how dense each map has to become.

A convolution or pooling that would take a map beyond the wanted stride keeps its places
instead, and what comes behind it reads places that lie apart. The walk follows values down
into the forwards of parts and changes nothing; it plans, and the plan is carried out at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, TargetError, TraceError
from torchgraft.graph.density.window import Pair
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container


@attrs.frozen
class Grid:
    """Say where a value has the places of a map.

    Args:
        axes: axes of height and width.
        rank: number of axes.
        stride: places of the input for each place in the original.
        density: places now for each place in the original.
    """

    axes: Pair
    rank: int
    stride: Pair = (1, 1)
    density: Pair = (1, 1)

    @property
    def is_dense(self) -> bool:
        """Tell whether there are more places than in the original."""
        return self.density != (1, 1)


@attrs.frozen
class Tokens:
    """Say that a value has places that are no map any more.

    Args:
        by: the operation that took the map apart.
        axis: axis with all places; ``None`` where it is not known.
        rank: number of axes; ``None`` where it is not known.
        sliced: they are the places of the original, out of a map that is denser.
        stride: stride of that map in the original.
    """

    by: str
    axis: int | None = None
    rank: int | None = None
    sliced: bool = False
    stride: int = 1

    @property
    def is_dense(self) -> bool:
        """Tell whether they come out of a map with more places than in the original."""
        return self.sliced


@attrs.frozen
class Each:
    """Say the same of every item of a sequence."""

    item: Grid | Tokens


Fact = Grid | Tokens | Each | None | tuple["Fact", ...] | dict[str, "Fact"]
Facts = Mapping[fx.Node, Fact]
Rule = Callable[["Walk", str, fx.Node, Facts], Fact]


@attrs.frozen(eq=False)
class _Decision:
    """What is to become of a layer or a node, and how it is done."""

    what: object
    act: Callable[[], None] | None


@attrs.frozen(eq=False)
class Rules:
    """What the walk asks about layers and operations.

    Args:
        of_module: gives the rule of a layer; ``None`` for a part whose forward is followed.
        of_operation: gives the rule of a function or method.
        unknown: the rule of what nothing is known of.
    """

    of_module: Callable[[nn.Module], Rule | None]
    of_operation: Callable[[fx.Node], Rule]
    unknown: Rule


class Walk:
    """Follow maps through nested forwards.

    Args:
        draft: the draft.
        rules: what layers and operations do.
        limit: the largest stride that maps may have; ``None`` to look at strides alone.
    """

    def __init__(self, draft: Draft, rules: Rules, limit: int | None = None) -> None:
        self.draft = draft
        self.rules = rules
        self.limit = limit
        self.strides: set[int] = set()
        self.lost: list[str] = []
        self.plan: dict[object, _Decision] = {}
        self._counting = True

    def run(self) -> None:
        """Follow the root's forward in both modes."""
        self._graphs("", self._inputs())

    def decide(self, key: object, path: str, what: object, act: Callable[[], None] | None) -> None:
        """Plan something for a layer or a node; it may be used at several places, in one way only.

        Raises:
            TargetError: it is used with maps of different densities.
        """
        known = self.plan.setdefault(key, _Decision(what, act))
        if known.what != what:
            raise TargetError(
                f"{path!r} is used at several places, and would have to be dilated in different ways",
                found="maps of different strides that run through the same layer",
                write=f'replace("{path}", ...) so that each place has a layer of its own',
            )

    def count(self, stride: Pair) -> None:
        """Note the stride of a map that evaluation makes."""
        if self._counting:
            self.strides.update(stride)

    def fact(self, facts: Facts, value: object) -> Fact:
        """Return what is known of an argument."""
        if isinstance(value, fx.Node):
            return facts[value]
        if isinstance(value, (tuple, list)):
            return tuple(self.fact(facts, item) for item in value)
        if isinstance(value, dict):
            return {str(key): self.fact(facts, item) for key, item in value.items()}
        return None

    def found(self, facts: Facts, node: fx.Node) -> list[Grid | Tokens]:
        """List what is known of the maps and tokens among the arguments of a node."""
        return [fact for source in node.all_input_nodes for fact in flat(facts[source])]

    def shape(self, owner: str, node: fx.Node) -> torch.Size | None:
        """Return the shape of a value at the usual input; ``None`` where it is unknown."""
        try:
            value = self.draft.value(owner, node)
        except (AnalysisError, KeyError):
            return None
        return value.shape if isinstance(value, torch.Tensor) else None

    # Going through ---------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Fact]:
        root = self.draft.root
        names = [n.target for n in self.draft.graphs("")[0].nodes if n.op == "placeholder"]
        try:
            call = self.draft.record("")[-1]
            bound = inspect.signature(root.forward).bind(*call.args, **call.kwargs).arguments
        except AnalysisError:
            return {str(name): Grid((2, 3), 4) for name in names[:1]}
        return {name: _grids(value) for name, value in bound.items()}

    def _graphs(self, path: str, given: Mapping[str, Fact]) -> Fact:
        counting, results = self._counting, []
        for number, graph in enumerate(self.draft.graphs(path)):
            self._counting = counting and number == 0
            results.append(self._graph(path, graph, given))
        self._counting = counting
        return results[0]

    def _graph(self, owner: str, graph: fx.Graph, given: Mapping[str, Fact]) -> Fact:
        facts: dict[fx.Node, Fact] = {}
        for node in graph.nodes:
            if node.op == "output":
                return self.fact(facts, node.args[0])
            if node.op == "placeholder":
                facts[node] = given.get(str(node.target).lstrip("*"))
            elif node.op == "get_attr":
                facts[node] = None
            elif node.op == "call_module":
                facts[node] = self._module(owner, node, facts)
            else:
                facts[node] = self.rules.of_operation(node)(self, owner, node, facts)
        return None

    def _module(self, owner: str, node: fx.Node, facts: Facts) -> Fact:
        path = name_of(owner, node)
        module = self.draft.get(path)
        rule = self.rules.of_module(module)
        if rule is not None:
            return rule(self, owner, node, facts)
        if not self.found(facts, node):
            return None  # vectors and weights are left as they are
        if module._modules and not is_container(module):  # one of torch's own, such as attention
            return self.rules.unknown(self, owner, node, facts)
        try:
            self.draft.graphs(path)
        except TraceError:
            if any(fact.is_dense for fact in self.found(facts, node)):
                raise
            return self.rules.unknown(self, owner, node, facts)
        return self._graphs(path, self._passed(module, node, facts))

    def _passed(self, module: nn.Module, node: fx.Node, facts: Facts) -> dict[str, Fact]:
        bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs).arguments
        return {name: self.fact(facts, value) for name, value in bound.items()}


def name_of(owner: str, node: fx.Node) -> str:
    """Name a node with its level."""
    return f"{owner}.{node.target if node.op == 'call_module' else node.name}".lstrip(".")


def flat(fact: Fact) -> Iterator[Grid | Tokens]:
    """List the maps and tokens in what is known of a nested value."""
    if isinstance(fact, (Grid, Tokens)):
        yield fact
    elif isinstance(fact, Each):
        yield fact.item
    elif isinstance(fact, tuple):
        for item in fact:
            yield from flat(item)
    elif isinstance(fact, dict):
        for item in fact.values():
            yield from flat(item)


def _grids(value: object) -> Fact:
    if isinstance(value, torch.Tensor):
        return Grid((2, 3), 4) if value.ndim == 4 else None
    if isinstance(value, (tuple, list)):
        return tuple(_grids(item) for item in value)
    if isinstance(value, dict):
        return {str(key): _grids(item) for key, item in value.items()}
    return None

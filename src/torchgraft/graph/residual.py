"""Find residual branches: what is added to a shortcut around it.

Nothing is read off names. Each level is a flow of values; its additions are looked at one
by one, and levels are visited in the order in which they are called.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections import Counter
from collections.abc import Iterator

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge
from torchgraft.graph.flow import Flow
from torchgraft.graph.kinds import is_container
from torchgraft.graph.level import Level
from torchgraft.graph.trace import trace_mode
from torchgraft.graph.watch import own_operations

_ADDS = frozenset((operator.add, operator.iadd, torch.add, "add", "add_"))


@attrs.frozen(eq=False)
class Branch:
    """A residual branch.

    Args:
        owner: path of the level whose forward adds it.
        edges: from its end to the addition, one for each graph of the level that has it.
        ending: the modules at its end, last one first, until one that mixes channels.
    """

    owner: str
    edges: tuple[Edge, ...]
    ending: tuple[nn.Module, ...]


def residual_units(draft: Draft) -> list[list[Branch]]:
    """Find the residual branches of a model, in the order in which they run.

    An addition is residual where one side is a value, or a projection of it, and the other
    is a branch from that value with more layers, and nothing between is used elsewhere. The
    layers of ``torch.nn`` are not searched.

    Args:
        draft: the model; it is only read.

    Returns:
        The branches by unit: those of one level together where levels of its class repeat
        (a transformer block has two), each one alone elsewhere.

    Raises:
        TraceError: a forward that adds something cannot be followed.
    """
    search = _Search(draft)
    search.visit("")
    kinds = {owner: _kind(draft.get(owner)) for owner, _ in search.found}
    alike = Counter(kinds.values())
    units: dict[object, list[Branch]] = {}
    for (owner, place), (edges, ending) in search.found.items():
        unit = owner if alike[kinds[owner]] > 1 else (owner, place)
        units.setdefault(unit, []).append(Branch(owner, tuple(edges), ending))
    return list(units.values())


def codes_of(module: nn.Module) -> Iterator[types.CodeType]:
    """Yield the code of a forward, and that of the methods and functions it names."""
    seen: set[types.CodeType] = set()
    waiting: list[tuple[types.CodeType, dict[str, object]]] = []

    def named(value: object) -> None:
        value = getattr(value, "__func__", value)
        function = inspect.unwrap(value) if callable(value) else value
        # A generated forward has no module.
        if isinstance(function, types.FunctionType) and not str(function.__module__).startswith("torch."):
            waiting.append((function.__code__, function.__globals__))
            for cell in function.__closure__ or ():  # a generated forward may have one for each mode
                named(cell.cell_contents)

    named(vars(module).get("forward", type(module).forward))
    while waiting:
        code, names = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        yield code
        waiting += [(inner, names) for inner in code.co_consts if isinstance(inner, types.CodeType)]
        for name in code.co_names:
            named(inspect.getattr_static(type(module), name, None))
            named(names.get(name))


class _Search:
    """Visit the levels of a model in the order of their calls.

    Args:
        draft: the model.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._seen: set[int] = set()
        self.found: dict[tuple[str, object], tuple[list[Edge], tuple[nn.Module, ...]]] = {}

    def visit(self, path: str, caller: Flow | None = None, call: fx.Node | None = None) -> None:
        """Look at a level and then at those it calls."""
        module = self._draft.get(path)
        if id(module) in self._seen or not is_container(module):
            return
        self._seen.add(id(module))
        unfollowed: TraceError | None = None
        try:
            graphs = self._draft.graphs(path)
        except TraceError as error:
            unfollowed, graphs = error, self._in_training(path, module)
            if not graphs:
                self._children(path, module, error)
        for graph in reversed(graphs):  # training first: that is when branches are dropped
            flow = Flow(self._draft, path, graph, caller, call)
            branches, lines = residual_edges(flow, path, graph), Counter[str]()
            if branches and unfollowed is not None:
                raise _may_add(path, module, unfollowed)
            for node in graph.nodes:
                if node.op == "call_module":
                    self.visit(flow.path(node), flow, node)
                elif node in branches:
                    line = repr(node.meta.get("line"))
                    edge, place = branches[node], (line, lines[line])
                    lines[line] += 1
                    ending = tuple(flow.ending(edge.value, edge.entry))
                    self.found.setdefault((path, place), ([], ending))[0].append(edge)

    def _in_training(self, path: str, module: nn.Module) -> tuple[fx.Graph, ...]:
        """Follow a level in training mode alone; some write caches on themselves in evaluation."""
        given = functools.partial(self._draft.runs.arguments, module)
        try:
            return (trace_mode(module, path, True, given, self._draft._passed(module, path)).graph,)
        except TraceError:
            return ()

    def _children(self, path: str, module: nn.Module, error: TraceError) -> None:
        """Visit what a level calls that cannot be followed, in the order of a run."""
        ran = own_operations(self._draft, path)
        if ran is None or not ran.isdisjoint(("add", "iadd")):
            raise _may_add(path, module, error)
        try:
            calls = self._draft.runs.run(training=False).calls
        except AnalysisError:
            raise error from None  # nothing tells in which order it calls its children
        for made in sorted(calls, key=lambda made: made.started):
            if made.path and made.path.startswith(f"{path}." if path else ""):
                self.visit(made.path)


def _may_add(path: str, module: nn.Module, error: TraceError) -> TraceError:
    return TraceError(
        f"{path or 'the root'} ({type(module).__name__}) adds values, perhaps of residual branches, "
        "and torch.fx cannot follow it",
        module=path,
        filename=error.filename,
        lineno=error.lineno,
        found=error.found,
        write=error.write,
    )


def residual_edges(flow: Flow, owner: str, graph: fx.Graph) -> dict[fx.Node, Edge]:
    """Return the residual additions of a graph, each with the edge from the end of its branch.

    Args:
        flow: the values of the graph.
        owner: path of the level.
        graph: the graph.
    """
    found: dict[fx.Node, Edge] = {}
    known: dict[fx.Node, tuple[fx.Node, int]] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
            continue
        one, other = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
            continue
        if one not in flow.sources or other not in flow.sources:
            continue
        for shortcut, end in ((one, other), (other, one)):
            start = _start(flow, known, node, shortcut, end)
            if start is not None:
                known[node] = start
                found[node] = Edge(owner, graph, end, (node,), start[0])
                break
    return found


def _start(
    flow: Flow, known: dict[fx.Node, tuple[fx.Node, int]], addition: fx.Node, shortcut: fx.Node, end: fx.Node
) -> tuple[fx.Node, int] | None:
    """Return where a branch leaves its shortcut and the layers of the shortcut, if these are such."""
    above = flow.above(end)
    entry, steps = next((step for step in _chain(flow, known, shortcut) if step[0] in above), (end, 0))
    if entry is end:
        return None
    inside = (flow.above(shortcut, entry) | flow.above(end, entry)) & flow.below(entry, addition)
    sum_ = {*inside, addition}
    if any(
        n.target is operator.getitem and isinstance(n.args[1], int) for n in flow.users[entry] if n in sum_
    ):
        return None  # parts of a tuple are values of their own
    if any(user not in sum_ for node in inside for user in flow.users[node]):
        return None
    outside = {n for node in sum_ for n in flow.sources[node]} - sum_ - {entry}
    stream = flow.origins[entry]
    if flow.stream in stream:
        stream = frozenset((flow.stream,))
    # Conditions, such as masks and embeddings of places, may join a branch from outside.
    if outside and (steps or any(flow.origins[n] & stream for n in outside)):
        return None
    shortest, longest = flow.span(inside, entry, end)
    # A way without layers would be a second shortcut, or the value under a gate.
    return (entry, steps) if shortest and longest > steps else None


def _chain(
    flow: Flow, known: dict[fx.Node, tuple[fx.Node, int]], node: fx.Node
) -> Iterator[tuple[fx.Node, int]]:
    """Yield a value and those that it is made from alone, with the layers passed on the way.

    From a residual addition the way goes on along its shortcut.
    """
    steps = 0
    while True:
        yield node, steps
        if node in known:
            node, more = known[node]
            steps += more
        elif len(flow.sources[node]) == 1:
            steps += flow.steps(node)
            (node,) = flow.sources[node]
        else:
            return


def _kind(module: nn.Module) -> type:
    return module._origin if isinstance(module, Level) else type(module)

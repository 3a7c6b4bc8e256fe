"""Find residual branches in a recorded run: what is added to a shortcut around it.

Nothing is read off names. Each forward is a flow of values, with the calls of children as
steps of it; its additions are looked at one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs
from torch import nn

from torchgraft.graph.anchor import anchor_of
from torchgraft.graph.binding import bind_nodes
from torchgraft.graph.deep.record import Op, Scope
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge
from torchgraft.graph.kinds import is_container
from torchgraft.graph.level import Level

_ADDS, _SCALES = ("add", "add_"), ("add", "add_", "mul", "mul_")


@attrs.frozen(eq=False)
class Branch:
    """A residual branch.

    Args:
        owner: path of the level whose forward adds it.
        addition: the operation that does.
        end: which of the values that are added it is.
        ending: the modules at its end, last one first, until one that mixes channels.
    """

    owner: str
    addition: Op
    end: int
    ending: tuple[nn.Module, ...]


def residual_units(draft: Draft) -> list[list[Branch]]:
    """Find the residual branches of a model, in the order in which they run.

    An addition is residual where one side is a value, or a projection of it, and the other
    is a branch from that value with more layers, and nothing between is used elsewhere. The
    layers of ``torch.nn`` are not searched.

    Returns:
        The branches by unit: those of one level together where levels of its class repeat
        (a transformer block has two), each one alone elsewhere.

    Raises:
        AnalysisError: the model does not run on meta tensors.
    """
    run = _Run(draft)
    branches: list[Branch] = []
    seen: set[int] = set()
    for number, scope in enumerate(run.record.scopes):
        module = draft.get(scope.path)
        if id(module) not in seen and is_container(module):
            branches += _Flow(run, number).branches()
        seen.add(id(module))
    kinds = {branch.owner: _kind(draft.get(branch.owner)) for branch in branches}
    alike = Counter(kinds.values())
    units: dict[object, list[Branch]] = {}
    for branch in sorted(branches, key=lambda branch: run.record.ops.index(branch.addition)):
        unit = branch.owner if alike[kinds[branch.owner]] > 1 else branch
        units.setdefault(unit, []).append(branch)
    return list(units.values())


def branch_edges(draft: Draft, branch: Branch) -> list[Edge]:
    """Return the edges from the end of a branch to the addition, one for each graph of the level.

    Raises:
        TraceError: the forward that adds it cannot be followed.
    """
    graphs = draft.graphs(branch.owner)
    bound = bind_nodes(draft, branch.owner, graphs[0], draft.runs.deep(), training=False)
    at = anchor_of(next(node for node, ops, _ in bound if branch.addition in ops.values()))
    nodes = [(graph, node) for graph in graphs for node in at.find(graph)]
    return [Edge(branch.owner, g, node.all_input_nodes[branch.end], (node,)) for g, node in nodes]


class _Run:
    """A run, with the values that come from the input and those that come from parameters alone."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.record = draft.runs.deep()
        parameters = {name for name, _ in draft.root.named_parameters(remove_duplicate=False)}
        self.live = set(self.record.inputs)
        self.learnt = {value for value, key in self.record.given.items() if key in parameters}
        for op in self.record.ops:
            if not self.live.isdisjoint(op.inputs):  # sizes alone do not depend on the input
                self.live.update(
                    () if op.name.startswith("new_") or op.name.endswith("_like") else op.outputs
                )
            elif not self.learnt.isdisjoint(op.inputs):
                self.learnt.update(op.outputs)


class _Flow:
    """The steps of one forward, in order, each with those that it takes values from."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._scope = run.record.scopes[number]
        self._steps: list[Op | Scope | None] = []
        self._taken: list[dict[int, int]] = []
        self._starts: dict[int, tuple[int, int]] = {}
        now = {value: self._add(None, {}) for value in self._scope.inputs if value in run.live}
        first, last = self._scope.start, self._scope.end
        waiting = [scope for scope in run.record.scopes if scope.parent == number][::-1]
        for at, op in enumerate((*run.record.ops[first:last], None), first):
            steps: list[Op | Scope] = []
            while waiting and waiting[-1].start <= at:
                steps.append(waiting.pop())
            for step in (*steps, op) if op is not None and op.scope == number else steps:
                given = step.outputs if isinstance(step, Op) else [value for _, value in step.outputs]
                taken = {value: now[value] for value in step.inputs if value in now}
                if taken and not run.live.isdisjoint(given):
                    now.update(dict.fromkeys(given, self._add(step, taken)))
        self.end = self._add(None, {value: now[value] for _, value in self._scope.outputs if value in now})

    def _add(self, step: Op | Scope | None, taken: dict[int, int]) -> int:
        self._steps.append(step)
        self._taken.append(taken)
        return len(self._steps) - 1

    def branches(self) -> Iterator[Branch]:
        """Yield the branches that are added to shortcuts."""
        for number, op in enumerate(self._steps):
            taken = list(self._taken[number].items())
            if isinstance(op, Op) and op.name in _ADDS and len(taken) == 2:
                for (_, shortcut), (value, end) in (taken, taken[::-1]):
                    start = None if number in self._starts else self._start(number, shortcut, end)
                    if start is not None:
                        self._starts[number] = start
                        ending = tuple(self.ending(end, start[0]))
                        yield Branch(self._scope.path, op, op.inputs.index(value), ending)

    def _start(self, addition: int, shortcut: int, end: int) -> tuple[int, int] | None:
        """Return where a branch leaves its shortcut and the layers of the shortcut, if these are such."""
        above = self._reach(end)
        entry, layers = next((step for step in self._chain(shortcut) if step[0] in above), (end, 0))
        if entry == end:
            return None
        near = self._reach(shortcut, entry) | self._reach(end, entry)
        inside = {n for n in near if entry in self._reach(n)}
        sum_ = {*inside, addition}
        parts = {v for n in sum_ for v, source in self._taken[n].items() if source == entry}
        others = (n for n in range(self.end + 1) if n not in sum_)
        if len(parts) > 1 or any(not inside.isdisjoint(self._taken[n].values()) for n in others):
            return None  # parts of a tuple are values of their own
        outside = {source for n in sum_ for source in self._taken[n].values()} - sum_ - {entry}
        origins = {n for n in self._reach(entry) if not self._taken[n]}
        stream = {0} & origins or origins
        # Conditions, such as masks and embeddings of places, may join a branch from outside.
        if outside and (layers or any(stream & self._reach(n) for n in outside)):
            return None
        known = {entry: (0, 0)}
        for n in sorted(inside):
            before = [known[source] for source in self._taken[n].values() if source in known]
            own = self._layers(n)
            known[n] = min(b[0] for b in before) + own, max(b[1] for b in before) + own
        shortest, longest = known[end]
        # A way without layers would be a second shortcut, or the value under a gate.
        return (entry, layers) if shortest and longest > layers else None

    def _chain(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield a step and those that it takes its value from alone, with the layers passed on the way.

        From a residual addition the way goes on along its shortcut.
        """
        layers = 0
        while True:
            yield step, layers
            sources = set(self._taken[step].values())
            if step in self._starts:
                step, more = self._starts[step]
                layers += more
            elif len(sources) == 1:
                layers += self._layers(step)
                (step,) = sources
            else:
                return

    def _reach(self, step: int, stop: int = -1) -> set[int]:
        """Return a step and all that it is made from, up to one that stops."""
        found, waiting = set[int](), [step]
        while waiting:
            here = waiting.pop()
            if here != stop and here not in found:
                found.add(here)
                waiting += self._taken[here].values()
        return found

    def _layers(self, step: int) -> int:
        """Count the layers with parameters that a step runs; scaling and shifting are none."""
        here = self._steps[step]
        if isinstance(here, Scope):
            parts = self._run.draft.get(here.path).modules()
            return sum(any(p is not None for p in part._parameters.values()) for part in parts)
        return int(
            here is not None and here.name not in _SCALES and not self._run.learnt.isdisjoint(here.inputs)
        )

    def ending(self, step: int, entry: int = -1) -> Iterator[nn.Module]:
        """Yield the modules before a step, last one first, until one that mixes channels."""
        while step != entry and len(sources := set(self._taken[step].values())) == 1:
            here = self._steps[step]
            if isinstance(here, Scope):
                module = self._run.draft.get(here.path)
                yield module
                if is_container(module):
                    inner = _Flow(self._run, self._run.record.scopes.index(here))
                    yield from inner.ending(inner.end)
                if any(sum(side > 1 for side in p.shape) > 1 for p in module.parameters()):
                    return
            elif self._layers(step):
                return
            (step,) = sources


def _kind(module: nn.Module) -> type:
    return module._origin if isinstance(module, Level) else type(module)

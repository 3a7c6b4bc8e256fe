"""Execution order: when modules and operations run, as a run on meta tensors tells."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from torchgraft.errors import AnalysisError
from torchgraft.graph.draft import Draft
from torchgraft.graph.run import ModuleCall
from torchgraft.paths import join_path

Moment = tuple[float, int]
"""A tick on the clock of the run, then a place between two ticks."""

NEVER: Moment = (float("inf"), 0)


class Order:
    """Tell when the parts of a model run.

    Args:
        draft: the model.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls: dict[int, list[ModuleCall]] = {}
        self.unknown: AnalysisError | None = None
        try:
            for call in draft.runs.run(training=False).calls:
                self._calls.setdefault(id(call.module), []).append(call)
        except AnalysisError as error:
            self.unknown = error

    def module(self, path: str) -> tuple[Moment, Moment]:
        """Return when the first call of a module starts and when its last call ends."""
        calls = self._calls.get(id(self._draft.get(path)))
        if not calls:
            return NEVER, NEVER
        return (min(c.started for c in calls), 0), (max(c.ended for c in calls), 0)

    def node(self, owner: str, nodes: Sequence[fx.Node]) -> tuple[Moment, Moment]:
        """Return when an operation runs in the first call of its level."""
        level = self._calls.get(id(self._draft.get(owner)))
        # Of a level with two graphs, the run was of the graph for evaluation.
        node = next((n for n in nodes if n.graph is self._draft.graphs(owner)[0]), None)
        if not level or node is None:
            return NEVER, NEVER
        first = min(level, key=lambda call: call.started)
        tick = first.started
        for place, other in enumerate(node.graph.nodes):
            call = self._next(owner, other, tick, first.ended) if other.op == "call_module" else None
            if other is node:
                span = (call.started, call.ended) if call else (tick, tick)
                return (span[0], 0 if call else place), (span[1], 0 if call else place)
            tick = call.ended if call else tick
        return NEVER, NEVER

    def _next(self, owner: str, node: fx.Node, after: int, until: int) -> ModuleCall | None:
        module = self._draft.get(join_path(owner, str(node.target)))
        calls = [c for c in self._calls.get(id(module), []) if after < c.started and c.ended < until]
        return min(calls, key=lambda call: call.started, default=None)

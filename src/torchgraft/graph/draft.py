"""The one mutable thing: a private clone of a model that transforms edit and that is then sealed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import cast

import attrs
from torch import fx, nn

from torchgraft.errors import AnalysisError, TargetError, TraceError
from torchgraft.graph.alike import Alike
from torchgraft.graph.clone import Cloner
from torchgraft.graph.evaluate import node_value
from torchgraft.graph.following import EXAMPLE, hidden_in, own_forward
from torchgraft.graph.inputs import hints_of
from torchgraft.graph.kinds import has_forward, is_unit
from torchgraft.graph.level import (
    Level,
    make_level,
    runs_graph,
    start_graph,
    state_of,
    traced_of,
    watch_methods,
    write_graphs,
)
from torchgraft.graph.nodes import all_names
from torchgraft.graph.probe import Example, arguments_of, on_meta
from torchgraft.graph.proxy import UNKNOWN, holds_node
from torchgraft.graph.rewrites import Rewrite
from torchgraft.graph.run import ModuleCall, Run
from torchgraft.graph.runs import Runs, gives_tensors
from torchgraft.graph.sealing import check_names, check_runs
from torchgraft.graph.settings import renew_children
from torchgraft.graph.trace import Traced, trace_level
from torchgraft.graph.tree import Tree
from torchgraft.graph.verifying import check_level
from torchgraft.paths import join_path, parent_of
from torchgraft.text import class_name


@attrs.frozen(eq=False)
class Call:
    """One place where a module is called.

    Args:
        owner: path of the level whose forward calls it.
        graph: the graph with the call; a level has two where its modes differ.
        node: the call itself.
    """

    owner: str
    graph: fx.Graph
    node: fx.Node


class Draft(Tree):
    """A clone of a model under edit.

    Args:
        model: the model; it is only read.
        example: an input for the analysis of shapes; guessed where it is needed and missing.
        values: the tensors hold values; without, edits set up the structure alone.
    """

    def __init__(self, model: nn.Module, example: Example | None = None, *, values: bool = True) -> None:
        super().__init__(Cloner(model).module(model))
        self.values = values
        self.example = example if example is not None else getattr(model, EXAMPLE, None)
        self.runs = Runs(self.runnable, self.example)
        self.opened: list[str] = []
        self.before: dict[str, tuple[str, ...]] = {}
        self.unfollowed: TraceError | None = None
        self.reshaped = False
        self.steps: list[str] = []
        self._source = model
        self._alike = Alike()
        self._traced: dict[int, Traced | TraceError] = {}
        self._compared: set[object] = set()
        self._dirty: dict[int, Level] = {}
        self._stale: dict[int, Level] = {}
        self._values: dict[fx.Graph, dict[fx.Node, object]] = {}
        self._index: dict[str, dict[str, list[Call]]] = {}

    # Looking -----------------------------------------------------------------------------

    def graphs(self, path: str, *, run: bool = True) -> tuple[fx.Graph, ...]:
        """Return the graphs of a module's forward without opening it.

        Args:
            path: where it stands.
            run: the model may be run for that.

        Raises:
            TraceError: the forward cannot be followed, or not without a run.
        """
        module = self.get(path)
        if isinstance(module, Level) and runs_graph(module):
            return module.graphs
        traced = self._traced_of(module, path, run=run)
        return (traced.evaluate,) if traced.train is traced.evaluate else (traced.evaluate, traced.train)

    def calls(self, path: str) -> list[Call]:
        """Find the places where a module is called, under each of its names.

        Raises:
            TargetError: no forward calls it.
            TraceError: the forward that should call it cannot be followed.
        """
        module = self.get(path)
        found: dict[int, Call] = {}
        stopped: TraceError | None = None
        unit = ""
        for name in self.names(module) or [path]:
            owner, known, here_stopped = name, len(found), None
            while owner:
                owner = parent_of(owner)
                if not has_forward(self.get(owner)):
                    continue
                if is_unit(self.get(owner)):
                    unit = owner
                    continue
                try:
                    here = self._calls_in(owner, module)
                    # A level above may run the forward of this one line by line, or not at all.
                    if here and self.reached(owner):
                        found.update((id(call.node), call) for call in here)
                except TraceError as error:
                    here_stopped = error
                    break
            if here_stopped is not None and len(found) == known:
                stopped = stopped or here_stopped
        if stopped is not None:
            raise stopped
        if found:
            return list(found.values())
        used = [] if unit else self._used(path)
        called = [name for op, name in used if op == "call_module"]
        reader = f"{class_name(type(self.get(unit)))} at {unit!r}" if unit else "its parent"
        why = "uses its parameters directly" if used or unit else "never runs it, nor reads its parameters"
        raise TargetError(
            f"no forward calls {path!r} ({type(module).__name__})",
            wrong=path,
            found="its children are called one by one" if called else f"{reader} {why}",
            near=called[-1:],
            outside=type(self.get(unit)) if unit else path,
        )

    def reached(self, owner: str) -> bool:
        """Tell whether the forward of a level runs when the model runs, as far as can be seen."""
        if not owner:
            return True
        try:
            return bool(self.calls(owner))
        except TargetError:
            return False
        except TraceError:
            return True

    def record(self, path: str) -> list[ModuleCall]:
        """Return what the calls of a module got and gave, on meta tensors.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        module = self.get(path)
        known = self.runs.of(module)
        if known:
            return known
        self.rerun()
        return self.runs.of(module)

    def value(self, owner: str, node: fx.Node, *, again: bool = False) -> object:
        """Compute the value of a node on meta tensors, from what its level got.

        Args:
            owner: path of the level.
            node: the node.
            again: compute it though it is known, for somebody who watches.

        Raises:
            AnalysisError: the model does not run on meta tensors, or never calls the level.
        """
        calls = self.record(owner)
        if not calls:
            raise AnalysisError(
                f"no run of the model calls {owner!r}",
                found="shapes there are unknown",
                write=f"model.{owner} = pipe(model.{owner}, <the steps>)",
            )
        level = self.get(owner)
        for key, stale in list(self._stale.items()):  # a node may call a level that was edited since
            if stale is not level:
                start_graph(self._stale.pop(key))
        return node_value(node, calls[0], level, {} if again else self._values.setdefault(node.graph, {}))

    # Editing -----------------------------------------------------------------------------

    def open(self, path: str) -> Level:
        """Turn the module at a path into a level whose graph runs, so that it can be edited in any way.

        What is done to the graph is known to nobody then, so it cannot be done again for another
        way of calling the level: see ``rewrite``.

        Raises:
            TraceError: its forward cannot be followed.
        """
        level = self._written(path)
        step = self.steps[-1] if self.steps else "an edit"
        state_of(level).fixed = state_of(level).fixed or f"{step} cannot be put in again"
        return level

    def rewrite(self, owner: str, rewrites: Iterable[tuple[fx.Graph, Rewrite]]) -> None:
        """Change graphs of a level, and keep what was done for other ways of calling it.

        Args:
            owner: path of the level.
            rewrites: each with the graph it is for.

        Raises:
            TraceError: its forward cannot be followed.
        """
        state = state_of(self._written(owner))
        pattern, done = state.patterns[0], dict[Rewrite, frozenset[bool]]()
        for graph, rewrite in rewrites:
            rewrite.apply(graph)
            modes = {mode for mode in (False, True) if pattern.graph(training=mode) is graph}
            done[rewrite] = done.get(rewrite, frozenset()) | modes
        state.rewrites = (*state.rewrites, *done.items())

    def _written(self, path: str) -> Level:
        module = self.get(path)
        if not runs_graph(module):
            traced = self._traced_of(module, path)
            checked = self._compare(module, path, traced)
            foreign = isinstance(module, fx.GraphModule) and not isinstance(module, Level)
            level = make_level(module, path)
            write_graphs(level, traced)
            state_of(level).is_checked = checked
            self.opened.append(path)
            if foreign:
                self.changed()
        level = cast("Level", module)
        del state_of(level).patterns[1:]
        self.before.setdefault(path, all_names(level.graphs, path))
        self._dirty[id(level)] = self._stale[id(level)] = level
        return level

    def changed(self) -> None:
        """Forget where modules are called; to be said when calls came or went."""
        self._index.clear()
        self._values.clear()
        self.runs.renew()

    def forget(self, path: str = "") -> None:
        """Follow a module anew, by default all, in new runs: what forwards read was changed."""
        if path:
            self._traced.pop(id(self.get(path)), None)
        else:
            self._traced.clear()
            self.rerun()
        self.changed()

    # Sealing -----------------------------------------------------------------------------

    def seal(self) -> nn.Module:
        """Generate the code of what was edited, check, and hand the model over as a GraphModule.

        Raises:
            ShapeError: the edited model does not run on the input that the original took.
            TargetError: a forward that cannot be followed goes through children, and one is new.
        """
        if not isinstance(self.root, fx.GraphModule):
            try:
                make_level(self.root, "")
            except TraceError as error:
                self.unfollowed = error
        self._check_enumerations()
        self.order()
        for level in self._dirty.values():
            check_names(level)
        self._compile()
        for parent in self.grown.values():
            if runs_graph(parent):
                for place in self.names(parent):
                    parts = place.split(".")
                    above = [self.get(".".join(parts[:i])) for i in range(len(parts))]
                    for module in above:
                        if isinstance(module, Level):
                            watch_methods(module)
        if self.reshaped:
            check_runs(self.root, self._source, self.example, self.steps)
        if self.example is not None:
            vars(self.root)[EXAMPLE] = on_meta(self.example)
        return self.root

    def _check_enumerations(self) -> None:
        """Open the levels above whose forwards go through the children of a module that got a new one.

        They would call the new child, or count it. In a graph they call those that were there.

        Raises:
            TargetError: such a forward cannot be followed.
        """
        places = [place for parent in self.grown.values() for place in self.names(parent)]
        for place in places:
            owner = place
            while owner:
                owner = parent_of(owner)
                above = self.get(owner)
                if not has_forward(above) or is_unit(above) or runs_graph(above):
                    continue
                stopped: TraceError | None = None
                try:
                    enumerated = self._traced_of(above, owner).enumerated
                except TraceError as error:
                    stopped, enumerated = error, error.enumerated
                if place[len(owner) :].lstrip(".") in enumerated:
                    if stopped is not None:
                        raise TargetError(
                            f"{class_name(type(above))} goes through the children of {place!r} one by one, "
                            "and would meet the new one",
                            found=stopped.found,
                            write=stopped.write
                            if stopped.write.startswith("model.")
                            else f'a target outside of it, or one of its children: "{place}.0"',
                        ) from stopped
                    self._written(owner)

    def exchange(self, path: str, new: nn.Module) -> None:
        """Put another module in the place of one, under each of its names."""
        super().exchange(path, new)
        self._values.clear()

    def rerun(self) -> None:
        """Forget what runs told; the next one is of the model as edited so far."""
        self._values.clear()
        self.runs = Runs(self.runnable, self.example, edited=True)

    # Inside ------------------------------------------------------------------------------

    def _compare(self, module: nn.Module, path: str, traced: Traced) -> bool:
        """Compare the graph of a forward with the forward, those that are alike once.

        Returns:
            False if no run tells what it gets.

        Raises:
            TraceError: the graph computes something else.
        """
        own = own_forward(module)
        if isinstance(module, fx.GraphModule) and not isinstance(module, Level):
            return True  # its graph is its forward
        if getattr(own, "__func__", own) is nn.Sequential.forward:
            return True
        if traced.alike not in self._compared:
            if not check_level(module, path, traced, self.runs.known(training=False), self._known_run):
                return False
            self._compared.add(traced.alike)
        return True

    def _known_run(self) -> Run | None:
        try:
            return self.runs.run(training=False)
        except AnalysisError:
            return None

    def _traced_of(self, module: nn.Module, path: str, *, run: bool = True) -> Traced:
        if isinstance(module, fx.GraphModule) and not isinstance(module, Level):
            return traced_of(module)
        return self._follow(module, path, run=run)

    def _follow(self, module: nn.Module, path: str, *, run: bool) -> Traced:
        known = self._traced.get(id(module))
        if known is None:
            try:
                hints = self._passed(module, path)
                signature = self._alike.signature(module, hints) if path else None
                known = self._alike.get(signature)
                if known is None:
                    given = functools.partial(self.runs.arguments, module) if run else _know_nothing
                    may = self.runs.gives_none if run else _may_give_none
                    known = trace_level(module, path, given, hints, hidden_in(module), may)
                    self._alike.keep(signature, known)
            except TraceError as error:
                if not run:
                    raise
                known = error
            self._traced[id(module)] = known
        if isinstance(known, TraceError):
            raise known
        return known

    def _passed(self, module: nn.Module, path: str) -> dict[str, object]:
        """Tell what callers pass for parameters that have defaults; data is unknown."""
        forward = own_forward(module)
        if not path:
            return dict(hints_of(forward, *arguments_of(self.example))) if self.example is not None else {}
        parameters = inspect.signature(forward).parameters.values()
        if all(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):
            return {}
        try:
            call = self.calls(path)[0].node  # for the others it is followed again when they come
        except (TargetError, TraceError):
            return {}
        args = [UNKNOWN if holds_node(a) else a for a in call.args]
        return dict(
            hints_of(forward, args, {n: UNKNOWN if holds_node(a) else a for n, a in call.kwargs.items()})
        )

    def _calls_in(self, owner: str, module: nn.Module) -> list[Call]:
        index = self._index.get(owner)
        if index is None:
            graphs = self.graphs(owner)  # where this fails, nothing is known
            index = self._index[owner] = {}
            for graph in graphs:
                for node in graph.nodes:
                    if node.op == "call_module":
                        index.setdefault(str(node.target), []).append(Call(owner, graph, node))
        names = {name[len(owner) :].lstrip(".") for name in self.names(module) if _inside(name, owner)}
        return [call for name in names for call in index.get(name, [])]

    def _used(self, path: str) -> list[tuple[str, str]]:
        """Return what forwards call and read of what stands in a module, by operation and path."""
        found: list[tuple[str, str]] = []
        owner = path
        while owner:
            owner = parent_of(owner)
            prefix = f"{path[len(owner) :].lstrip('.')}."
            for graph in self.graphs(owner) if has_forward(self.get(owner)) else ():
                nodes = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
                below = [node for node in nodes if str(node.target).startswith(prefix)]
                found += [(node.op, join_path(owner, str(node.target))) for node in below]
        return found

    def runnable(self) -> nn.Module:
        """Bring generated code up to date, for a run in the middle of the editing."""
        self._compile()
        return self.root

    def _compile(self) -> None:
        for module in self.root.modules():
            if runs_graph(module):
                first = state_of(module).patterns[0]
                first.settings = renew_children(module, first.settings)
        for level in self._dirty.values():
            start_graph(level)


def _know_nothing(_: bool) -> None:
    return None


def _may_give_none(module: nn.Module) -> bool:
    return not gives_tensors(module)


def _inside(name: str, owner: str) -> bool:
    return not owner or name.startswith(owner + ".")

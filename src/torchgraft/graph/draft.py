"""The one mutable thing: a private clone of a model that transforms edit and that is then sealed."""

from __future__ import annotations

import inspect

import attrs
from torch import fx, nn

from torchgraft.errors import AnalysisError, TargetError, TraceError
from torchgraft.graph.alike import Alike
from torchgraft.graph.clone import Cloner
from torchgraft.graph.evaluate import node_value
from torchgraft.graph.kinds import has_forward, is_unit
from torchgraft.graph.level import Level, make_level, traced_of
from torchgraft.graph.nodes import all_names
from torchgraft.graph.probe import Example, arguments_of, on_meta
from torchgraft.graph.proxy import UNKNOWN, holds_node
from torchgraft.graph.run import ModuleCall
from torchgraft.graph.runs import Runs
from torchgraft.graph.sealing import check_names, check_runs
from torchgraft.graph.trace import Traced, trace_level
from torchgraft.graph.tree import Tree
from torchgraft.text import class_name

EXAMPLE = "_torchgraft_example"


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
        self._dirty: dict[int, Level] = {}
        self._stale: dict[int, Level] = {}
        self._index: dict[str, dict[str, list[Call]]] = {}

    # Looking -----------------------------------------------------------------------------

    def graphs(self, path: str) -> tuple[fx.Graph, ...]:
        """Return the graphs of a module's forward without opening it.

        Raises:
            TraceError: the forward cannot be followed.
        """
        module = self.get(path)
        if isinstance(module, Level):
            return module.graphs
        traced = traced_of(module) if isinstance(module, fx.GraphModule) else self._follow(module, path)
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
                owner = owner.rpartition(".")[0]
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
        raise TargetError(
            f"no forward calls {path!r} ({type(module).__name__})",
            found=f"{class_name(type(self.get(unit)))} at {unit!r} uses its parameters directly"
            if unit
            else "its parent uses its parameters or its children directly",
            write=f"a target outside of it: at(...) - {class_name(type(self.get(unit)))}"
            if unit
            else f"a target that is called{self._called_near(path)}",
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

    def value(self, owner: str, node: fx.Node, *, resized: bool = False) -> object:
        """Compute the value of a node on meta tensors, from what its level got.

        Args:
            owner: path of the level.
            node: the node.
            resized: for a larger input than the usual one.

        Raises:
            AnalysisError: the model does not run on meta tensors, or never calls the level.
        """
        calls = self.runs.resized().of(self.get(owner)) if resized else self.record(owner)
        if not calls:
            raise AnalysisError(f"no run of the model calls {owner!r}", found="shapes there are unknown")
        while self._stale:  # a node may call a level that was edited since
            self._stale.popitem()[1].recompile()
        return node_value(node, calls[0], self.get(owner))

    # Editing -----------------------------------------------------------------------------

    def open(self, path: str) -> Level:
        """Turn the module at a path into a level, so that its forward can be edited.

        Raises:
            TraceError: its forward cannot be followed.
        """
        module = self.get(path)
        if isinstance(module, Level):
            self.before.setdefault(path, all_names(module.graphs, path))
            self._dirty[id(module)] = self._stale[id(module)] = module
            return module
        foreign = isinstance(module, fx.GraphModule)
        traced = traced_of(module) if isinstance(module, fx.GraphModule) else self._follow(module, path)
        level = make_level(module, traced, path)
        self.before.setdefault(path, all_names(level.graphs, path))
        if foreign:
            self.changed()
        self._dirty[id(level)] = self._stale[id(level)] = level
        self.opened.append(path)
        return level

    def changed(self) -> None:
        """Forget where modules are called; to be said when calls came or went."""
        self._index.clear()
        self.runs.renew()

    # Sealing -----------------------------------------------------------------------------

    def seal(self) -> nn.Module:
        """Open the root, generate the code of what was edited, check, and hand the model over.

        Raises:
            ShapeError: the edited model does not run on the input that the original took.
        """
        try:
            self.open("")
        except TraceError as error:
            self.unfollowed = error
        self.order()
        for level in self._dirty.values():
            check_names(level)
        self._compile()
        if self.reshaped:
            check_runs(self.root, self._source, self.example, self.steps)
        if self.example is not None:
            vars(self.root)[EXAMPLE] = on_meta(self.example)
        return self.root

    def rerun(self) -> None:
        """Forget what runs told; the next one is of the model as edited so far."""
        self.runs = Runs(self.runnable, self.example)

    # Inside ------------------------------------------------------------------------------

    def _follow(self, module: nn.Module, path: str) -> Traced:
        known = self._traced.get(id(module))
        if known is None:
            try:
                hints = self._passed(module, path)
                signature = self._alike.signature(module, hints) if path else None
                known = self._alike.get(signature)
                if known is None:
                    known = trace_level(module, path, lambda mode: self.runs.arguments(module, mode), hints)
                    self._alike.keep(signature, known)
            except TraceError as error:
                known = error
            self._traced[id(module)] = known
        if isinstance(known, TraceError):
            raise known
        return known

    def _passed(self, module: nn.Module, path: str) -> dict[str, object]:
        """Tell what callers pass for parameters that have defaults; data is unknown."""
        signature = inspect.signature(module.forward)
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        optional = [
            p.name for p in signature.parameters.values() if p.default is not p.empty or p.kind in kinds
        ]
        if not optional:
            return {}
        if not path:
            given = arguments_of(self.example) if self.example is not None else ((), {})
            return dict(signature.bind_partial(*given[0], **given[1]).arguments)
        try:
            calls = self.calls(path)
        except (TargetError, TraceError):
            return {}
        found = [signature.bind_partial(*call.node.args, **call.node.kwargs).arguments for call in calls]
        passed = [{n: UNKNOWN if holds_node(v) else v for n, v in one.items()} for one in found]
        for name in optional:
            if len({repr(one.get(name)) for one in passed}) > 1:
                raise TraceError(
                    f"{path!r} is called with different settings for {name!r}, and its forward can be one",
                    module=path,
                    found=", ".join(sorted({repr(one.get(name)) for one in passed})),
                    write="an edit around it: inject(...) before or after",
                )
        return passed[0]

    def _calls_in(self, owner: str, module: nn.Module) -> list[Call]:
        index = self._index.get(owner)
        if index is None:
            index = self._index[owner] = {}
            for graph in self.graphs(owner):
                for node in graph.nodes:
                    if node.op == "call_module":
                        index.setdefault(str(node.target), []).append(Call(owner, graph, node))
        names = {name[len(owner) :].lstrip(".") for name in self.names(module) if _inside(name, owner)}
        return [call for name in names for call in index.get(name, [])]

    def _called_near(self, path: str) -> str:
        names = [name for name, _ in self.get(path).named_children()]
        near = f"{path}.{names[-1]}" if names else path.rpartition(".")[0]
        return f': "{near}"' if near else ""

    def runnable(self) -> nn.Module:
        """Bring generated code up to date, for a run in the middle of the editing."""
        self._compile()
        return self.root

    def _compile(self) -> None:
        for level in self._dirty.values():
            level.recompile()


def _inside(name: str, owner: str) -> bool:
    return not owner or name.startswith(owner + ".")

"""The one mutable thing: a private clone of a model that transforms edit and that is then sealed."""

from __future__ import annotations

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, TargetError, TraceError
from torchgraft.graph.clone import Cloner
from torchgraft.graph.evaluate import node_value
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.level import Level, as_level
from torchgraft.graph.probe import Example
from torchgraft.graph.run import ModuleCall
from torchgraft.graph.runs import Runs
from torchgraft.graph.trace import Traced, trace_level
from torchgraft.graph.tree import Tree

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
    """

    def __init__(self, model: nn.Module, example: Example | None = None) -> None:
        super().__init__(Cloner(model).module(model))
        self.example = example if example is not None else getattr(model, EXAMPLE, None)
        self.runs = Runs(self._runnable, self.example)
        self.opened: list[str] = []
        self.unfollowed: TraceError | None = None
        self.reshaped = False
        self._traced: dict[int, Traced | TraceError] = {}
        self._dirty: dict[int, Level] = {}
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
        if isinstance(module, fx.GraphModule):
            return (module.graph,)
        traced = self._follow(module, path)
        return (traced.evaluate,) if traced.train is traced.evaluate else (traced.evaluate, traced.train)

    def calls(self, path: str) -> list[Call]:
        """Find the places where a module is called, under each of its names.

        Raises:
            TargetError: no forward calls it.
            TraceError: the forward that should call it cannot be followed.
        """
        module = self.get(path)
        found: list[Call] = []
        stopped: TraceError | None = None
        for name in self.names(module) or [path]:
            owner = name
            while owner:
                owner = owner.rpartition(".")[0]
                if not has_forward(self.get(owner)):
                    continue
                try:
                    here = self._calls_in(owner, module)
                except TraceError as error:
                    stopped = stopped or error
                    break
                if here:
                    found += here
                    break
        if found:
            return found
        if stopped is not None:
            raise stopped
        raise TargetError(
            f"no forward calls {path!r} ({type(module).__name__})",
            found="its parent uses its parameters or its children directly",
            write=f"a target that is called: {self._called_near(path)}",
        )

    def record(self, path: str) -> list[ModuleCall]:
        """Return what the calls of a module got and gave, on meta tensors.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        module = self.get(path)
        known = self.runs.of(module) or self.runs.of(self.origin(module))
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
        return node_value(node, calls[0], self.get(owner))

    # Editing -----------------------------------------------------------------------------

    def open(self, path: str) -> Level:
        """Turn the module at a path into a level, so that its forward can be edited.

        Raises:
            TraceError: its forward cannot be followed.
        """
        module = self.get(path)
        if isinstance(module, Level):
            self._dirty[id(module)] = module
            return module
        if isinstance(module, fx.GraphModule):
            level = as_level(module)
            self.changed()
        else:
            level = Level(module, self._follow(module, path))
        self._dirty[id(level)] = level
        self.opened.append(path)
        self.swap(module, level)
        return level

    def changed(self) -> None:
        """Forget where modules are called; to be said when calls came or went."""
        self._index.clear()

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
        self._compile()
        if self.example is not None:
            vars(self.root)[EXAMPLE] = _meta_example(self.example)
        return self.root

    def rerun(self) -> None:
        """Forget what runs told; the next one is of the model as edited so far."""
        self.runs = Runs(self._runnable, self.example)

    # Inside ------------------------------------------------------------------------------

    def _follow(self, module: nn.Module, path: str) -> Traced:
        known = self._traced.get(id(module))
        if known is None:
            try:
                known = trace_level(module, path, lambda training: self.runs.arguments(module, training))
            except TraceError as error:
                known = error
            self._traced[id(module)] = known
        if isinstance(known, TraceError):
            raise known
        return known

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
        children = [name for name, _ in self.get(path).named_children()]
        if children:
            return f"{path}.{children[-1]}"
        return path.rpartition(".")[0] or "the root"

    def _runnable(self) -> nn.Module:
        """Bring generated code up to date, for a run in the middle of the editing."""
        self._compile()
        return self.root

    def _compile(self) -> None:
        for level in self._dirty.values():
            level.recompile()


def _inside(name: str, owner: str) -> bool:
    return not owner or name.startswith(owner + ".")


def _meta_example(example: Example) -> Example:
    if isinstance(example, torch.Tensor):
        return torch.empty_like(example, device="meta")
    return example

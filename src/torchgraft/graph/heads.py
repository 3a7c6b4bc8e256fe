"""Find the heads of a model: the projections that every way to an output runs through last."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import attrs
from torch import fx, nn

from torchgraft.errors import AnalysisError, HeadError, TraceError
from torchgraft.graph.deep.record import Op, Record, Scope
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import has_forward, is_container
from torchgraft.graph.tiers.trunk import ACTIVATIONS, MIXING
from torchgraft.paths import join_path
from torchgraft.text import class_name, literal


class NoHead(nn.Identity):
    """Stand where a head was dropped, so that a new one can be put there.

    Args:
        width: number of features the head took.
        axes: number of axes of its weight: 2 for a linear layer, more for a convolution.
        bias: whether it had a bias.
    """

    def __init__(self, width: int, axes: int, *, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.axes = axes
        self.bias = bias

    def extra_repr(self) -> str:
        """Say what was there."""
        return f"{self.width} features"


@attrs.frozen(eq=False)
class Head:
    """A projection to classes.

    Args:
        path: where it stands.
        module: the projection, a linear layer or a convolution, or what stands for a dropped one.
        behind: the operations between it and the output, each with the path of the module that runs it.
        each: number of outputs for each class: 4 where it gives boxes.
    """

    path: str
    module: nn.Linear | nn.modules.conv._ConvNd | NoHead
    behind: tuple[tuple[str, Op], ...] = ()
    each: int = 1

    def counts(self, draft: Draft) -> Iterator[str]:
        """Yield the places behind it that are told a number like that of the classes."""
        for path, op in self.behind if self.classes > 1 else ():
            # What flattens has its sizes from what it takes.
            if self.classes in _numbers(op.args) and not isinstance(draft.get(path), nn.Flatten):
                yield join_path(path, op.name)

    def meets(self, other: Head) -> bool:
        """Return True if an operation behind it takes the values of another head too."""
        mine = {id(op) for _, op in self.behind}
        return any(id(op) in mine for _, op in other.behind)

    @property
    def classes(self) -> int:
        """Number of outputs; 0 for a dropped head."""
        if isinstance(self.module, NoHead):
            return 0
        held = self.module
        return (held.out_features if isinstance(held, nn.Linear) else held.out_channels) // self.each

    @property
    def width(self) -> int:
        """Number of inputs."""
        if isinstance(self.module, NoHead):
            return self.module.width
        return self.module.in_features if isinstance(self.module, nn.Linear) else self.module.in_channels

    @property
    def axes(self) -> int:
        """Number of axes of the weight: 2 for a linear layer, more for a convolution."""
        return self.module.axes if isinstance(self.module, NoHead) else self.module.weight.ndim

    @property
    def bias(self) -> bool:
        """Whether it adds a bias."""
        held = self.module.bias
        return held if isinstance(held, bool) else held is not None


def find_heads(draft: Draft) -> list[Head]:
    """Find the heads, those of training mode included, in a run on meta tensors where one is needed.

    Raises:
        HeadError: the last layers with weights are no projections, follow each other, or
            have different numbers of classes.
        AnalysisError: the model does not run on meta tensors.
    """
    if (last := _last_in_row(draft, _ENDS)) is not None:
        return [last]
    try:
        ways = [_Ways(draft, draft.runs.deep())]
    except AnalysisError:
        if (last := _last_in_row(draft, (nn.Module,))) is not None:
            return [last]
        raise
    if ways[0].has_other_mode():
        ways.append(_Ways(draft, draft.runs.deep(training=True)))
    found: dict[str, Head] = {}
    for head in itertools.chain.from_iterable(way.heads() for way in ways):
        known = found.setdefault(head.path, head)
        found[head.path] = attrs.evolve(known, behind=(*known.behind, *head.behind))
    heads = [found[path] for path in sorted(found)]
    blocked = {place for way in ways for place in way.blocked}
    write = _exchange(heads[-1]) if heads else "nn.Sequential(model, <a head>)"
    if not heads or blocked:
        raise HeadError(
            "no classifier: the last layers with weights before the output are no projections to classes",
            found=", ".join(sorted({*blocked, *found})[:6]),
            write=write,
        )
    if chained := {path for way in ways for path in way.chained}:
        raise HeadError(
            "the layers before the output follow each other, so none of them is the classifier",
            found=", ".join(sorted(chained)[:6]),
            write=write,
        )
    if len({head.classes for head in heads}) > 1:
        raise HeadError(
            "the model has heads of different kinds",
            found=", ".join(f"{head.path} ({head.classes})" for head in heads),
            write=_exchange(max(heads, key=lambda head: head.classes)),
        )
    return heads


_ENDS = (nn.modules.dropout._DropoutNd, nn.Identity)
"""Layers behind a projection that leave no doubt that it is the head."""


def _last_in_row(draft: Draft, passed: tuple[type[nn.Module], ...]) -> Head | None:
    """Return the projection that the output comes from in a plain row, which needs no run to be found.

    Args:
        draft: the draft.
        passed: layers without weights that may stand behind it; functions may, where every layer may.
    """
    free = nn.Module in passed
    path, node = "", _returned(draft, "", run=free)
    while isinstance(node, fx.Node):
        if node.op == "call_module":
            inner = join_path(path, str(node.target))
            module = draft.get(inner)
            if is_projection(module):
                return Head(inner, module)  # type: ignore[arg-type]  # a projection
            if module._modules or any(True for _ in module.parameters()):
                path, node = inner, _returned(draft, inner, run=free)
                continue
            if not isinstance(module, passed):
                return None
        elif not free:
            return None
        node = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
    return None


def _returned(draft: Draft, path: str, *, run: bool) -> object:
    """Return the node that a forward returns, where it has one graph."""
    if not has_forward(draft.get(path)) or not is_container(draft.get(path)):
        return None
    try:
        (graph,) = draft.graphs(path, run=run)
    except (TraceError, ValueError):
        return None
    return graph.output_node().args[0]


def _exchange(head: Head) -> str:
    """Write the line that exchanges a single layer."""
    kind = class_name(type(head.module))
    new = "nn.Linear(old.in_features, 10)" if head.axes == 2 else f"{kind}(old.in_channels, 10, 1)"
    return f'replace("{head.path}", lambda old: {new}, keep_shape=False)'


COUNTS = ("num_classes", "num_labels", "num_columns")
"""Attributes in which modules declare a number of classes."""


class _Ways:
    """The ways through a recorded run, from the input over the heads to the outputs.

    Args:
        draft: the draft that was run.
        record: the run.
    """

    def __init__(self, draft: Draft, record: Record) -> None:
        self._record = record
        self._modules = {path: draft.get(path) for path in {scope.path for scope in record.scopes}}
        self._root = draft.root
        self._made: dict[int, Op] = {}
        self._live = set(record.inputs)
        self._weights = {value for value, key in record.given.items() if self._is_parameter(key)}
        for op in record.ops:
            live = not self._live.isdisjoint(op.inputs)
            if live or not self._weights.isdisjoint(op.inputs):
                (self._live if live else self._weights).update(op.outputs)
            for value in op.outputs:
                self._made.setdefault(value, op)
        dropped = [scope for scope in record.scopes if issubclass(scope.cls, NoHead)]
        self._dropped = {value: scope.path for scope in dropped for _, value in scope.outputs}
        self._taken: dict[str, set[int]] = {}
        self._reached: set[int] = set()
        self.blocked: set[str] = set()
        self.chained: set[str] = set()

    def has_other_mode(self) -> bool:
        """Return True if a forward reads its mode, and a projection has no part in this one."""
        if not any(is_container(self._modules[path]) for path in self._record.modal):
            return False
        read = set(self._record.given.values())
        return any(
            is_projection(module) and f"{path}.weight" not in read
            for path, module in self._root.named_modules()
        )

    def heads(self) -> Iterator[Head]:
        """Yield the heads; note what stands in their place, and those that others are made from."""
        starts = set(self._record.outputs) - set(self._record.inputs)
        self._walk(starts)
        features = set().union(*map(self._before, self._taken.values())) - set(self._dropped)
        beside = not features.isdisjoint(starts)
        if beside:  # returned beside what the classifier makes of them
            self._walk(starts - features)
        before = {path: self._before(taken) for path, taken in self._taken.items()}
        if any(not made.isdisjoint(self._reached) for made in before.values()) or not before:
            self.blocked.update(["the input"] if self._reached else [])
        for path in before:
            given = {value for scope in self._scopes(path) for _, value in scope.outputs}
            after = [other for other in before if other != path and not given.isdisjoint(before[other])]
            if after and not issubclass(self._scopes(path)[0].cls, NoHead):
                self.chained.update((path, *after))
            behind = tuple(self._behind(path, given))
            if beside and any(op.name.rstrip("_") in (*_BETWEEN_LAYERS, "tanh") for _, op in behind):
                self.blocked.add(path)
            yield Head(path, self._modules[path], behind)  # type: ignore[arg-type]  # projections

    def _walk(self, starts: Iterable[int]) -> None:
        """Walk back from outputs to the last layers with weights."""
        self._taken, self._reached = {}, set()
        self.blocked.clear()
        images = {tuple(self._record.shapes[value][2:]) for value in self._record.inputs}
        for start in starts:
            shape = self._record.shapes[start]
            dense = len(shape) == 4 and tuple(shape[2:]) in images
            seen: set[int] = set()
            waiting = [start]
            while waiting:
                value = waiting.pop()
                if value in seen or value not in self._live:
                    continue
                seen.add(value)
                if value in self._dropped:
                    self._taken.setdefault(self._dropped[value], set()).add(value)
                elif value in self._record.inputs:
                    self._reached.add(value)
                else:
                    op = self._made[value]
                    dense = dense and op.name.rstrip("_") not in _BETWEEN_LAYERS
                    waiting += self._step(op, dense=dense)

    def _step(self, op: Op, *, dense: bool) -> tuple[int, ...]:
        """Return the values to go on with behind an operation."""
        scope = self._record.scopes[op.scope]
        module = self._modules[scope.path]
        if is_projection(module) or (dense and _is_dense(module)):
            self._taken.setdefault(scope.path, set()).update(scope.inputs)
            return ()
        if self._weights.isdisjoint(op.inputs):
            return op.inputs
        if not is_container(module):
            self.blocked.add(f"{scope.path} ({literal(type(module))})")
            return ()
        if op.name in MIXING:
            self.blocked.add(f"{scope.path}.{op.name} (a function)".lstrip("."))
            return ()
        return op.inputs

    def _before(self, values: Iterable[int]) -> set[int]:
        """Return some values and all that they are made from."""
        found: set[int] = set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if value not in found:
                found.add(value)
                waiting += self._made[value].inputs if value in self._made else ()
        return found

    def _behind(self, path: str, given: set[int]) -> Iterator[tuple[str, Op]]:
        """Yield the operations on what a head gives."""
        made = set(given)
        for op in self._record.ops[min(scope.end for scope in self._scopes(path)) :]:
            if not made.isdisjoint(op.inputs):
                made.update(op.outputs)
                yield self._record.scopes[op.scope].path, op

    def _scopes(self, path: str) -> list[Scope]:
        return [scope for scope in self._record.scopes if scope.path == path]

    def _is_parameter(self, key: str) -> bool:
        owner, _, name = key.rpartition(".")
        held = self._modules.get(owner)
        return held is not None and held._parameters.get(name) is not None


_BETWEEN_LAYERS = ACTIVATIONS - {"sigmoid", "tanh", "hardsigmoid", "softplus", "clamp"}
"""Activations that stand between layers: what they follow gives no maps of classes."""


def _numbers(value: object) -> list[int]:
    if isinstance(value, (tuple, list)):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def is_projection(module: nn.Module) -> bool:
    """Return True if a module maps features to outputs without looking at neighbours."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, (nn.Linear, NoHead))


def _is_dense(module: nn.Module) -> bool:
    """Return True if a module can give maps of classes as large as the image."""
    return isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.groups == 1

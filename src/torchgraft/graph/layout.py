"""Infer which axis of a value holds the channels.

Where convolutions and normalisations fix it, and elementwise operations alone follow, the graph
tells, and that costs no run. Anything else is read off the axes of the values in a recorded run.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from torchgraft.errors import AnalysisError, GraftError, LayoutError, TraceError
from torchgraft.graph.deep.atoms import BATCH, CHANNEL, Axes, size
from torchgraft.graph.deep.axes import Layout, follow, layout_of
from torchgraft.graph.deep.record import Ops, Record, Scopes
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout_rules import (
    ELEMENTWISE,
    POOLING,
    POOLS,
    SAME,
    Fact,
    ancestral,
    given,
    operation,
    taken,
)
from torchgraft.graph.proxy import tensors_in
from torchgraft.spec import TensorSpec, layout_name

_DEPTH = 400


def spec_of(
    draft: Draft, owner: str, node: fx.Node, *, needs_rank: bool = False, mixes: bool = False
) -> TensorSpec:
    """Describe the value of a node.

    Args:
        draft: the draft.
        owner: path of the level with the node.
        node: the node.
        needs_rank: also find out the number of axes, which may need a run on meta tensors.
        mixes: what it is for mixes places of a sample, so the first axis has to count samples.

    Returns:
        What is known of the value.

    Raises:
        LayoutError: nothing on the way tells where the channels are, or the batch is not first.
    """
    fact = _find(draft, owner, node)
    while fact is None and node.op == "call_module" and draft.is_added(f"{owner}.{node.target}".lstrip(".")):
        node = node.all_input_nodes[-1]  # a block keeps the layout of what it takes
        fact = _find(draft, owner, node)
    rank = fact.rank if fact is not None else None
    if fact is None or (needs_rank and rank is None):
        rank = len(value_shape(draft, owner, node))
    if mixes and (fact is None or not (fact.sure and fact.axis == 1)):
        _check_batch(draft, owner, node)
    if fact is None:
        raise LayoutError(
            f"the axis of the channels of {node.name!r} in {owner or 'the root'} cannot be told",
            found=f"a value with {rank} axes, and no layer near it that fixes a layout",
            write="edit(<function of the draft>, name=...)",
        )
    told_by = fact.told_by if fact.told_by is not None else next(draft.root.parameters(), None)
    return TensorSpec(
        fact.channels,
        fact.axis,
        rank if needs_rank else None,
        told_by.dtype if told_by is not None else torch.get_default_dtype(),
        told_by.device if told_by is not None else torch.device("cpu"),
    )


def _check_batch(draft: Draft, owner: str, node: fx.Node) -> None:
    """Refuse a value whose first axis is not the batch: a block would mix its samples.

    Raises:
        LayoutError: the batch is another axis.
    """
    try:
        axes = axes_of(draft, owner, node) or ()
    except Exception:  # noqa: BLE001 - a part may fail on meta tensors in any way
        return
    if is_batch_behind(axes):
        raise LayoutError(
            f"the first axis of {node.name!r} in {owner or 'the root'} is not the batch",
            found=" ".join("n" if any(a.kind == BATCH for a in axis) else str(size(axis)) for axis in axes),
            write="a target outside, where the batch comes first; or layers made with batch_first=True",
        )


def is_batch_behind(axes: Axes) -> bool:
    """Return True if samples are counted by an axis that is not the first."""
    places = [i for i, axis in enumerate(axes) if any(atom.kind == BATCH for atom in axis)]
    return bool(places) and 0 not in places


def layout_at(draft: Draft, path: str) -> Layout | None:
    """Return the layout of what the first call of a module gives; ``None`` if nothing tells."""
    rank = 0
    try:
        record, axes = draft.runs.axes()
    except AnalysisError:
        pass
    else:
        names = draft.names(draft.get(path))
        given_out = next((scope.outputs for scope in record.scopes if scope.path in names), None)
        if given_out is not None:
            if [way for way, _ in given_out] != [()]:
                return None
            value = given_out[0][1]
            rank = len(record.shapes[value])
            told = layout_of(axes[value]) if value in axes else None
            if told is not None or rank < 2 or is_batch_behind(axes.get(value, ())):
                return told
    try:
        call = draft.calls(path)[0]
        fact = _find(draft, call.owner, call.node)
        rank = (
            rank
            or (fact.rank if fact is not None else None)
            or len(value_shape(draft, call.owner, call.node))
        )
    except GraftError:  # a forward that cannot be followed; its layers still say what they give
        fact = given(draft.get(path))
        rank = rank or (fact.rank if fact is not None else None) or 0
    axis = fact.axis if fact is not None else 1 if rank == 2 else 0
    name = layout_name(rank, axis) if axis else None
    channels = fact.channels if fact is not None else record.shapes[value][1]
    return Layout(name, channels) if name else None


def _find(draft: Draft, owner: str, node: fx.Node) -> Fact | None:
    near = Search(draft).find(owner, node)
    return near if near is not None and near.sure else _by_axes(draft, owner, node) or near


def value_shape(draft: Draft, owner: str, node: fx.Node) -> torch.Size:
    """Return the shape of a node's value, by a run of its level on meta tensors.

    Raises:
        AnalysisError: the value is no tensor, or the level does not run.
    """
    try:
        value = draft.value(owner, node)
    except GraftError:
        raise
    except Exception as error:
        raise AnalysisError(
            f"{node.name!r} in {owner or 'the root'} does not run", found=str(error)
        ) from error
    if not isinstance(value, torch.Tensor):
        raise AnalysisError(
            f"{node.name!r} in {owner or 'the root'} is not a tensor", found=f"a {type(value).__name__}"
        )
    return value.shape


def axes_of(draft: Draft, owner: str, node: fx.Node) -> Axes | None:
    """Return the axes of a node's value; ``None`` where it does not come from the input.

    Raises:
        AnalysisError: the model does not run on meta tensors.
    """
    record, known = draft.runs.axes()
    names = draft.names(draft.get(f"{owner}.{node.target}".lstrip("."))) if node.op == "call_module" else []
    calls = [scope for scope in record.scopes if scope.path in names]
    if len(calls) == 1 and [way for way, _ in calls[0].outputs] == [()]:
        return known.get(calls[0].outputs[0][1])
    # Other values are computed once more, from what their level was given.
    level = next((scope for scope in record.scopes if scope.path in draft.names(draft.get(owner))), None)
    passed = draft.record(owner)
    if level is None or not passed:
        return None
    scopes = Scopes(training=False)
    values = scopes.values
    numbers = [values.now(tensor) for tensor in tensors_in((passed[0].args, passed[0].kwargs))]
    held = {n: known[v] for n, v in zip(numbers, level.inputs, strict=False) if v in known}
    with Ops(scopes):
        value = draft.value(owner, node, again=True)
    if not isinstance(value, torch.Tensor):
        return None
    again = Record(tuple(values.shapes), tuple(values.ops), (), {}, tuple(numbers), ())
    return follow(again, held, [known[v] for v in record.inputs if v in known]).get(values.now(value))


def _by_axes(draft: Draft, owner: str, node: fx.Node) -> Fact | None:
    """Take the one axis that counts channels."""
    try:
        axes = axes_of(draft, owner, node) or ()
    except Exception:  # noqa: BLE001 - a part may fail on meta tensors in any way
        return None
    layout = layout_of(axes)
    if layout is not None:
        found = [layout.name.index("C")]
    else:
        found = [i for i, axis in enumerate(axes) if i and axis and all(a.kind == CHANNEL for a in axis)]
    if len(found) != 1:
        return None
    (axis,), last = found, len(axes) - 1
    told_by = next(draft.get(owner).parameters(), None)
    return Fact(size(axes[axis]), -1 if axis == last > 1 else axis, told_by, rank=len(axes))


class Search:
    """Look for what fixes the layout of values; every answer is found once."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: dict[tuple[str, fx.Node], Fact | None] = {}

    def find(self, owner: str, node: fx.Node) -> Fact | None:
        """Look back from a node, then ahead to what takes it."""
        fact = self.back(owner, node, 0)
        return fact if fact is not None and fact.sure else self.ahead(owner, node, 0) or fact

    def back(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow a value back to a layer that fixes its layout."""
        if (owner, node) in self._known or depth > _DEPTH:
            return self._known.get((owner, node))
        self._known[owner, node] = None  # a value that is asked for while it is looked up tells nothing
        fact: Fact | None = None
        if node.op == "call_module":
            fact = self._module(owner, node, depth)
        elif node.op in ("call_function", "call_method"):
            name = operation(node)
            fact = self._any(owner, node, depth) if name in ELEMENTWISE | POOLING else None
            if name in POOLING and fact is not None and fact.axis != 1:
                fact = None
        self._known[owner, node] = fact
        return fact

    def ahead(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Read the layout off a consumer that fixes what it takes."""
        for user in node.users:
            if user.op != "call_module" or not user.args or user.args[0] is not node:
                continue
            module = self._draft.get(f"{owner}.{user.target}".lstrip("."))
            fact = taken(module)
            if fact is not None:
                return fact
            if isinstance(module, SAME) and depth < _DEPTH:
                fact = self.ahead(owner, user, depth + 1)
                if fact is not None:
                    return fact
        return None

    def _any(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        """Follow the arguments until one of them tells; what has one channel may be spread over many."""
        single, unknown = None, False
        # What came from outside the level leads far away: it is asked last.
        for source in sorted(node.all_input_nodes, key=lambda n: n.op == "placeholder"):
            fact = self.back(owner, source, depth + 1)
            if fact is not None and fact.channels > 1:
                return fact
            single, unknown = single or fact, unknown or fact is None
        return None if unknown else single

    def _module(self, owner: str, node: fx.Node, depth: int) -> Fact | None:
        path = f"{owner}.{node.target}".lstrip(".")
        module = self._draft.get(path)
        fact = given(module)
        if fact is not None:
            return fact
        if isinstance(module, SAME + POOLS):
            fact = self._any(owner, node, depth)
            return fact if fact is not None and (fact.axis == 1 or isinstance(module, SAME)) else None
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.Sequential):
            return None
        try:
            graph = self._draft.graphs(path)[0]
        except TraceError:
            return ancestral(module)
        (result,) = next(n for n in graph.nodes if n.op == "output").args
        return self.back(path, result, depth + 1) if isinstance(result, fx.Node) else None

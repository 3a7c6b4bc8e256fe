"""Bind the nodes of a level to the operations of a recorded run, by running its graph again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from torchgraft.errors import TraceError
from torchgraft.graph.deep.record import Op, Ops, Record, Scopes, ways
from torchgraft.graph.draft import Draft
from torchgraft.graph.evaluate import evaluate
from torchgraft.graph.proxy import tensors_in, to_meta


def own_ops(ops: Sequence[Op]) -> list[Op]:
    """Return the operations that are a forward's own: tensors of the model are made on the way, by others."""
    return [op for op in ops if op.func is not None and op.name not in ("empty_strided", "detach")]


def bind_nodes(
    draft: Draft, path: str, graph: fx.Graph, record: Record, *, training: bool
) -> Iterator[tuple[fx.Node, dict[int, Op], list[int]]]:
    """Run a graph once more to see which operations of a recorded run its nodes are.

    Yields:
        Nodes that call functions, the operations of each by their number in the level, and the
        values of the nodes that it takes; -1 for what is no tensor.

    Raises:
        TraceError: the graph runs other operations than the forward did.
    """
    level: Any = draft.get(path)
    scopes = [(scope, i) for i, scope in enumerate(record.scopes) if scope.number >= 0]
    calls = list(zip(scopes, sorted(record.calls, key=lambda call: call.started), strict=True))
    (scope, at), call = next(item for item in calls if item[1].module is level)
    own = own_ops([op for op in record.ops[scope.start : scope.end] if op.scope == at])
    waiting = list(enumerate(own))[::-1]
    taken: Any = to_meta((call.args, call.kwargs))
    values = {id(tensor): v for tensor, v in zip(tensors_in(taken), scope.inputs, strict=True)}
    given = inspect.signature(level.forward).bind(*taken[0], **taken[1]).arguments
    results: dict[fx.Node, Any] = {}
    children = [item for item in calls if call.started < item[1].started and item[1].ended < call.ended]
    again = Scopes(training)
    recorded = again.values
    for node in graph.nodes:
        inputs = [values.get(id(results[source]), -1) for source in node.all_input_nodes]
        begun = len(recorded.ops)
        if node.op == "output":
            return
        if node.op == "placeholder":
            results[node] = given.get(str(node.target).lstrip("*"), *node.args[:1] or (None,))
        elif node.op == "get_attr":
            results[node] = to_meta(functools.reduce(getattr, str(node.target).split("."), level))
        elif node.op == "call_module":
            child = level.get_submodule(str(node.target))
            (inner, _), made = next(item for item in children if item[1].module is child)
            children.remove(((inner, _), made))
            results[node] = made.output
            values.update((id(t), v) for (_, t), (_, v) in zip(ways(made.output), inner.outputs, strict=True))
        else:
            with Ops(again):
                results[node] = evaluate(node, results, level, training=training)
        own = own_ops(recorded.ops[begun:])
        ops = dict(waiting.pop() for _ in own if waiting)
        if [op.func for op in own] != [op.func for op in ops.values()]:
            raise TraceError(
                f"the graph of {path or 'the root'} runs other operations than its forward did",
                found=f"{node.name}: {', '.join(op.name for op in own)}",
                write="an edit at a place outside this forward",
            )
        if ops:
            outputs = list(ops.values())[-1].outputs
            values.update((id(t), v) for t, v in zip(tensors_in(results[node]), outputs, strict=False))
            yield node, ops, inputs

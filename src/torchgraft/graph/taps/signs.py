"""What the layers around a value tell of it, without a run: that it is a tensor, where its channels are."""

from __future__ import annotations

from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_unit
from torchgraft.graph.layout_rules import taken
from torchgraft.graph.nodes import canonical
from torchgraft.graph.taps.memory import FRESH, end_of, given_for
from torchgraft.paths import join_path

_SEVERAL = (nn.MultiheadAttention, nn.RNNBase, nn.modules.pooling._AdaptiveMaxPoolNd)


def axis_taken(draft: Draft, owner: str, node: fx.Node) -> int | None:
    """Return the axis of the channels by a layer that takes a value; ``None`` where none does.

    Args:
        draft: the model; it is only read.
        owner: path of the level.
        node: the node with the value.
    """
    for call in node.users:
        if call.op != "call_module" or node not in call.args:
            continue
        path = join_path(owner, str(call.target))
        module = draft.get(path)
        fact = taken(module)
        if fact is not None or type(module).__module__ == "torch.nn.modules.pooling":
            return fact.axis if fact is not None else 1
        graph = _graph(draft, path)
        for given in graph.nodes if graph is not None else ():
            if given.op == "placeholder" and node in given_for(call, given):
                axis = axis_taken(draft, path, given)
                if axis is not None:
                    return axis
    return None


def makes_tensor(draft: Draft, owner: str, node: fx.Node) -> bool:
    """Return True if the layer or operation that makes a value gives one tensor for certain."""
    while node.op == "call_module":
        owner = join_path(owner, str(node.target))
        module = draft.get(owner)
        graph = _graph(draft, owner)
        if graph is None:
            several = isinstance(module, _SEVERAL) or getattr(module, "return_indices", False)
            return is_unit(module) and not several and not isinstance(module, nn.Identity)
        result = end_of(graph).args[0]
        if not isinstance(result, fx.Node):
            return False
        node = result
    return node.op in ("call_function", "call_method") and canonical(node) in FRESH


def _graph(draft: Draft, path: str) -> fx.Graph | None:
    """Return the graph of a level; ``None`` for a layer, and where it cannot be followed."""
    if is_unit(draft.get(path)):
        return None
    try:
        return draft.graphs(path)[0]
    except TraceError:
        return None

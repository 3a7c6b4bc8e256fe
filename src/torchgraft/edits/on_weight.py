"""What is put on the weight of a layer: where the forwards read the weight and do not call the layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.lora import weight_of
from torchgraft.blocks.on_weight import adapt
from torchgraft.edits.placing import register
from torchgraft.errors import TargetError, TraceError
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.edges import after, called, insert_child, relative
from torchgraft.graph.kinds import has_forward, is_unit
from torchgraft.paths import parent_of
from torchgraft.spec import TensorSpec


def put_on_weight(draft: Draft, path: str, block: Block, name: str | None) -> bool:
    """Build a module and call it on the weight of a layer, if no forward calls the layer.

    In the layers of ``torch.nn``, which are never graphs, the weight is adapted as the layer is
    asked for it; elsewhere where a forward reads it.

    Returns:
        Whether it was put there.
    """
    layer = draft.get(path)
    weight = layer._parameters.get(weight_of(layer))
    if weight is None and isinstance(layer, nn.MultiheadAttention):
        raise TargetError(
            f"{path!r} has weights of their own for queries, keys and values of different widths",
            found="kdim or vdim",
            write=f'wrap("{path}.out_proj", {block!r})',
        )
    if weight is None:
        return False
    site = TensorSpec(
        len(weight), -1, None, weight.dtype, weight.device, layer=layer, weight=weight_of(layer)
    )
    if isinstance(layer, nn.MultiheadAttention) or is_unit(draft.get(_above(draft, path))):
        register(draft, path, block.build(site), name, block.label())
        adapt(layer)
        return True
    found = [] if called(draft, path) else list(reads(draft, layer))
    for owner in dict.fromkeys(read.owner for read in found):
        child = relative(path, owner)
        label = f"{child.replace('.', '_')}_{block.label()}"
        chosen = register(draft, owner, block.build(site), name, label, child.partition(".")[0])
        edges = [after(owner, read.graph, read.node) for read in found if read.owner == owner]
        insert_child(draft, edges, chosen)
    return bool(found)


def reads(draft: Draft, layer: nn.Module) -> Iterator[Call]:
    """Yield what reads the weight of a layer in the forwards above it, without a call of it."""
    for name in draft.names(layer):
        owner = name
        while owner:
            owner = parent_of(owner)
            if not has_forward(draft.get(owner)):
                continue
            try:
                graphs = draft.graphs(owner)
            except TraceError:
                break
            wanted = f"{relative(name, owner)}.{weight_of(layer)}"
            for graph in graphs:
                yield from (
                    Call(owner, graph, n) for n in graph.nodes if n.op == "get_attr" and n.target == wanted
                )


def _above(draft: Draft, path: str) -> str:
    """Return the path of the next module above that can be called."""
    owner = parent_of(path)
    while owner and not has_forward(draft.get(owner)):
        owner = parent_of(owner)
    return owner

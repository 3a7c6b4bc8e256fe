"""Tell whether the last layers before the head belong to it: they widen a code for the classifier.

Where blocks are linear bottlenecks, narrow between and wide inside with no activation at
their end (MobileNetV2, arXiv:1801.04381), a last convolution undoes the bottleneck: it is
part of the head. So is one that takes what several branches were summed up to. After blocks
of any other kind it extends the last stage, and so it does where it stands among the blocks
and the head has a hidden layer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchgraft.graph.tiers.trunk import ACTIVATIONS, MIXING, Trunk


def head_projection(trunk: Trunk, units: Sequence[int]) -> set[int]:
    """Find the units at the end that belong to the head.

    Args:
        trunk: the trunk.
        units: the units that give the coarsest map, in the order in which they run.

    Returns:
        Those of them that widen the map for the head; often none.
    """
    kept, layers = len(units), 0
    while kept and layers + trunk.depth(units[kept - 1]) <= 1:
        kept -= 1
        layers += trunk.depth(units[kept])
    last, trailing = units[max(kept - 1, 0) : kept], units[kept:]
    if not last or not layers:
        return set()
    before, after = trunk.maps(last[0])[-1], trunk.maps(trailing[-1])[-1]
    if after.layout.channels <= before.layout.channels:
        return set()
    among = trunk.scopes[last[0]].parent == trunk.scopes[trailing[0]].parent
    if among and _has_hidden_layer(trunk, trailing[-1]):
        return set()
    joined = before.value not in trunk.cuts
    return set(trailing) if joined or _is_linear_bottleneck(trunk, last[0]) else set()


def _has_hidden_layer(trunk: Trunk, unit: int) -> bool:
    """Tell whether more than one layer works on vectors after a unit."""
    after = trunk.ops[trunk.scopes[unit].end :]
    layers = [op for op in after if op.name in MIXING and not trunk.reaching.isdisjoint(op.outputs)]
    return len(layers) > 1


def _is_linear_bottleneck(trunk: Trunk, unit: int) -> bool:
    """Tell whether the last block of a unit starts with a layer, is wide inside and ends linearly."""
    block = unit
    while True:  # down to the block that gives the output of the unit
        inner = [child for child in trunk.children[block] if trunk.depth(child) > 1]
        value = trunk.maps(block)[-1].value
        if not inner or value not in [v for _, v in trunk.scopes[inner[-1]].outputs]:
            break
        block = inner[-1]
    (given, *_) = trunk.maps(block)
    ops = trunk.run_in(block)
    first = next((op.name for op in ops if op.name in MIXING or op.name.rstrip("_") in ACTIVATIONS), "")
    made = trunk.made.get(given.value)
    layouts = [trunk.layouts.get(value) for op in ops for value in op.outputs]
    widths = [layout.channels for layout in layouts if layout is not None and layout.grid]
    return (
        first in MIXING
        and (made is None or trunk.ops[made].name.rstrip("_") not in ACTIVATIONS)
        and max(widths, default=0) > given.layout.channels
    )

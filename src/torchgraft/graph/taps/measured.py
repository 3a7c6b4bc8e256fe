"""Maps that are asked for by stride, by stage or by block, and the layouts that were measured."""

from __future__ import annotations

from collections.abc import Sequence

from torchgraft.errors import OptionError
from torchgraft.graph.deep.axes import Layout
from torchgraft.graph.taps.layouts import Turn
from torchgraft.graph.tiers.tiers import Tiers
from torchgraft.graph.tiers.trunk import Map
from torchgraft.text import literal

Numbers = tuple[int, ...]


def chosen(
    tiers: Tiers, strides: Numbers | None, stages: Numbers | None, blocks: Numbers | None
) -> list[tuple[str, Map]]:
    """Pick maps by what they are asked for by; without a choice one for each stride, or four blocks.

    Args:
        tiers: the tiers of a model.
        strides: strides.
        stages: numbers of stages, negative ones from the last.
        blocks: numbers of blocks, likewise.

    Returns:
        The maps with their names, as asked.

    Raises:
        OptionError: the model has none of those.
    """
    if stages is not None:
        return _numbered("stages", stages, [stage.map for stage in tiers.stages])
    by_stride = {one.stride: one for one in tiers.maps}
    if strides is not None:
        missing = [stride for stride in strides if stride not in by_stride]
        if missing:
            one_only = len(by_stride) == 1 and len(tiers.blocks) > 1
            right = ("blocks", _spread(tiers)) if one_only else ("strides", tuple(by_stride))
            raise OptionError(
                f"this model has no maps of stride {missing[0]}",
                found=f"strides {', '.join(map(str, by_stride))}",
                swap=(f"strides={literal(strides)}", f"{right[0]}={literal(right[1])}"),
            )
        return [(str(stride), by_stride[stride]) for stride in strides]
    if blocks is None and (len(by_stride) > 1 or len(tiers.blocks) < 2):
        return [(str(stride), one) for stride, one in by_stride.items()]
    return _numbered("blocks", _spread(tiers) if blocks is None else blocks, tiers.blocks)


def turn_for(layout: Layout) -> Turn | None:
    """Tell what turns a value of a layout to ``n c h w``; ``None`` for one that is so, or has no places."""
    if layout.name == "NHWC":
        return Turn((0, 3, 1, 2))
    if layout.stride is None or layout.name not in ("NLC", "NCL"):
        return None
    return Turn((0, 1, 2) if layout.name == "NLC" else (0, 2, 1), layout.prefix, layout.stride, layout.order)


def _spread(tiers: Tiers) -> Numbers:
    """Return four numbers of blocks that are evenly spread, the last block among them."""
    count = len(tiers.blocks)
    return tuple(sorted({count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1}))


def _numbered(kind: str, numbers: Numbers, held: Sequence[Map]) -> list[tuple[str, Map]]:
    for number in numbers:
        if not -len(held) <= number < len(held):
            raise OptionError(
                f"this model has {len(held)} {kind}, and none of number {number}",
                found=f"{kind} 0 to {len(held) - 1}" if held else f"no {kind}",
                write=f"{kind}={literal(tuple(range(len(held)))[-4:])}" if held else "targets by name",
            )
    return [(str(number), held[number]) for number in numbers]

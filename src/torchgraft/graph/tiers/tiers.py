"""Tiers: the stem, the stages and the head of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from torchgraft.errors import AnalysisError, GraftError
from torchgraft.graph.deep.axes import Layout
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import Head, find_heads
from torchgraft.graph.history import hung_by_steps
from torchgraft.graph.tiers.blocks import block_maps, first_stage
from torchgraft.graph.tiers.ladder import Ladder, Rung, ladder_of
from torchgraft.graph.tiers.trunk import Map, Trunk
from torchgraft.text import columns, plural


@attrs.frozen
class Stage:
    """The blocks that work at one resolution.

    Args:
        paths: the modules it consists of.
        map: the map it gives.
        blocks: the map that each of its blocks gives.
        parameters: number of its parameters.
    """

    paths: tuple[str, ...]
    map: Map
    blocks: tuple[Map, ...]
    parameters: int

    @property
    def path(self) -> str:
        """Where its last module stands."""
        return self.map.path

    @property
    def channels(self) -> int:
        """Number of channels that it gives."""
        return self.map.layout.channels

    @property
    def stride(self) -> int:
        """Pixels of the input for each place of its map."""
        return self.map.stride

    @property
    def layout(self) -> str:
        """How its map is laid out."""
        return self.map.layout.name


@attrs.frozen
class Tiers:
    """The parts of a model, in the order in which they run.

    Args:
        stem: modules before the first stage.
        stages: the stages, the finest first.
        head: modules after the last stage.
        maps: the last map of each stride, those of the stem too.
        pooled: channels of what is pooled.
        num_features: width before the classifier; that of the pooled features where there is none.
        parameters: number of parameters in the stem and in the head.
    """

    stem: tuple[str, ...]
    stages: tuple[Stage, ...]
    head: tuple[str, ...]
    maps: tuple[Map, ...]
    pooled: int
    num_features: int
    parameters: tuple[int, int]

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides at which there are maps."""
        return tuple(m.stride for m in self.maps)

    @property
    def blocks(self) -> tuple[Map, ...]:
        """The maps that the blocks of all stages give."""
        return tuple(block for stage in self.stages for block in stage.blocks)

    def __str__(self) -> str:
        rows = [("stem", " ".join(self.stem), f"{self.parameters[0]:,}", "", "", "", "")] if self.stem else []
        rows += [
            (
                f"stage {number}",
                " ".join(stage.paths),
                f"{stage.parameters:,}",
                f"{stage.channels} channels",
                f"stride {stage.stride}",
                stage.layout,
                plural(len(stage.blocks), "block") if stage.blocks else "",
            )
            for number, stage in enumerate(self.stages)
        ]
        widths = f"{self.num_features} features"
        if self.num_features != self.pooled:
            widths += f", {self.pooled} pooled"
        return columns(
            [*rows, ("head", " ".join(self.head) or "none", f"{self.parameters[1]:,}", widths, "", "", "")]
        )


def find_tiers(draft: Draft) -> Tiers:
    """Find the stem, the stages and the head of a model.

    Args:
        draft: the model; it is only read.

    Returns:
        The tiers.

    Raises:
        AnalysisError: the model does not run on meta tensors, or makes no maps.
    """
    trunk = Trunk(draft.runs.deep())
    heads = _heads(draft)
    ladder = ladder_of(trunk, {head.path for head in heads})
    if not ladder.rungs:
        raise AnalysisError(
            f"{type(draft.root).__name__} makes no maps, so it has no stages",
            found="no module gives a map n c h w, or tokens, that is no finer than the input",
            write="a model of images, or an input for it: example=torch.zeros(<n c h w>)",
        )
    hung = hung_by_steps(draft)
    first = first_stage(trunk, ladder.rungs, hung)
    stem = _between(trunk, 1, ladder.rungs[first].unit)
    stages = _stages(draft, trunk, ladder, ladder.rungs[first:], hung)
    last = max(trunk.inside_of(ladder.rungs[-1].unit))
    end = _between(trunk, last + 1, len(trunk.scopes))
    widths = {head.width for head in heads}
    several = not heads and len(trunk.scopes[0].outputs) > 1  # an extractor pools nothing
    pooled = (None if several else _pooled(trunk, heads)) or ladder.maps[-1].layout.channels
    return Tiers(
        stem,
        stages,
        end,
        ladder.maps,
        pooled,
        widths.pop() if len(widths) == 1 else pooled,
        (_count(draft, stem), _count(draft, end)),
    )


def _stages(
    draft: Draft, trunk: Trunk, ladder: Ladder, rungs: tuple[Rung, ...], hung: Collection[str]
) -> tuple[Stage, ...]:
    groups: list[tuple[int, list[int]]] = []
    for rung in rungs:
        stride = max(m.stride for m in rung.maps)
        if not groups or stride > groups[-1][0]:
            groups.append((stride, []))
        groups[-1][1].append(rung.unit)
    maps = {m.stride: m for m in ladder.maps}
    ends = [units[0] for _, units in groups[1:]] + [max(trunk.inside_of(rungs[-1].unit)) + 1]
    stages = []
    for (stride, units), end in zip(groups, ends, strict=True):
        paths = _between(trunk, units[0], end)
        stages.append(
            Stage(paths, maps[stride], block_maps(trunk, units, stride, hung), _count(draft, paths))
        )
    return tuple(stages)


def _count(draft: Draft, paths: Sequence[str]) -> int:
    held = {id(p): p.numel() for path in paths for p in draft.get(path).parameters()}
    return sum(held.values())


def _between(trunk: Trunk, start: int, end: int) -> tuple[str, ...]:
    """Name the outermost modules whose calls begin and end within a range of calls."""
    found: dict[str, None] = {}
    number = start
    while number < end:
        after = max(trunk.inside_of(number)) + 1
        if after <= end:
            found[trunk.scopes[number].path] = None
        number = after if after <= end else number + 1
    return tuple(found)


def _pooled(trunk: Trunk, heads: Sequence[Head]) -> int | None:
    """Return the channels of the last map, before the classifier, that every way runs through."""
    paths = {head.path for head in heads}
    end = next((scope.start for scope in trunk.scopes if scope.path in paths), len(trunk.ops))
    maps = [trunk.layouts[v] for v in sorted(trunk.cuts & trunk.placed) if 0 <= trunk.made.get(v, -1) < end]
    known: list[Layout] = [layout for layout in maps if layout is not None]
    return known[-1].channels if known else None


def _heads(draft: Draft) -> list[Head]:
    try:
        return find_heads(draft)
    except GraftError:
        return []

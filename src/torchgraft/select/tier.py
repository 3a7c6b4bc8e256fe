"""Tiers as targets: the stem, the stages and the head, found by structure."""

from __future__ import annotations

import attrs

from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.tiers.tiers import Tiers, find_tiers
from torchgraft.select.query import Query
from torchgraft.select.selector import Selector
from torchgraft.select.site import Site
from torchgraft.text import literal, spelled


@attrs.frozen(repr=False)
class Tier(Selector):
    """Point at the modules of the stem or of the head."""

    name: str

    def answer(self, query: Query) -> list[Site]:
        """Return the modules, in the order in which they run."""
        tiers = find_tiers(query.draft)
        paths = tiers.stem if self.name == "stem" else tiers.head
        if not paths and query.strict:
            first, last = tiers.stages[0], tiers.stages[-1]
            raise TargetError(
                f"this model has no {self.name}",
                found=f"the first stage begins with {first.paths[0]}, the last ends with {last.paths[-1]}",
                swap=(self.name, "stage(0)" if self.name == "stem" else "stage(-1)"),
            )
        return [Site(path, query.draft) for path in paths if query.in_scope(path)]

    def __repr__(self) -> str:
        return self.name


@attrs.frozen(repr=False)
class StageOf(Selector):
    """Point at the modules of one stage."""

    index: int | None
    stride: int | None = None

    def answer(self, query: Query) -> list[Site]:
        """Return the modules, in the order in which they run."""
        tiers = find_tiers(query.draft)
        stages = tiers.stages
        if self.stride is not None:
            found = [stage for stage in stages if stage.stride == self.stride]
        else:
            found = list(stages)[self.index :][:1] if -len(stages) <= (self.index or 0) < len(stages) else []
        if not found and query.strict:
            raise _no_stage(self, tiers)
        paths = [path for stage in found for path in stage.paths]
        return [Site(path, query.draft) for path in paths if query.in_scope(path)]

    def __repr__(self) -> str:
        return f"stage({self.index})" if self.stride is None else f"stage(stride={self.stride})"


stem = Tier("stem")
"""The modules before the first stage."""

head = Tier("head")
"""The modules after the last stage."""


@spelled
def stage(index: int | None = None, *, stride: int | None = None) -> StageOf:
    """Point at the modules of one stage: the blocks that work at one resolution.

    Stages are found by structure: where the resolution falls, what every way to the output
    runs through, and what is repeated. ``tiers(model)`` lists them.

    Args:
        index: number of the stage from 0, or from the end with -1.
        stride: in the place of a number, pixels of the input for each place of its map.

    Returns:
        The selector.

    Raises:
        OptionError: not exactly one of the two is given, or it is no whole number.

    Example:
        >>> from torchgraft import at
        >>> from torchvision.models import resnet18
        >>> (stage(-1) | head).on(resnet18()).paths
        ('layer4', 'avgpool', 'fc')
    """
    given = [value for value in (index, stride) if value is not None]
    if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], int):
        raise OptionError(
            "a stage is meant by its number or by its stride",
            found="neither" if not given else "both" if len(given) > 1 else literal(given[0]),
            write="stage(-1), or stage(stride=16)",
        )
    return StageOf(index, stride)


def _no_stage(asked: StageOf, tiers: Tiers) -> TargetError:
    known = [f"{i} ({s.path}, stride {s.stride})" for i, s in enumerate(tiers.stages)]
    what = f"of stride {asked.stride}" if asked.stride is not None else str(asked.index)
    right = f"stage(stride={tiers.stages[-1].stride})" if asked.stride is not None else "stage(-1)"
    return TargetError(f"this model has no stage {what}", found=", ".join(known), swap=(repr(asked), right))

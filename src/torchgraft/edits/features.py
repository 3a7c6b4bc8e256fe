"""Features: maps from anywhere in a model, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from torchgraft.edits.tapping import Choice, check_distinct, choice, turns_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.taps.carrying import carry
from torchgraft.select import Target
from torchgraft.text import check_flags, literal, spelled, wrong
from torchgraft.transform import Transform

_LAYOUTS = ("NCHW", "native")


@attrs.frozen(repr=False)
class Features(Transform):
    """Return maps by name, and what is needed for them alone."""

    name: ClassVar[str] = "features"
    choice: Choice
    names: tuple[str, ...] | None = None
    layout: str = "NCHW"
    keep_output: bool = False

    def _edit(self, draft: Draft) -> None:
        found = self.choice.find(draft, self.names)
        turns = turns_of(draft, found, self.layout)
        carry(draft, [one.tap for one in found], turns, keep_output=self.keep_output)

    def __repr__(self) -> str:
        words = [literal(target) for target in self.choice.targets]
        words += [self.choice.written()] if self.choice.written() else []
        words += [f"names={literal(self.names)}"] if self.names is not None else []
        words += [f"layout={literal(self.layout)}"] if self.layout != "NCHW" else []
        words += ["keep_output=True"] if self.keep_output is True else []
        return f"features({', '.join(words)})"


@spelled
def features(
    *targets: Target,
    strides: Sequence[int] | None = None,
    stages: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    layout: Literal["NCHW", "native"] = "NCHW",
    keep_output: bool = False,
) -> Features:
    """Return maps from anywhere in a model, and take out what they do not need.

    The forward of the result gives an ordered dictionary, in the order in which the maps
    are asked for. A map is the value at the time at which it was made. What remains keeps
    its keys, so an original checkpoint loads with nothing missing. Without a choice there is
    a map for each stride that the model has, or of four blocks where it has one stride.

    Args:
        targets: modules and operations: paths, globs, classes, selectors, and nodes by the
            names that torchvision gives them, such as ``"layer1.0.add"``.
        strides: places of the image for each place of a map.
        stages: numbers of stages, negative ones from the last.
        blocks: numbers of blocks, likewise.
        names: names of the maps; by default what they are asked for by.
        layout: ``"NCHW"`` turns maps with the channels last and lays tokens out on their
            grid; ``"native"`` leaves values as they are.
        keep_output: return the output as well, before the maps, and take nothing out.

    Returns:
        The transform.

    Raises:
        OptionError: maps are asked for in several ways, or under one name.

    Example:
        >>> from torchvision.models import resnet18
        >>> import torch
        >>> model = features("layer2", "layer3.0.add")(resnet18())
        >>> [(name, tuple(map_.shape)) for name, map_ in model(torch.zeros(1, 3, 64, 64)).items()]
        [('layer2', (1, 128, 8, 8)), ('layer3.0.add', (1, 256, 4, 4))]
    """
    listed = tuple(names) if isinstance(names, (tuple, list)) else names
    made = Features(choice(targets, strides, stages, blocks), listed, layout, keep_output)  # type: ignore[arg-type]  # checked below
    if layout not in _LAYOUTS:
        raise wrong('a layout is "NCHW" or "native"', layout, name="layout", known=_LAYOUTS)
    check_flags(keep_output=keep_output)
    if listed is not None:
        if not isinstance(listed, tuple) or not all(isinstance(name, str) and name for name in listed):
            right = '("low", "high")'
            raise wrong("names are a tuple of names, one for each map", names, right, name="names")
        check_distinct(listed)
    return made

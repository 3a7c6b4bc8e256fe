"""FPN: a feature pyramid network on the maps of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from torchgraft.blocks.start import keep_start, startable
from torchgraft.edits.tapping import Choice, Found, choice, turns_of
from torchgraft.errors import NameClashError
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import spec_of
from torchgraft.graph.taps.carrying import carry, feed
from torchgraft.select import Target
from torchgraft.spec import made_on
from torchgraft.text import literal, spelled, wrong
from torchgraft.transform import Transform

_NAME = "fpn"
_STRIDES = (8, 16, 32)
_EXTRAS = ("pool", "p6p7")


@attrs.frozen(repr=False)
class Fpn(Transform):
    """Merge maps from the deepest one up."""

    name: ClassVar[str] = "fpn"
    out_channels: int
    choice: Choice
    extra: str | None = None

    def _edit(self, draft: Draft) -> None:
        if not draft.free("", _NAME):
            raise NameClashError(
                f"the root holds {_NAME!r} already",
                found=type(getattr(draft.root, _NAME)).__name__,
                write=f'rename({{"{_NAME}": "old_{_NAME}"}}) before',
            )
        found = self.choice.find(draft, None)
        taps = [attrs.evolve(one.tap, name=str(place)) for place, one in enumerate(found)]
        found = [attrs.evolve(one, tap=tap) for one, tap in zip(found, taps, strict=True)]
        turns = turns_of(draft, found, "NCHW")
        channels = [_channels(draft, one) for one in found]
        made = made_on(draft.like, lambda: self._pyramid(channels))
        carry(draft, taps, turns, keep_output=False)
        draft.place("", _NAME, made.train(draft.root.training))
        feed(draft, _NAME)
        draft.root.out_channels = self.out_channels  # type: ignore[assignment]  # what detectors read

    def _pyramid(self, channels: list[int]) -> nn.Module:
        made = FeaturePyramidNetwork(channels, self.out_channels, self._extra())
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d):
                keep_start(layer, _spread)
        return startable(made)

    def _extra(self) -> ExtraFPNBlock | None:
        if self.extra is None:
            return None
        return (
            LastLevelMaxPool()
            if self.extra == "pool"
            else LastLevelP6P7(self.out_channels, self.out_channels)
        )

    def __repr__(self) -> str:
        words = [str(self.out_channels)]
        if self.choice.targets:
            words.append(f"targets={literal(self.choice.targets)}")
        elif self.choice.strides != _STRIDES:
            words.append(self.choice.written())
        words += [f"extra={literal(self.extra)}"] if self.extra is not None else []
        return f"fpn({', '.join(words)})"


@spelled
def fpn(
    out_channels: int = 256,
    strides: Sequence[int] = _STRIDES,
    *,
    stages: Sequence[int] | None = None,
    targets: Sequence[Target] | None = None,
    extra: Literal["pool", "p6p7"] | None = None,
) -> Fpn:
    """Put a feature pyramid network on maps of a model, as a backbone of detectors.

    The maps are those of ``features``. The result gives an ordered dictionary of maps with
    the same number of channels, named ``"0"``, ``"1"`` and so on from the finest one, and
    has that number as ``out_channels``, so it goes as it is into torchvision's detectors.

    Args:
        out_channels: channels of each map that it gives.
        strides: places of the image for each place of a map.
        stages: numbers of stages, in the place of strides.
        targets: modules and operations, in the place of strides.
        extra: further maps from the deepest one: ``"pool"`` is one by pooling, ``"p6p7"``
            two by convolutions.

    Returns:
        The transform.

    Raises:
        OptionError: a number is not positive, or maps are asked for in several ways.

    Example:
        >>> from torchvision.models import resnet18
        >>> import torch
        >>> model = fpn(64, targets=("layer3", "layer4"))(resnet18())
        >>> [(name, tuple(map_.shape)) for name, map_ in model(torch.zeros(1, 3, 64, 64)).items()]
        [('0', (1, 64, 4, 4)), ('1', (1, 64, 2, 2))]

    Source:
        Lin et al., Feature Pyramid Networks for Object Detection, arXiv 1612.03144.
    """
    if isinstance(out_channels, bool) or not isinstance(out_channels, int) or out_channels < 1:
        raise wrong("the number of channels is a positive integer", out_channels, "256")
    if targets is not None and (not isinstance(targets, (tuple, list)) or not targets):
        right = f"({literal(targets)},)" if targets else '("layer3", "layer4")'
        raise wrong("targets are a tuple", targets, right, name="targets")
    given = tuple(strides) if isinstance(strides, (tuple, list)) else strides
    other = stages is not None or targets is not None
    made = choice(targets or (), None if other and given == _STRIDES else given, stages, None)
    if extra is not None and extra not in _EXTRAS:
        raise wrong('extra is "pool" or "p6p7"', extra, name="extra", known=_EXTRAS)
    return Fpn(out_channels, made, extra)


def _spread(layer: nn.Module) -> None:
    """Fill a convolution as torchvision's pyramids do."""
    nn.init.kaiming_uniform_(layer.get_parameter("weight"), a=1)
    nn.init.zeros_(layer.get_parameter("bias"))


def _channels(draft: Draft, found: Found) -> int:
    """Return the channels of a map."""
    if found.layout is not None:
        return found.layout.channels
    return spec_of(draft, found.tap.owner, found.tap.nodes[0]).channels

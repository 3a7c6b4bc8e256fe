"""Tell the stem, the stages and the head of a model, and the maps that it gives."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.graph.checks import check_model
from torchgraft.graph.deep.axes import Layout, follow, layout_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.probe import Example
from torchgraft.graph.tiers.tiers import Tiers, find_tiers


@attrs.frozen
class FeatureInfo:
    """Describe a map of a model.

    Args:
        name: where it comes from; in an extractor, the name under which it is given.
        channels: number of channels.
        stride: pixels of the input for each place; ``None`` for a vector, or a map finer than the image.
        layout: ``NCHW``, ``NHWC``, ``NLC`` for tokens, ``NC`` for a vector.
    """

    name: str
    channels: int
    stride: int | None
    layout: str


def tiers(model: nn.Module, *, example: Example | None = None) -> Tiers:
    """Find the stem, the stages and the head of a model by its structure.

    Args:
        model: the model; it is only read.
        example: an input, for models whose input cannot be guessed.

    Returns:
        The tiers: print them, or read ``stem``, ``stages``, ``head``, ``num_features``.

    Raises:
        ModelError: it is no model.
        AnalysisError: it does not run on meta tensors, or makes no maps.

    Example:
        >>> from torchvision.models import resnet18
        >>> print(tiers(resnet18()))
        stem     conv1 bn1 relu maxpool  9,536
        stage 0  layer1                  147,968    64 channels   stride 4   NCHW  2 blocks
        stage 1  layer2                  525,568    128 channels  stride 8   NCHW  2 blocks
        stage 2  layer3                  2,099,712  256 channels  stride 16  NCHW  2 blocks
        stage 3  layer4                  8,393,728  512 channels  stride 32  NCHW  2 blocks
        head     avgpool fc              513,000    512 features
    """
    check_model(model)
    return find_tiers(Draft(model, example))


def feature_info(model: nn.Module, *, example: Example | None = None) -> tuple[FeatureInfo, ...]:
    """Describe the maps of a model: those it returns by name, or the last one of each stride.

    Args:
        model: a model, or what ``features`` made of one; it is only read.
        example: an input, for models whose input cannot be guessed.

    Returns:
        One entry for each map, measured on a run.

    Raises:
        ModelError: it is no model.
        AnalysisError: it does not run on meta tensors, or makes no maps.

    Example:
        >>> from torchvision.models import swin_t
        >>> for info in feature_info(swin_t())[:2]:
        ...     print(info)
        FeatureInfo(name='features.1', channels=96, stride=4, layout='NHWC')
        FeatureInfo(name='features.3', channels=192, stride=8, layout='NHWC')
    """
    check_model(model)
    draft = Draft(model, example)
    record = draft.runs.deep()
    axes = follow(record)
    given = {way[-1]: layout_of(axes[v]) for way, v in record.scopes[0].outputs if way and v in axes}
    named = [_info(str(name), layout) for name, layout in given.items() if layout is not None]
    if named and all(isinstance(name, str) for name in given):
        return tuple(named)
    return tuple(_info(m.path, m.layout) for m in find_tiers(draft).maps)


def _info(name: str, layout: Layout) -> FeatureInfo:
    return FeatureInfo(name, layout.channels, layout.stride[0] if layout.stride else None, layout.name)

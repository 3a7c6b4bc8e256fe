"""Dilate: larger maps out of the same weights, by reading places that lie apart."""

from __future__ import annotations

from typing import ClassVar

import attrs

from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.density.densify import densify
from torchgraft.graph.density.spread import strides_of
from torchgraft.graph.draft import Draft
from torchgraft.text import spelled, wrong
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Dilate(Transform):
    """Turn strides beyond the one wanted into dilations."""

    name: ClassVar[str] = "dilate"
    output_stride: int

    def _edit(self, draft: Draft) -> None:
        strides = strides_of(draft.runs.deep())
        if not strides:
            raise TargetError(
                "there is nothing to dilate",
                found="no convolution and no pooling that runs over n c h w",
                write="a model of images",
            )
        if self.output_stride not in strides:
            smaller = [stride for stride in strides if stride < self.output_stride]
            raise OptionError(
                f"this model has no maps of stride {self.output_stride}",
                found=f"strides {', '.join(map(str, strides))}",
                write=f"dilate({max(smaller, default=strides[0])})",
            )
        if self.output_stride < strides[-1]:
            densify(draft, self.output_stride)
            draft.reshaped = True


@spelled
def dilate(output_stride: int) -> Dilate:
    """Keep maps from getting smaller than the input divided by a stride.

    Convolutions and poolings beyond it take every place, and those behind them read places
    that lie apart. So the deepest maps are larger, and at ``[..., ::d, ::d]`` they are what
    they were, ``d`` being the old stride divided by the new one. What looks at a whole map
    (the pool before the head, squeeze-and-excitation) sees the places that it saw before, so
    that the output stays what it was in evaluation mode. What makes a map of a map in another
    way (group norms, paddings that follow the size, poolings that round up or average) gets
    the maps of the original that lie in the denser one, each as a sample of its own; a model
    with such steps is dilated once, and a second, smaller stride is refused. No parameter is
    added, and no key changes.

    The model is run on meta tensors to see its maps. Where a map is mixed beyond return, as
    by attention over its places beside a shortcut around it, the error says with which stride
    the maps there stay as they are.

    Args:
        output_stride: the largest stride that maps may have, one that the model has; its own
            largest one changes nothing.

    Returns:
        The transform.

    Raises:
        OptionError: the stride is no positive number.

    Example:
        >>> from torch import nn
        >>> import torch
        >>> sizes = [(3, 4, 3, 2, 1), (4, 4, 3, 2, 1), (4, 8, 3, 1, 1)]
        >>> model = nn.Sequential(*[nn.Conv2d(*size) for size in sizes])
        >>> dense = dilate(2)(model)
        >>> dense[2]
        Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2))
        >>> images = torch.rand(1, 3, 33, 33)
        >>> torch.allclose(dense(images)[..., ::2, ::2], model(images), atol=1e-6)
        True

    Source:
        Yu, Koltun and Funkhouser, Dilated Residual Networks, arXiv 1705.09914; Chen et al.,
        Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587.
    """
    if isinstance(output_stride, bool) or not isinstance(output_stride, int) or output_stride < 1:
        raise wrong("an output stride is a positive integer", output_stride, "8")
    return Dilate(output_stride)

"""Sized tensors: what of a model is made for one size of images, patches or windows, by structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs
import torch
from torch import nn

from torchgraft.edits.resampling import (
    Size,
    relative_index,
    resample_bias,
    resample_patches,
    resample_positions,
)
from torchgraft.graph.draft import Draft

_MOST = 16
"""Tokens before those of the map; a model has one for its class, and a few registers."""


@attrs.frozen(eq=False)
class Sized:
    """A tensor that is made for one size.

    Args:
        module: the module that holds it.
        name: its name there.
        tensor: the tensor.
        kind: ``"patch"`` for a kernel that cuts patches, ``"grid"`` for a table with a row for
            every patch, ``"window"`` for one with a row for every distance in a window.
        size: height and width of the patch, the grid or the window.
        prefix: tokens before those of the map.
        index: name of the buffer that tells which row of the table is for which two places.
    """

    module: nn.Module
    name: str
    tensor: torch.Tensor
    kind: Literal["patch", "grid", "window"]
    size: Size
    prefix: int = 0
    index: str = ""

    def size_of(self, shape: Sequence[int]) -> Size | None:
        """Return the size that a tensor of another shape is made for; ``None`` where it does not tell."""
        if len(shape) == 4:
            return (shape[2], shape[3]) if self.kind == "patch" else (shape[1], shape[2])
        rows = shape[-2] - (3 * self.prefix if self.kind == "window" else self.prefix)
        side = math.isqrt(max(0, rows))
        if not side or side * side != rows or (self.kind == "window" and side % 2 == 0):
            return None
        side = (side + 1) // 2 if self.kind == "window" else side
        return side, side

    def resampled(self, tensor: torch.Tensor, old: Size, new: Size) -> torch.Tensor:
        """Return a tensor of its kind for another size."""
        if self.kind == "patch":
            return resample_patches(tensor, new)
        if self.kind == "window":
            return resample_bias(tensor, old, new)
        return resample_positions(tensor, old, new, self.prefix)


def find_sized(draft: Draft, modules: Sequence[nn.Module]) -> tuple[list[Sized], Size | None]:
    """Find the tensors of some modules that are made for one size.

    Positions are those of the width of a patch that have a row for every patch of the image, and
    for tokens before them; biases those that are read by an index of distances.

    Args:
        draft: the model.
        modules: those of its modules that are looked at.

    Returns:
        The tensors, and height and width of the image that the model takes, where it cuts patches.

    Raises:
        AnalysisError: the model does not run on meta tensors, so its sizes are unknown.
    """
    biases = list(_biases(modules))
    for path, conv in draft.modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride or conv.stride[0] < 2:
            continue
        calls = draft.record(path)
        if calls and isinstance(calls[0].args[0], torch.Tensor) and isinstance(calls[0].output, torch.Tensor):
            image, grid = calls[0].args[0].shape, calls[0].output.shape
            kernel = conv.weight.shape
            patch = Sized(conv, "weight", conv.weight, "patch", (kernel[2], kernel[3]))
            positions = _positions(modules, (grid[2], grid[3]), conv.out_channels)
            return [patch, *positions, *biases], (image[2], image[3])
    return biases, None


def _positions(modules: Iterable[nn.Module], grid: Size, wide: int) -> Iterator[Sized]:
    for module in modules:
        if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Embedding):
            continue
        for name, table in (*module._parameters.items(), *module._buffers.items()):
            if table is None or not table.is_floating_point() or table.ndim < 2 or table.shape[-1] != wide:
                continue
            prefix = table.shape[-2] - math.prod(grid)
            if tuple(table.shape) == (1, *grid, wide):
                yield Sized(module, name, table, "grid", grid)
            elif tuple(table.shape[:-2]) in ((), (1,)) and 0 <= prefix <= _MOST:
                yield Sized(module, name, table, "grid", grid, prefix)


def _biases(modules: Iterable[nn.Module]) -> Iterator[Sized]:
    for module in modules:
        for index, held in module._buffers.items():
            known = None if held is None or held.dtype is not torch.long else _window(module, held)
            for name, table in module._parameters.items() if known else ():
                window, prefix = known or ((0, 0), 0)
                rows = (2 * window[0] - 1) * (2 * window[1] - 1) + 3 * prefix
                if table is not None and table.ndim == 2 and len(table) == rows:
                    yield Sized(module, name, table, "window", window, prefix, index)


def _window(module: nn.Module, index: torch.Tensor) -> tuple[Size, int] | None:
    """Return the window of which a buffer holds the distances, and the tokens before its places."""
    places, said = math.isqrt(index.numel()), vars(module).get("window_size")
    for prefix in (0, 1):
        side = math.isqrt(max(0, places - prefix))
        window = (said[0], said[1]) if isinstance(said, (tuple, list)) and len(said) == 2 else (side, side)
        if math.prod(window) != places - prefix or places < 2:
            continue
        known = relative_index(window, prefix).reshape(-1)
        if known.numel() == index.numel() and (index.is_meta or index.reshape(-1).cpu().equal(known)):
            return window, prefix
    return None

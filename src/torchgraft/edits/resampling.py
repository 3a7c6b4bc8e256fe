"""Resampling: tables of positions and kernels of patches at another size, as timm makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

Size = tuple[int, int]


def resample_positions(table: torch.Tensor, old: Size, new: Size, prefix: int) -> torch.Tensor:
    """Resample position embeddings by antialiased bicubic interpolation; those of prefix tokens stay.

    Args:
        table: the embeddings, ``n c`` or ``1 n c``, or those of a map, ``1 h w c``.
        old: places of the map along height and width.
        new: the places that are asked for.
        prefix: number of tokens before those of the map.
    """
    wide = table.shape[-1]
    tokens = table.reshape(1, -1, wide)
    before, places = tokens[:, :prefix], tokens[:, prefix:]
    maps = places.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new, mode="bicubic", antialias=True)
    places = maps.permute(0, 2, 3, 1).reshape(1, -1, wide).to(table.dtype)
    made = torch.cat([before, places], dim=1) if prefix else places
    if table.ndim == 4:
        return made.reshape(1, *new, wide)
    return made if table.ndim == 3 else made[0]


def resample_patches(kernel: torch.Tensor, new: Size) -> torch.Tensor:
    """Resample the kernel of a patch embedding, so that it gives for larger patches what it gave.

    Args:
        kernel: weight of a convolution, ``o i h w``.
        new: size of the patches that are asked for.

    Source:
        Beyer et al., FlexiViT, arXiv 2212.08013.
    """
    old = (kernel.shape[2], kernel.shape[3])
    if kernel.is_meta:
        return kernel.new_empty(*kernel.shape[:2], *new)
    count = old[0] * old[1]
    basis = torch.eye(count, device=kernel.device).reshape(count, 1, *old)
    resized = F.interpolate(basis, size=new, mode="bicubic", antialias=True, align_corners=False)
    matrix = resized.squeeze(1).permute(1, 2, 0).reshape(-1, count)
    inverse: torch.Tensor = torch.linalg.pinv(matrix)
    flat = kernel.reshape(*kernel.shape[:2], -1).float() @ inverse
    return flat.reshape(*kernel.shape[:2], *new).to(kernel.dtype)


def resample_bias(table: torch.Tensor, old: Size, new: Size) -> torch.Tensor:
    """Resample a table of biases by relative position, finer near the middle; rows behind it stay.

    Args:
        table: a row for each pair of distances in a window, and for class tokens, ``n heads``.
        old: the window.
        new: the window that is asked for.

    Source:
        Bao et al., BEiT, arXiv 2106.08254.
    """
    was, now = ((2 * side[0] - 1, 2 * side[1] - 1) for side in (old, new))
    count = was[0] * was[1]
    rest = table[count:]
    if table.is_meta:
        return table.new_empty(now[0] * now[1] + len(rest), table.shape[1])
    if was == now:
        return table
    found = [_neighbours(*sides) for sides in zip(was, now, strict=True)]
    values = table[:count].reshape(*was, -1).float().cpu()
    total: torch.Tensor | float = 0.0
    for one in (0, 1):
        for other in (0, 1):
            corner = values[found[0][0][one][:, None], found[1][0][other][None]]
            total = total + corner * (found[0][1][1 - one][:, None] * found[1][1][1 - other][None])[..., None]
    spans = (found[0][1][0] + found[0][1][1])[:, None] * (found[1][1][0] + found[1][1][1])[None]
    made = (total / spans[..., None]).reshape(-1, table.shape[1]).to(table.device)
    return torch.cat([made, rest.float()]).to(table.dtype)


def _neighbours(was: int, now: int) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Return the old places left and right of each new one, and how far they are."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        ratio = (left + right) / 2.0
        if (1.0 - ratio ** (was // 2)) / (1.0 - ratio) > now // 2:
            right = ratio
        else:
            left = ratio
    steps: list[float] = []
    place = 1.0
    for power in range(was // 2):
        steps.append(place)
        place += ratio ** (power + 1)
    points = torch.tensor([*(-step for step in reversed(steps)), 0, *steps])
    asked = torch.arange(-(now // 2.0), now // 2.0 + 0.1, 1.0)
    after = torch.bucketize(asked, points).clamp(max=was - 1)
    before = (after - 1).clamp(0, was - 1)
    near, far = ((asked - points[before]).clamp(min=0), (points[after] - asked).clamp(min=0))
    exact = (near == 0) & (far == 0)
    near[exact] = far[exact] = 1.0
    return (before, after), (near, far)


def relative_index(window: Size, prefix: int) -> torch.Tensor:
    """Return which row of a table of biases is for which two places of a window, as Swin and BEiT count.

    Args:
        window: the window.
        prefix: 1 for a class token before the places.
    """
    places = torch.stack(torch.meshgrid(*map(torch.arange, window), indexing="ij")).flatten(1)
    between = places[:, :, None] - places[:, None]
    rows, columns = between[0] + window[0] - 1, between[1] + window[1] - 1
    index = rows * (2 * window[1] - 1) + columns
    if prefix:
        count = (2 * window[0] - 1) * (2 * window[1] - 1)
        index = F.pad(index, (1, 0, 1, 0))
        index[0], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index

"""Run the operations of a model in double precision.

In single precision two ways to write one function differ by as much as a wrong epsilon makes;
in double precision what is the same is the same to twelve digits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils._pytree import tree_map_only

_WIDE: Mapping[torch.dtype, torch.dtype] = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def widened(value: object) -> object:
    """Return a nested value with wide tensors, and wide dtypes, where they were narrow.

    Args:
        value: a tensor, a dtype, or anything that holds some.

    Returns:
        The value; what was wide or is no floating-point number is as it was.

    Example:
        >>> widened(({"dtype": torch.float32}, 1))
        ({'dtype': torch.float64}, 1)
    """
    wide = tree_map_only(torch.Tensor, lambda t: t.to(_WIDE.get(t.dtype, t.dtype)), value)
    return tree_map_only(torch.dtype, lambda dtype: _WIDE.get(dtype, dtype), wide)

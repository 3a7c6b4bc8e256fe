"""Run the operations of a model in double precision.

In single precision two ways to write one function differ by as much as a wrong epsilon makes;
in double precision what is the same is the same to twelve digits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

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
    if isinstance(value, torch.Tensor):
        return value.to(_WIDE[value.dtype]) if value.dtype in _WIDE else value
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(widened, value))
    return {key: widened(item) for key, item in value.items()} if isinstance(value, dict) else value

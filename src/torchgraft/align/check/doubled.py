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


class Doubled:
    """Give the tensors of a run their twins in double precision."""

    def __init__(self) -> None:
        # A tensor is kept with its twin: what is written into a parameter has to be there later.
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def widened(self, value: object, *, keep: bool = True) -> object:
        """Return a nested value with wide tensors and wide dtypes.

        Args:
            value: a tensor, or anything that holds some.
            keep: give for a tensor that comes again the same twin again.

        Returns:
            The value, with other tensors and dtypes where they were narrow.
        """
        if isinstance(value, torch.Tensor):
            return self._twin(value, keep=keep) if value.dtype in _WIDE else value
        if isinstance(value, torch.dtype):
            return _WIDE.get(value, value)
        if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            return type(value)(self.widened(item, keep=keep) for item in value)
        if isinstance(value, dict):
            return {key: self.widened(item, keep=keep) for key, item in value.items()}
        return value

    def _twin(self, tensor: torch.Tensor, *, keep: bool) -> torch.Tensor:
        if not keep:
            return tensor.to(_WIDE[tensor.dtype])
        known = self._twins.get(id(tensor))
        if known is None:
            known = self._twins[id(tensor)] = tensor, tensor.detach().to(_WIDE[tensor.dtype])
        return known[1]

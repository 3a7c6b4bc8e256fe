"""Copy on write: tensors that cost no memory until either side is written to.

The one file that knows ``torch._lazy_clone``.
Where PyTorch cannot share a storage lazily (memory mapped, borrowed from NumPy or
safetensors, tensor subclasses), an ordinary clone is made.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import nn

_lazy: Callable[[torch.Tensor], torch.Tensor] | None = getattr(torch, "_lazy_clone", None)


def cow(tensor: torch.Tensor) -> torch.Tensor:
    """Clone a plain tensor, lazily where PyTorch allows it.

    Args:
        tensor: any strided tensor; its strides and its storage offset are kept.

    Returns:
        A detached tensor with the same values that shares no writes with the original.
    """
    source = tensor.detach()
    if _lazy is not None and not source.is_inference():
        try:
            return _lazy(source)
        except (RuntimeError, NotImplementedError):
            pass
    return source.clone()


class TensorCloner:
    """Clone the tensors of one model so that what shared memory still does.

    Args:
        tensors: every tensor of the model, to see which of them are views of one storage.
        value: clones an attribute of a tensor.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], value: Callable[[object], object]) -> None:
        self._value = value
        seen = {id(t): t for t in tensors}
        keys = Counter(key for t in seen.values() if (key := storage_of(t)) is not None)
        self._shared = {key for key, count in keys.items() if count > 1}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Clone one tensor: values, strides, ``requires_grad``, class and attributes."""
        kind = type(tensor)  # isinstance of a parameter runs Python
        if kind not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return copy.deepcopy(tensor)
        data = self._data(tensor)
        clone: torch.Tensor
        if kind is nn.Parameter:
            clone = nn.Parameter(data, requires_grad=tensor.requires_grad)
        else:
            # A tensor computed with gradients (an old-style weight_norm) is recomputed
            # by its hook: only a leaf keeps the flag.
            clone = data.requires_grad_(tensor.requires_grad and tensor.is_leaf)
            if kind is nn.Buffer:
                clone = nn.Buffer(clone, persistent=getattr(tensor, "persistent", True))
        for name, value in vars(tensor).items():
            setattr(clone, name, self._value(value))
        for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
            clone.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's own
        for hook in (tensor._backward_hooks or {}).values():
            clone.register_hook(hook)  # type: ignore[no-untyped-call]  # torch's own
        return clone

    def _data(self, tensor: torch.Tensor) -> torch.Tensor:
        key = storage_of(tensor)
        if key is None or key not in self._shared:
            return cow(tensor)
        if key not in self._storages:
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            whole.set_(tensor.untyped_storage())
            self._storages[key] = cow(whole).untyped_storage()
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return view.set_(self._storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())


def storage_of(tensor: torch.Tensor) -> int | None:
    """Name the storage of a tensor without touching its memory; ``None`` where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None

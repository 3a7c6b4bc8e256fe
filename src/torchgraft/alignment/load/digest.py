"""A digest of what a model holds, to tell weights of one name apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from torchgraft.alignment.load.tensors import tensors_of

_CHUNK = 1 << 24


def digest(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """Sum up names, dtypes, shapes and values of tensors of a state dict.

    It does not matter in which order they stand, on which device, or how they lie in memory.

    Args:
        model: the model; it is only read.
        names: which tensors; all of them, if it is not said.

    Returns:
        SHA-256 in hexadecimal digits.

    Raises:
        NotImplementedError: a tensor is on the meta device, where it has no values.

    Example:
        >>> one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> digest(one) == digest(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> digest(one) == digest(other)
        True
    """
    summed = hashlib.sha256()
    held = tensors_of(model)
    for name in sorted(held if names is None else names):
        tensor = held[name].tensor.detach()
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for chunk in torch.split(tensor.reshape(-1), _CHUNK // tensor.element_size()):
            # A copy on write stays one: of the tensor itself, nothing but its values is taken.
            summed.update(chunk.clone().cpu().contiguous().view(torch.uint8).numpy().data)
    return summed.hexdigest()

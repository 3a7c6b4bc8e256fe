"""Everything of a model that an edit of a copy must not change."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import torch
from torch import nn

_PLAIN = (int, float, bool, str, type(None), tuple, list, dict)


def bits(tensor: torch.Tensor) -> str:
    """Hash the values of a tensor, its shape and its dtype."""
    if tensor.is_meta:
        return f"meta {tuple(tensor.shape)} {tensor.dtype}"
    raw = (
        tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )
    return hashlib.blake2b(raw, digest_size=8).hexdigest() + f" {tuple(tensor.shape)} {tensor.dtype}"


def fingerprint(model: nn.Module, *, values: bool = True) -> dict[str, object]:
    """Sum up a model: tensors, gradients, flags, modes, hooks, attributes and identities."""
    seen: dict[str, object] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        seen[f"{path}:class"] = type(module)
        seen[f"{path}:mode"] = module.training
        seen[f"{path}:id"] = id(module)
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    if tensor is not None:
                        grad = tensor.grad
                        seen[f"{path}.{key}:tensor"] = (
                            id(tensor),
                            tensor.requires_grad,
                            bits(tensor) if values else tuple(tensor.shape),
                            None if grad is None else bits(grad),
                        )
            elif name == "_modules":
                seen[f"{path}:children"] = tuple(value)
            elif "hooks" in name:
                seen[f"{path}:{name}"] = (
                    tuple(map(str, value.values())) if hasattr(value, "values") else str(value)
                )
            elif isinstance(value, _PLAIN):
                seen[f"{path}:{name}"] = told(value)
    return seen


def told(value: object) -> str:
    """Write a value with the bits of its tensors and the kinds of what holds them."""
    if isinstance(value, torch.Tensor):
        return bits(value)
    if isinstance(value, (int, float, bool, str, type(None))):
        return repr(value)
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return kind + str({k: told(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return kind + str([told(v) for v in value])
    return kind + told(vars(value)) if dataclasses.is_dataclass(value) else kind


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Name what differs between two fingerprints."""
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]

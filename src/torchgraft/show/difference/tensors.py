"""What differs between the parameters and buffers of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import nn

from torchgraft.show.difference.facts import Reading, joined
from torchgraft.show.difference.pairing import Pairs, differ

Keys = tuple[str | None, str | None]


@attrs.frozen
class TensorLook:
    """How a parameter or a buffer stands in one of the models.

    Args:
        key: its key.
        role: ``"parameter"``, ``"buffer"``, or ``"buffer, not kept"`` outside the state dict.
        shape: its shape.
        dtype: its dtype, such as ``"float32"``.
        device: its device, such as ``"cpu"``.
        trainable: whether it gets a gradient.
        tied: the other keys of the same tensor.
    """

    key: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    trainable: bool
    tied: tuple[str, ...]


@attrs.frozen
class TensorDiff:
    """A parameter or a buffer in the two models.

    Args:
        before: in the one; ``None`` where it is new.
        after: in the other; ``None`` where it is gone.
        values: whether the values differ; ``None`` where they cannot be compared.
        changed: names of the fields that differ, ``"values"`` among them.
    """

    before: TensorLook | None
    after: TensorLook | None
    values: bool | None = None
    changed: tuple[str, ...] = ()


def tensor_diffs(before: Reading, after: Reading, pairs: Pairs) -> dict[Keys, TensorDiff]:
    """Compare every parameter and buffer of two models.

    Args:
        before: one model.
        after: the other.
        pairs: which module is which.

    Returns:
        All tensors by their two keys, those that are the same included.
    """
    keys = list(_keys(before, after, pairs))
    renamed = {old: new for old, new in keys if old is not None and new is not None}
    was, now = _looks(before), _looks(after)
    found: dict[Keys, TensorDiff] = {}
    for old, new in keys:
        a = was[old] if old is not None else None
        b = now[new] if new is not None else None
        found[old, new] = _compared(a, b, renamed) if a and b else TensorDiff(a and a[0], b and b[0])
    return found


def _keys(before: Reading, after: Reading, pairs: Pairs) -> Iterator[Keys]:
    for path, facts in before.facts.items():
        other = pairs.there.get(path)
        names = after.facts[other].tensors if other is not None else {}
        for name in facts.tensors:
            yield joined(path, name), joined(other, name) if other is not None and name in names else None
    for path, facts in after.facts.items():
        old = pairs.back.get(path)
        names = before.facts[old].tensors if old is not None else {}
        yield from ((None, joined(path, name)) for name in facts.tensors if name not in names)


def _looks(reading: Reading) -> dict[str, tuple[TensorLook, torch.Tensor]]:
    found = {}
    for path, facts in reading.facts.items():
        for name, tensor in facts.tensors.items():
            key = joined(path, name)
            look = TensorLook(
                key,
                _role(facts.module, name),
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                str(tensor.device),
                tensor.requires_grad,
                tuple(other for other in reading.names[id(tensor)] if other != key),
            )
            found[key] = look, tensor
    return found


def _role(module: nn.Module, name: str) -> str:
    if name in module._parameters:
        return "parameter"
    return "buffer, not kept" if name in module._non_persistent_buffers_set else "buffer"


def _compared(
    before: tuple[TensorLook, torch.Tensor],
    after: tuple[TensorLook, torch.Tensor],
    renamed: Mapping[str, str],
) -> TensorDiff:
    (was, a), (now, b) = before, after
    changed = [
        name
        for name in ("key", "role", "shape", "dtype", "device", "trainable")
        if getattr(was, name) != getattr(now, name)
    ]
    if {renamed.get(key, key) for key in was.tied} != set(now.tied):
        changed.append("tied")
    values = differ(a, b) if (was.shape, was.dtype) == (now.shape, now.dtype) else None
    return TensorDiff(was, now, values, (*changed, *["values"] * bool(values)))

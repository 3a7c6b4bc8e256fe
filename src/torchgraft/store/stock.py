"""The stock of a model: the tensors that its file holds, each of them once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn

from torchgraft.alignment.load.tensors import Held, tensors_of
from torchgraft.errors import StoreError
from torchgraft.text import class_name, plural

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
BY_NAME = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


@attrs.frozen(eq=False)
class Stock:
    """What a file holds of a model.

    Args:
        tensors: by the first name of each.
        ties: the first name, by each further name of a tensor.
    """

    tensors: Mapping[str, torch.Tensor]
    ties: Mapping[str, str]


def stock_of(model: nn.Module) -> Stock:
    """Take stock of a model.

    Args:
        model: the model; it is only read.

    Returns:
        Its tensors and ties.

    Raises:
        StoreError: a tensor is of a kind that a file cannot hold, or shares memory with another
            one without being it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> model[1].weight = model[0].weight
        >>> list(stock_of(model).tensors), stock_of(model).ties
        (['0.weight'], {'1.weight': '0.weight'})
    """
    _check_extra_state(model)
    held_by_name = tensors_of(model)
    _check_names(model, held_by_name)
    first: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    for name, held in held_by_name.items():
        known = first.setdefault(id(held.tensor), name)
        if known != name:
            ties[name] = known
        else:
            _check(name, held)
            tensors[name] = held.tensor
    _check_memory(tensors)
    return Stock(tensors, ties)


def _check_extra_state(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StoreError(
                f"{class_name(type(module))} at {path!r} keeps state that is no tensor",
                found="get_extra_state",
                write="its state in register_buffer(...)",
            )


def _check_names(model: nn.Module, held: Mapping[str, Held]) -> None:
    """Check that the state dict consists of parameters and buffers under their own names.

    Raises:
        StoreError: some layers keep their weights elsewhere, as quantised ones do.
    """
    odd = sorted(set(model.state_dict()) ^ set(held))
    if odd:
        raise StoreError(
            f"the state dict of the model is not that of its parameters and buffers: {', '.join(odd[:3])}",
            found=f"{plural(len(odd), 'key')} of layers or hooks that make their own",
            write="save(<the model before it was quantised or wrapped>, ...)",
        )


def _check(name: str, held: Held) -> None:
    tensor, found = held.tensor, ""
    if type(tensor) not in _PLAIN:
        found = f"a {class_name(type(tensor))}"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        found = f"{str(tensor.dtype if tensor.is_quantized else tensor.layout).removeprefix('torch.')} values"
    elif tensor.is_meta:
        found = "a tensor on the meta device, which has no values"
    elif tensor.dtype not in DTYPES:
        found = f"{str(tensor.dtype).removeprefix('torch.')} values"
    if found:
        raise StoreError(
            f"{name!r} is of a kind that a file cannot hold",
            found=found,
            write="values first: load_weights(...)"
            if tensor.is_meta
            else "a dense tensor of a usual dtype: .to_dense(), .dequantize(), .to(torch.float32)",
        )


def _check_memory(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that no element of the memory of one tensor is also of another one.

    Raises:
        StoreError: it is; in a file they would come apart.
    """
    storages: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            # Not the address: tensors that are clones until they are written to have one address.
            storages.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    for names in storages.values():
        for one, other in _near(names, tensors):
            if _meet(tensors[one], tensors[other]):
                raise StoreError(
                    f"{one!r} and {other!r} share memory without being one tensor",
                    found=plural(len(names), "tensor") + " in one storage",
                    write="one parameter under both names, or a .clone() under one of them",
                )


def _near(names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of names whose tensors reach into each other's stretch of a storage."""
    ordered = sorted(names, key=lambda name: _span(tensors[name]))
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if _span(tensors[other])[0] >= _span(tensors[one])[1]:
                break
            yield one, other


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def _meet(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors of one storage, whose spans meet, have an element in common."""
    if one.element_size() != other.element_size():
        return True
    low = min(one.storage_offset(), other.storage_offset())
    high = max(_span(one)[1], _span(other)[1]) // one.element_size()
    taken = torch.zeros(high - low, dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset() - low).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset() - low).any())


def axes_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the order of the axes in memory, the outermost first; nothing where it is the usual one.

    Args:
        tensor: a strided tensor; of one that has gaps, the usual order is said.

    Example:
        >>> axes_of(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
        (0, 2, 3, 1)
    """
    if tensor.is_contiguous() and tensor.stride() == _strides(tensor.shape, tuple(range(tensor.ndim))):
        return ()
    last = (0, *range(2, tensor.ndim), 1)
    by_stride = tuple(sorted(range(tensor.ndim), key=tensor.stride().__getitem__, reverse=True))
    for axes in (last, by_stride) if tensor.ndim > 2 else (by_stride,):
        if tensor.stride() == _strides(tensor.shape, axes):
            return axes
    return ()


def empty(shape: tuple[int, ...], dtype: torch.dtype, axes: tuple[int, ...]) -> torch.Tensor:
    """Make a tensor whose axes lie in memory in an order; without one, in the usual order."""
    if not axes:
        return torch.empty(shape, dtype=dtype)
    return torch.empty_strided(shape, _strides(shape, axes), dtype=dtype)


def _strides(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)

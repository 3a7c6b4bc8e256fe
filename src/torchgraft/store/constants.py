"""Constants: tensors that no state dict holds, so that whoever builds the model has to compute them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from torchgraft.alignment.load.tensors import Held
from torchgraft.graph.following import EXAMPLE
from torchgraft.paths import join_path
from torchgraft.sources.skeleton import constants
from torchgraft.store.stock import BY_NAME

Measure = tuple[str, tuple[int, ...], float, float]
"""Dtype, shape, sum, and sum weighted by place: alike also where the last bits are another machine's."""
_NEAR = 1e-4
_SOURCES = ("orig", "v")
"""What hooks of torch call the parameters from which they compute a weight before each forward."""


def measured(model: nn.Module) -> dict[str, Measure]:
    """Measure the constants of a model.

    Args:
        model: the model; it is only read.

    Returns:
        By path.

    Example:
        >>> model = nn.Module()
        >>> model.register_buffer("scale", torch.tensor([1.0, 3.0]), persistent=False)
        >>> measured(model)
        {'scale': ('float32', (2,), 4.0, 3.5)}
    """
    return {path: _measure(tensor) for path, tensor in _computed(model)}


def cast(model: nn.Module, wanted: Mapping[str, Measure]) -> None:
    """Give the buffers that no state dict holds the dtypes that they had when they were measured."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name in module._non_persistent_buffers_set:
            buffer, known = module._buffers.get(name), wanted.get(join_path(path, name))
            dtype = BY_NAME.get(known[0]) if known else None
            if buffer is not None and dtype not in (None, buffer.dtype):
                module._buffers[name] = buffer.to(dtype)


def buffers(model: nn.Module) -> dict[str, Held]:
    """Find the buffers that no state dict holds, in their places."""
    return {
        join_path(path, name): Held(module, name, tensor)
        for path, module in model.named_modules()
        for name, tensor in module._buffers.items()
        if tensor is not None and name in module._non_persistent_buffers_set
    }


def differing(model: nn.Module, wanted: Mapping[str, Measure], besides: Collection[str] = ()) -> list[str]:
    """Name the constants of a model that are not what was measured, or have no values.

    What is on one side alone is a table that a forward keeps for later runs.
    """
    found = {path: tensor for path, tensor in _computed(model) if path not in besides}
    lost = [path for path, tensor in found.items() if tensor.is_meta]
    known = [path for path in found if path in wanted and path not in lost]
    return lost + [path for path in known if not _alike(_measure(found[path]), wanted[path], found[path])]


def others(made: nn.Module, model: nn.Module) -> list[str]:
    """Name the constants of a model that are not bit for bit those of one that was made anew."""
    found, wanted = dict(_computed(made)), dict(_computed(model))
    both = [path for path in wanted if path in found]
    return [path for path in both if not _same(found[path], wanted[path])]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape, one.layout) != (other.dtype, other.shape, other.layout):
        return False
    if one.is_meta or one.layout is not torch.strided or one.is_quantized:
        return not one.is_meta
    flat = [t.detach().cpu().contiguous().flatten() for t in (one, other)]
    return flat[0].view(torch.uint8).equal(flat[1].view(torch.uint8))


def _computed(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Find the constants; not the example that a model remembers, nor what a hook computes anew."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, tensor in constants(model):
        anew = any(f"{path}_{end}" in parameters for end in _SOURCES)
        if not anew and EXAMPLE not in path.split("."):
            yield path, tensor


def _measure(tensor: torch.Tensor) -> Measure:
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = _values(tensor)
    places = (
        torch.linspace(0.5, 1, values.numel(), dtype=torch.float64) if values.numel() > 1 else values * 0 + 1
    )
    return dtype, tuple(tensor.shape), float(values.sum()), float((values * places).sum())


def _alike(one: Measure, other: Measure, tensor: torch.Tensor) -> bool:
    scale = _NEAR * (1e-6 + float(_values(tensor).abs().sum()))
    return one[:2] == other[:2] and all(abs(a - b) <= scale for a, b in zip(one[2:], other[2:], strict=True))


def _values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        return torch.zeros(0, dtype=torch.float64)
    plain = tensor.detach().cpu()
    real = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    # Masks hold infinities, which no sum tells apart.
    return real.flatten().double().nan_to_num(nan=3e3, posinf=2e3, neginf=-1e3).clamp(-1e30, 1e30)

"""Layers whose weight is something else where it is read, while their tensors keep their names."""

from __future__ import annotations

import copyreg
import functools

import torch
from torch import nn

from torchgraft.blocks.lora import WeightLoRA, weight_of

_ORIGIN = "_torchgraft_origin"


def adapt(layer: nn.Module) -> None:
    """Let every read of the weight of a layer go through the modules on it, its children."""
    if not is_adapted(layer):
        made = _adapted(type(layer), weight_of(layer))  # type: ignore[arg-type]  # classes have a hash
        object.__setattr__(layer, "__class__", made)


def is_adapted(layer: nn.Module) -> bool:
    """Return True if modules stand on the weight of a layer."""
    return hasattr(type(layer), _ORIGIN)


def release(layer: nn.Module) -> None:
    """Give a layer its class back once no module stands on its weight."""
    if is_adapted(layer) and not _on(layer):
        object.__setattr__(layer, "__class__", getattr(type(layer), _ORIGIN))


def _on(layer: nn.Module) -> list[WeightLoRA]:
    return [child for child in layer._modules.values() if isinstance(child, WeightLoRA)]


@functools.cache
def _adapted(origin: type[nn.Module], name: str) -> type[nn.Module]:
    """Make the class: a property of it hides the parameter, which stays where it is registered.

    This is how ``torch.nn.utils.parametrize`` works, but for the names of the state dict.
    """

    def read(layer: nn.Module) -> torch.Tensor | None:
        weight = layer._parameters[name]
        for module in _on(layer):
            weight = module(weight)
        return weight

    # Pickle finds no class that is made late, but asks how one of this kind is made again.
    metaclass = type("Adapted", (type(origin),), {})
    copyreg.pickle(metaclass, lambda cls: (_adapted, (getattr(cls, _ORIGIN), name)))
    body = {name: property(read), _ORIGIN: origin, "__module__": origin.__module__}
    made: type[nn.Module] = metaclass(origin.__name__, (origin,), body)
    return made

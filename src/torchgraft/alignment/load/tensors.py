"""The tensors of a model by the names of its state dict, and what they are tied to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import nn

from torchgraft.errors import TargetError
from torchgraft.graph.cow import cow, storage_of
from torchgraft.graph.draft import Draft
from torchgraft.paths import join_path
from torchgraft.select import Selector, Site
from torchgraft.select.globs import matches
from torchgraft.select.query import Query
from torchgraft.select.targets import Glob, Path


@attrs.frozen(eq=False)
class Held:
    """A tensor in its place.

    Args:
        module: the module that holds it.
        name: its name there.
        tensor: the tensor itself.
    """

    module: nn.Module
    name: str
    tensor: torch.Tensor

    @property
    def counts(self) -> bool:
        """Whether it is a count of batches: a buffer of one whole number."""
        whole = not (self.tensor.is_floating_point() or self.tensor.is_complex())
        return self.name in self.module._buffers and self.tensor.ndim == 0 and whole


def tensors_of(model: nn.Module) -> dict[str, Held]:
    """Return the tensors that a state dict of a model holds, under each of their names.

    The modules are asked and not ``state_dict``, whose hooks may hand out copies.
    """
    held: dict[str, Held] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        kept = {n: t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in (*module._parameters.items(), *kept.items()):
            if tensor is not None:
                held[join_path(path, name)] = Held(module, name, tensor)
    return held


def ties(held: Mapping[str, Held]) -> list[list[str]]:
    """Return the names under which each tensor stands."""
    groups: dict[int, list[str]] = {}
    for key, place in held.items():
        groups.setdefault(id(place.tensor), []).append(key)
    return list(groups.values())


def write(held: Mapping[str, Held], values: Mapping[str, torch.Tensor]) -> None:
    """Give tensors of a model other values; where they can, both share memory until one is written to.

    Args:
        held: the tensors of the model.
        values: values by name, of the shape and dtype that they have there.
    """
    counts = Counter(storage_of(place.tensor) for place in {id(p.tensor): p for p in held.values()}.values())
    for key, value in values.items():
        tensor = held[key].tensor
        plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and type(value) is torch.Tensor
        alike = value.device == tensor.device and value.stride() == tensor.stride()
        if plain and alike and counts[storage_of(tensor)] == 1 and _fills_its_storage(value):
            tensor.data = cow(value)
        else:
            tensor.copy_(value)


def _fills_its_storage(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is no part of something larger, which would be copied with it."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def excluded(draft: Draft, held: Mapping[str, Held], exclude: Sequence[Selector]) -> frozenset[str]:
    """Return the names of the tensors that selectors mean, and of those tied to them.

    Paths and globs may also name tensors themselves: ``"fc.bias"``, ``"**.running_mean"``.

    Raises:
        TargetError: a selector matches nothing, or an operation.
    """
    meant: set[int] = set()
    for selector in exclude:
        named = [key for key in held if _names(selector, key)]
        meant.update(id(held[key].tensor) for key in named)
        for site in selector.answer(Query(draft, own=True, strict=not named)):
            meant.update(map(id, _under(site)))
    return frozenset(key for key, place in held.items() if id(place.tensor) in meant)


def _names(selector: Selector, key: str) -> bool:
    if isinstance(selector, Glob):
        return matches(tuple(key.split(".")), tuple(selector.pattern.split(".")))
    return isinstance(selector, Path) and selector.path == key


def _under(site: Site) -> list[torch.Tensor]:
    if not site.is_module:
        raise TargetError(
            f"{site.path!r} is an operation, which has no tensors",
            found=f"a node of {site.owner or 'the root'}",
            write="the module that holds the tensors",
        )
    module = site.draft.get(site.path)
    return [*module.parameters(recurse=not site.own), *module.buffers(recurse=not site.own)]

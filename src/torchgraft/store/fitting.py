"""Put the tensors of a file in the places of a model that was built without values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from torchgraft.alignment.load.tensors import Held, tensors_of
from torchgraft.errors import StoreError
from torchgraft.store.constants import buffers
from torchgraft.store.cover import spread
from torchgraft.store.reading import Opened
from torchgraft.store.record import described, other_versions
from torchgraft.store.stock import DTYPES
from torchgraft.text import near, plural, write_dims

_SHOWN = 3
Places = Mapping[str, Sequence[Held]]


def fitted(model: nn.Module, file: Opened) -> Places:
    """Find the places of each tensor of a file, and check that all fit.

    Args:
        model: the model, without values; it is only read.
        file: the file; nothing of its tensors is read.

    Returns:
        By name of the file, the places that the tensor goes to.

    Raises:
        StoreError: tensors are missing or left over, or of another shape or dtype; or one place
            would take two of them.
    """
    beside, ties = buffers(model), file.record.ties
    tables = {path: beside[path] for path in file.record.tables if path in beside}
    held = {**tensors_of(model), **tables}
    keys = {name: ties.get(name, name) for name in held}
    _check(file, "has no", [n for n in keys if keys[n] not in file.tensors], file.tensors)
    left = [key for key in file.tensors if key not in set(keys.values())]
    left += [path for path in file.record.tables if path not in beside and path not in left]
    _check(file, "has, and the model has no place for,", left + [n for n in ties if n not in held], held)
    dtypes = spread(file.record.dtypes, keys.values())
    shapes, kinds, twice = [], [], []
    slots: dict[tuple[int, str], str] = {}
    for name, place in held.items():
        stored = file.tensors[keys[name]]
        built = held.get(keys[name], place).tensor.dtype
        wanted = dtypes.get(keys[name], DTYPES.get(built, str(built)))
        if name in tables:
            continue
        if stored.shape != tuple(place.tensor.shape):
            shapes.append(f"{name} {write_dims(stored.shape)}, not {write_dims(place.tensor.shape)}")
        elif stored.dtype != wanted:
            kinds.append(f"{name} {stored.dtype}, not {wanted}")
        if slots.setdefault((id(place.module), place.name), keys[name]) != keys[name]:
            twice.append(name)
    _check(file, "has in another shape:", shapes)
    _check(file, "has in another dtype:", kinds)
    _check(file, "has twice what is one tensor in the model:", twice)
    places: dict[str, list[Held]] = {}
    for name, key in keys.items():
        places.setdefault(key, []).append(held[name])
    return places


def put(tensor: torch.Tensor, places: Sequence[Held], device: torch.device, *, trainable: bool) -> None:
    """Put one tensor in all its places.

    Args:
        tensor: the tensor, which nobody else holds.
        places: where it goes.
        device: where it shall be.
        trainable: it gets a gradient, where it is a parameter.
    """
    value = tensor.to(device)
    parameters = [place.tensor for place in places if isinstance(place.tensor, nn.Parameter)]
    if parameters:
        value = nn.Parameter(value, trainable and (value.is_floating_point() or value.is_complex()))
        vars(value).update(vars(parameters[0]))
    for place in places:
        # By setattr, as some layers keep a second way to their parameters.
        setattr(place.module, place.name, value)


def _check(file: Opened, what: str, names: Sequence[str], known: Iterable[str] = ()) -> None:
    if names:
        other = other_versions(file.record)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise StoreError(
            f"{file.path.name!r} {what} {', '.join(names[:_SHOWN])}{more}",
            found="; ".join(
                t for t in (described(file.record), plural(len(file.tensors), "tensor"), other) if t
            ),
            near=near(names[0], known),
            write="load(path, base=<what built the model that was saved>), or a fresh copy of the file",
        )

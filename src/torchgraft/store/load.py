"""Load a model: rebuilt without memory from what a file says, and filled tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from torchgraft.edits.freeze import WANTED
from torchgraft.errors import GraftError, OptionError, StoreError
from torchgraft.store.cover import spread, turned
from torchgraft.store.fitting import fitted, put
from torchgraft.store.reading import opened, values
from torchgraft.store.rebuilding import Base, check_same, rebuilt
from torchgraft.store.record import Record
from torchgraft.text import literal, plural, spelled

_ROOM, _TIMES = 1 << 30, 4
"""What the builder of a base may fill: some room for tables, and the model in a wider dtype."""


@spelled
def load(path: str | Path, *, device: str | torch.device = "cpu", base: Base | None = None) -> nn.Module:
    """Load what ``save`` wrote.

    The base is built without memory, the steps are done on it, and each tensor is read into its
    place. Nothing in the file is run, no other file is opened, and nothing is fetched.

    Args:
        path: the file; of a model in several, the index, or the path that ``save`` was given.
        device: where the tensors shall be.
        base: the base or a function that builds it, where no source knows it; the edited model or
            a function that builds it, where a step was not written. It is only read.

    Returns:
        The model with its weights, modes, ties and history.

    Raises:
        CheckpointError: the file is missing, broken, or no model can be made from it.
        ModelError: the base is no model.
        OptionError: there is no such device.

    Example:
        >>> import tempfile
        >>> from torchgraft import pipe, save, swap_head
        >>> model = pipe(nn.Sequential(nn.Linear(3, 2)), swap_head(5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(model, f"{folder}/m.safetensors")
        ...     again = load(path, base=lambda: nn.Sequential(nn.Linear(3, 2)))
        >>> again[0].weight.equal(model[0].weight)
        True
    """
    where = device_named(device)
    try:
        file = opened(path)
        size = sum(tensor.size for tensor in file.tensors.values())
        model = rebuilt(file.record, base, limit=_ROOM + _TIMES * size)
        places = fitted(model, file)
        check_same(file.record, model)
        held = spread({"held": file.record.frozen}, places)
        orders = spread(file.record.axes, places)
        axes = {name: _axes(name, text, len(file.tensors[name].shape)) for name, text in orders.items()}
        for name, tensor in values(file, axes):
            put(tensor, places[name], where, trainable=name not in held)
    except GraftError as error:
        error.asked = error.asked or f"load({literal(str(path))}{'' if base is None else ', base=...'})"
        raise
    _settle(model, file.record, where)
    return model


def _settle(model: nn.Module, record: Record, device: torch.device) -> None:
    """Give the modules their modes, and bring what no file holds to the device."""
    modules = dict(model.named_modules(remove_duplicate=False))
    waiting = spread({"waiting": record.waiting}, modules)
    for path, training in turned(record.modes, modules).items():
        module: nn.Module = modules[path]
        module.training = training  # as it was, also where a layer is held
        if hasattr(module, WANTED):
            setattr(module, WANTED, path in waiting)
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            module._buffers[name] = buffer if buffer is None else buffer.to(device)


def device_named(device: str | torch.device) -> torch.device:
    """Return a device that torch has here.

    Raises:
        OptionError: it has none of that name.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise OptionError(
            "a device is one that torch has here",
            found=f"device={literal(device)}: {str(error).splitlines()[0][:160]}",
            write='device="cpu"',
        ) from error


def _axes(name: str, text: str, rank: int) -> tuple[int, ...]:
    words = text.split()
    if sorted(words) != sorted(map(str, range(rank))):
        raise StoreError(
            f"the record puts the axes of {name!r} into an order that they cannot have",
            found=f"{text[:80]!r} for {plural(rank, 'size')}",
            write="a fresh copy of the file",
        )
    return tuple(map(int, words))

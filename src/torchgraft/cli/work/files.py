"""Files of weights, as they are given on the command line: with a record of a model, or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from torchgraft.alignment.entry import Shape
from torchgraft.alignment.load.checkpoints import read_checkpoint
from torchgraft.errors import CheckpointError
from torchgraft.store.reading import KEY, SUFFIX, looked_at, read_record
from torchgraft.store.record import Record
from torchgraft.store.stock import DTYPES


@attrs.frozen
class Held:
    """What stands in a file.

    Args:
        path: the file, or the index of several.
        tensors: dtype and shape by name.
        record: what it says of its model; ``None`` for weights alone.
        metadata: what else it says.
        size: bytes of the tensors.
    """

    path: Path
    tensors: Mapping[str, tuple[str, Shape]]
    record: Record | None
    metadata: Mapping[str, str]
    size: int


def held(path: Path) -> Held:
    """Look at a file; of safetensors no tensor is read.

    Raises:
        CheckpointError: it is missing or broken.
    """
    check_regular(path)
    if path.suffix not in (SUFFIX, ".json"):
        found = read_checkpoint(path)
        kinds = {n: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in found.tensors.items()}
        return Held(path, kinds, None, found.metadata, sum(t.nbytes for t in found.tensors.values()))
    file, tensors, metadata = looked_at(path)
    record = read_record(path) if KEY in metadata else None
    told = {name: (stored.dtype, stored.shape) for name, stored in tensors.items()}
    other = {name: str(text) for name, text in metadata.items() if name != KEY}
    return Held(file, told, record, other, sum(stored.size for stored in tensors.values()))


def check_regular(path: Path) -> None:
    """Check that reading a file comes to an end.

    Raises:
        CheckpointError: it is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(
            f"{path.name!r} is no file of weights",
            asked=str(path),
            found="a folder" if path.is_dir() else "a pipe or a device",
            write="a .safetensors file, or one that torch.save wrote",
        )


def size_text(count: int) -> str:
    """Write a number of bytes for people.

    Example:
        >>> size_text(46_827_520)
        '46.8 MB'
    """
    if count < 1000:
        return f"{count} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"

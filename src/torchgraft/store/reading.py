"""Files of models: what stands in them is looked at first, tensors are read one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch

from torchgraft.alignment.files.container import Stored, listing
from torchgraft.alignment.files.streaming import fill
from torchgraft.errors import GraftError, StoreError
from torchgraft.store.record import Record
from torchgraft.store.stock import DTYPES, empty
from torchgraft.text import literal, plural, spelled

KEY = "torchgraft"
SUFFIX = ".safetensors"
INDEX = ".index.json"
_OF_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How its archives and its older files begin; as the length of a header, more than any has."""
_TORCH = {name: dtype for dtype, name in DTYPES.items()}


@attrs.frozen(eq=False)
class Opened:
    """A file, or an index and its shards, of which nothing but the beginning was read.

    Args:
        path: the file, or the index.
        tensors: where each tensor stands.
        record: what is said beside them.
    """

    path: Path
    tensors: Mapping[str, Stored]
    record: Record


@spelled
def read_record(path: str | Path) -> Record:
    """Read what a file was made from and how its model stands, without reading a tensor.

    Args:
        path: what ``save`` wrote.

    Returns:
        The record: base, steps, versions, modes, what is frozen.

    Raises:
        CheckpointError: the file is missing, broken, or has no record.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from torchgraft import save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_record(save(nn.Linear(3, 2), f"{folder}/m.safetensors")).base_class
        'Linear'
    """
    try:
        return opened(path).record
    except GraftError as error:
        error.asked = error.asked or f"read_record({literal(str(path))})"
        raise


def opened(path: str | Path) -> Opened:
    """Look at a file, or at an index and its shards.

    Raises:
        CheckpointError: the file is missing, broken, or has no record.
    """
    found, tensors, metadata = looked_at(path)
    text = metadata.get(KEY)
    if text is None:
        raise StoreError(
            f"{found.name!r} has weights alone and no record of a model",
            found=plural(len(tensors), "tensor"),
            write=f"pipe(<the model>, load_weights({literal(str(path))})), or read_checkpoint(...)",
        )
    return Opened(found, tensors, Record.from_text(text, f"the record in {found.name!r}"))


def looked_at(path: str | Path) -> tuple[Path, Mapping[str, Stored], Mapping[str, str]]:
    """Look at a file, or at an index and its shards, whether they have a record or not.

    Args:
        path: the file, the index, or the path of a model that became several files.

    Returns:
        The file or the index, where each tensor stands, and what is said beside them.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    found = _found(Path(path))
    _check_kind(found)
    return found, *listing(found)


def values(file: Opened, axes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a file, each into memory of its own.

    Args:
        file: the file.
        axes: order of the axes in memory, by name, where it is not the usual one.

    Yields:
        Name and tensor, in the order of the file.

    Raises:
        CheckpointError: the file became shorter.
    """
    for name, stored in sorted(file.tensors.items(), key=lambda item: (item[1].path, item[1].start)):
        tensor = torch.empty(stored.shape, dtype=_TORCH[stored.dtype])
        fill(tensor.view(-1).view(torch.uint8).numpy().data, stored)
        yield name, empty(stored.shape, tensor.dtype, axes[name]).copy_(tensor) if name in axes else tensor


def _found(path: Path) -> Path:
    """Take the file that is there: a model is one file, or an index beside the place of the file."""
    beside = path.with_name(path.name + INDEX)
    return beside if path.suffix != ".json" and not path.is_file() and beside.is_file() else path


def _check_kind(path: Path) -> None:
    """Check that a path is of a file that may be one of safetensors, or an index.

    Raises:
        StoreError: it is a pipe, which would be waited for without end, or what torch.save wrote.
    """
    start, waits = b"", False
    with contextlib.suppress(OSError, ValueError):  # said by whoever reads it
        waits = path.exists() and not (path.is_file() or path.is_dir())
    if waits:
        raise StoreError(f"{path.name!r} is no regular file", write="the path of a file")
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_OF_TORCH):
        raise StoreError(
            f"{path.name!r} is a file of torch.save, with tensors and no model",
            write=f"get_model(<name>, weights={literal(str(path))}), or load_weights({literal(str(path))})",
        )

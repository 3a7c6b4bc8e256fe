"""Files of models: what stands in them is looked at first, tensors are read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import attrs
import torch

from torchgraft.alignment.files.container import Stored, listing
from torchgraft.alignment.files.strict_json import decoded
from torchgraft.errors import GraftError, StoreError
from torchgraft.store.record import Record
from torchgraft.store.stock import DTYPES, empty
from torchgraft.text import literal, plural, spelled

KEY = "torchgraft"
SUFFIX = ".safetensors"
INDEX = ".index.json"
_LONGEST = 16_000_000
_OF_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How its archives and its older files begin; as the length of a header, more than any has."""
_CHUNK = 1 << 22
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
    if not isinstance(text, str):
        raise StoreError(
            f"{found.name!r} has weights alone and no record of a model",
            found=plural(len(tensors), "tensor"),
            write=f"pipe(<the model>, load_weights({literal(str(path))})), or read_checkpoint(...)",
        )
    return Opened(found, tensors, Record.from_text(text, f"the record in {found.name!r}"))


def looked_at(path: str | Path) -> tuple[Path, Mapping[str, Stored], Mapping[str, object]]:
    """Look at a file, or at an index and its shards, whether they have a record or not.

    Args:
        path: the file, the index, or the path of a model that became several files.

    Returns:
        The file or the index, where each tensor stands, and what is said beside them.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    found = _found(Path(path))
    for file in (found, *_shards(found)):
        _check_header(file)
    tensors, metadata = listing(found)
    return found, tensors, _in_index(found) if found.suffix == ".json" else metadata


def values(file: Opened, axes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a file, each into memory of its own.

    Args:
        file: the file.
        axes: order of the axes in memory, by name, where it is not the usual one.

    Yields:
        Name and tensor, in the order of the file.

    Raises:
        StoreError: the file became shorter.
    """
    by_file: dict[Path, list[tuple[int, str]]] = {}
    for name, stored in file.tensors.items():
        by_file.setdefault(stored.path, []).append((stored.start, name))
    for path, places in by_file.items():
        with path.open("rb", buffering=0) as raw:
            for start, name in sorted(places):
                raw.seek(start)
                stored = file.tensors[name]
                tensor = empty(stored.shape, _TORCH[stored.dtype], axes.get(name, ()))
                for part in _parts(tensor):
                    _fill(part, raw, path)
                yield name, tensor


def _fill(part: torch.Tensor, raw: FileIO, path: Path) -> None:
    own = part if part.is_contiguous() else torch.empty(part.shape, dtype=part.dtype)
    view = own.view(-1).view(torch.uint8).numpy().data
    filled = 0
    while filled < len(view):
        got = raw.readinto(view[filled:])
        if not got:
            raise StoreError(
                f"{path.name!r} became shorter while it was read", write="a fresh copy of the file"
            )
        filled += got
    if own is not part:
        part.copy_(own)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give a tensor whole where its memory is in its own order; otherwise part by part."""
    if not tensor.numel():
        return
    if tensor.is_contiguous() or tensor.ndim < 2:
        yield tensor.view(-1)
        return
    row = tensor.nbytes // tensor.shape[0]
    if row > _CHUNK:
        for inner in tensor:
            yield from _parts(inner)
        return
    step = max(1, _CHUNK // row)
    for start in range(0, tensor.shape[0], step):
        yield tensor[start : start + step]


def _found(path: Path) -> Path:
    """Take the file that is there: a model is one file, or an index beside the place of the file."""
    beside = path.with_name(path.name + INDEX)
    return beside if path.suffix != ".json" and not path.is_file() and beside.is_file() else path


def _check_header(path: Path) -> None:
    """Check that there is no more to be read and taken apart than models have.

    Raises:
        StoreError: there is.
    """
    if _is_no_file(path):  # a pipe would be waited for without end
        raise StoreError(f"{path.name!r} is no regular file", write="the path of a file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except (OSError, ValueError):
        return  # said by whoever reads it
    if start.startswith(_OF_TORCH):
        raise StoreError(
            f"{path.name!r} is a file of torch.save, with tensors and no model",
            write=f"get_model(<name>, weights={literal(str(path))}), or load_weights({literal(str(path))})",
        )
    length = size if path.suffix == ".json" else int.from_bytes(start, "little")
    if _LONGEST < length <= size:
        raise StoreError(
            f"the header of {path.name!r} is longer than that of any model",
            found=f"{length:,} bytes, {_LONGEST:,} at most",
            write="read_checkpoint(...) for the tensors alone",
        )


def _is_no_file(path: Path) -> bool:
    try:
        return path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, ValueError):
        return False  # said by whoever reads it


def _shards(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return []
    _check_header(path)
    files = _index(path).get("weight_map")
    names = files.values() if isinstance(files, dict) else ()
    return [path.with_name(n) for n in dict.fromkeys(map(str, names)) if n and Path(n).name == n]


def _in_index(path: Path) -> dict[str, object]:
    metadata = _index(path).get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _index(path: Path) -> dict[str, object]:
    try:
        held = decoded(path.read_bytes())
    except (OSError, ValueError):
        return {}  # said by whoever reads it
    return held if isinstance(held, dict) else {}

"""Write the file of a model, or its shards: there in full or not at all, whenever the process ends."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.files.container import header
from torchgraft.alignment.files.streaming import blocks
from torchgraft.alignment.files.strict_json import decoded
from torchgraft.errors import OptionError
from torchgraft.store.reading import INDEX, SUFFIX
from torchgraft.store.stock import DTYPES
from torchgraft.text import literal

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_FORMAT = {"format": "pt"}
Tensors = Mapping[str, torch.Tensor]


def byte_count(size: int | str) -> int:
    """Read a size: a number of bytes, or text such as ``"5GB"`` or ``"512MiB"``.

    Raises:
        OptionError: it is neither.

    Example:
        >>> byte_count("1.5MB")
        1500000
    """
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found:
        base = 1024 if found[3] else 1000
        count = int(float(found[1]) * base ** _POWERS[found[2].upper()])
    else:
        count = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if count < 1:
        raise OptionError(
            "the size of a shard is a number of bytes",
            found=f"max_shard_size={literal(size)}",
            write='max_shard_size="5GB"',
        )
    return count


def write(path: Path, tensors: Tensors, told: Mapping[str, str], largest: int) -> Path:
    """Write one file, or several and an index if one would be too large.

    What takes the place of another form of the same model removes it, once it stands itself.

    Args:
        path: of the file; the shards and their index stand beside it.
        tensors: by name; they are only read.
        told: what stands beside them.
        largest: bytes of tensors in one file.

    Returns:
        The file that was written, or the index.
    """
    # Large elements first, so that each tensor is aligned.
    ordered = {n: tensors[n] for n in sorted(tensors, key=lambda n: -tensors[n].element_size())}
    index = path.with_name(path.name + INDEX)
    old = _shards_of(index)
    if sum(t.nbytes for t in ordered.values()) <= largest:
        with replacing([path]) as (file,):
            _pour(file, ordered, {**_FORMAT, **told})
        _remove(index, *old)
        return path
    parts = list(_parted(ordered, largest))
    names = _names(path, parts, "".join(told.values()))
    # Shards of other content have other names, so that the old ones are whole until the index is new.
    with replacing([path.with_name(name) for name in names]) as files:
        for file, part in zip(files, parts, strict=True):
            _pour(file, part, _FORMAT)
    with replacing([index]) as (file,):
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        size = sum(t.nbytes for t in ordered.values())
        held = {"metadata": {"total_size": size, **_FORMAT, **told}, "weight_map": where}
        file.write(json.dumps(held, ensure_ascii=False, indent=1).encode())
    _remove(path, *(shard for shard in old if shard.name not in names))
    return index


def _pour(file: BinaryIO, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    file.write(header([(n, DTYPES[t.dtype], tuple(t.shape)) for n, t in tensors.items()], metadata))
    for tensor in tensors.values():
        file.writelines(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.numel():
        yield from blocks(plain if plain.ndim else plain.reshape(1))


def _parted(tensors: Tensors, largest: int) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > largest:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _names(path: Path, parts: list[dict[str, torch.Tensor]], record: str) -> list[str]:
    told = hashlib.sha256(record.encode())
    for part in parts:
        told.update(repr([(n, DTYPES[t.dtype], tuple(t.shape)) for n, t in part.items()]).encode())
        for tensor in part.values():
            for block in _bytes(tensor):
                told.update(block)
    stem, count = path.name.removesuffix(SUFFIX), len(parts)
    return [f"{stem}-{told.hexdigest()[:8]}-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]


def _shards_of(index: Path) -> list[Path]:
    """List the shards that an index of ours names, and no file of anyone else."""
    try:
        held = decoded(index.read_bytes())
    except (OSError, ValueError):
        return []
    files = held.get("weight_map") if isinstance(held, dict) else None
    stem = re.escape(index.name.removesuffix(SUFFIX + INDEX))
    ours = re.compile(rf"{stem}-[0-9a-f]{{8}}-\d{{5,}}-of-\d{{5,}}{re.escape(SUFFIX)}")
    names = (
        dict.fromkeys(files.values())
        if isinstance(files, dict) and all(isinstance(f, str) for f in files.values())
        else ()
    )
    return [index.with_name(name) for name in names if ours.fullmatch(name)]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

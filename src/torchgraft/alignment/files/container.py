"""The safetensors format: what stands where in a file, without reading the tensors.

Eight bytes with the length of the header, the header as JSON, then the tensors one after
the other. Headers come from anywhere, so every number in them is checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from torchgraft.alignment.entry import Shape
from torchgraft.alignment.files.strict_json import Reader, decoded
from torchgraft.errors import CheckpointError
from torchgraft.text import near, plural

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
METADATA = "__metadata__"
_LONGEST = 16_000_000
_MOST_AXES = 64
_READ = Reader(CheckpointError, "a fresh copy of the file")


@attrs.frozen
class Stored:
    """Where a tensor stands.

    Args:
        path: the file.
        dtype: its dtype, as the format writes it.
        shape: its shape.
        start: place of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: Shape
    start: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * BYTES[self.dtype]


Listing = tuple[dict[str, Stored], dict[str, str]]


def listing(path: Path) -> Listing:
    """List the tensors of a file, or of the shards that an index names.

    Args:
        path: a ``.safetensors`` file, or an index that ends in ``.json``.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        CheckpointError: a file is missing, cut off, or says what cannot be.
    """
    try:
        return _indexed(path) if path.suffix == ".json" else _single(path)
    except OSError as error:
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"{path.name!r} cannot be read", found=error.strerror or str(error), near=near(path.name, names)
        ) from error


def header(tensors: Sequence[tuple[str, str, Shape]], metadata: Mapping[str, str]) -> bytes:
    """Write the beginning of a file whose tensors follow in the order given.

    Args:
        tensors: name, dtype and shape of each.
        metadata: what else is known of them.
    """
    held: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * BYTES[dtype]
        held[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in memory, too
    return len(text).to_bytes(8, "little") + text


def _single(path: Path) -> Listing:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if _LONGEST < length <= size - 8:
            raise _too_long(path, length)
        if size < 8 or length > size - 8:
            raise CheckpointError(
                f"{path.name!r} is no whole safetensors file",
                found=f"{plural(size, 'byte')}, a header of {length:,}",
                write="a fresh copy of the file",
            )
        text = file.read(length)
    held = _decoded(path, text)
    metadata = {
        _READ.text(key, f"metadata of {path.name!r}"): _READ.text(value, f"metadata {key!r} of {path.name!r}")
        for key, value in _READ.mapping(held.pop(METADATA, {}), f"metadata of {path.name!r}").items()
    }
    tensors: dict[str, Stored] = {}
    spans: list[tuple[int, int]] = []
    for name, item in held.items():
        tensors[_READ.text(name, "a name")], span = _tensor(path, name, item, 8 + length)
        spans.append(span)
    _check_spans(path, spans, size - 8 - length)
    return tensors, metadata


def _tensor(path: Path, name: str, item: object, base: int) -> tuple[Stored, tuple[int, int]]:
    where = f"{name!r} in {path.name!r}"
    known = ("dtype", "shape", "data_offsets")
    held = _READ.mapping(item, where, known, known)
    dtype = _READ.text(held["dtype"], f"dtype of {where}")
    if dtype not in BYTES:
        raise _READ.wrong(f"dtype of {where}", f"one of {', '.join(BYTES)}", dtype, near(dtype, BYTES))
    shape = _READ.numbers(held["shape"], f"shape of {where}")
    if len(shape) > _MOST_AXES:  # a product of many large sizes takes hours
        raise _READ.wrong(f"shape of {where}", f"of at most {_MOST_AXES} sizes", f"{len(shape):,} sizes")
    offsets = _READ.numbers(held["data_offsets"], f"data_offsets of {where}")
    size = math.prod(shape) * BYTES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise _READ.wrong(f"data_offsets of {where}", f"two that are {size:,} apart", offsets)
    return Stored(path, dtype, shape, base + offsets[0]), (offsets[0], offsets[1])


def _check_spans(path: Path, spans: list[tuple[int, int]], size: int) -> None:
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise CheckpointError(
                f"tensors of {path.name!r} overlap, or leave a gap",
                found=f"one ends at {end:,}, the next begins at {start:,}",
                write="a fresh copy of the file",
            )
        end = stop
    if end != size:
        raise CheckpointError(
            f"{path.name!r} is cut off, or has a tail that is no tensor",
            found=f"{size:,} bytes of tensors, the header tells of {end:,}",
            write="a fresh copy of the file",
        )


def _indexed(path: Path) -> Listing:
    size = path.stat().st_size
    if size > _LONGEST:
        raise _too_long(path, size)
    held = _READ.mapping(
        _decoded(path, path.read_bytes()), f"the index {path.name!r}", needed=("weight_map",)
    )
    files: dict[str, str] = {}
    for key, value in _READ.mapping(held["weight_map"], f"weight_map of {path.name!r}").items():
        name = _READ.text(value, f"the file of {key!r}")
        # An index speaks of files beside it, and of no others.
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise _READ.wrong(f"the file of {key!r}", "a .safetensors file beside the index", name)
        files[key] = name
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    shards: dict[str, dict[str, Stored]] = {}
    for name in dict.fromkeys(files.values()):
        shards[name], told = listing(path.with_name(name))
        metadata = told | metadata
    own = held.get("metadata")
    metadata |= {k: v for k, v in own.items() if isinstance(v, str)} if isinstance(own, dict) else {}
    for key, name in files.items():
        if key not in shards[name]:
            raise CheckpointError(
                f"the index {path.name!r} says that {key!r} is in {name!r}, and it is not",
                found=plural(len(shards[name]), "tensor"),
                near=near(key, shards[name]),
                write="the index and the shards of one download",
            )
        tensors[key] = shards[name][key]
    return tensors, metadata


def _too_long(path: Path, length: int) -> CheckpointError:
    return CheckpointError(
        f"the header of {path.name!r} is longer than that of any model",
        found=f"{length:,} bytes, {_LONGEST:,} at most",
        write="read_checkpoint(...) for the tensors alone",
    )


def _decoded(path: Path, text: bytes) -> dict[str, object]:
    try:
        held = decoded(text.decode())
    except ValueError as error:
        raise CheckpointError(
            f"{path.name!r} has no header that can be read",
            found=str(error)[:160],
            write="a fresh copy of the file",
        ) from error
    return _READ.mapping(held, f"the header of {path.name!r}")

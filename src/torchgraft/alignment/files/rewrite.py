"""Apply an alignment to files of weights, one tensor at a time and without any model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import attrs

from torchgraft.alignment.alignment import Alignment, Entry
from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.files.container import BYTES, METADATA, Stored, header, listing
from torchgraft.alignment.files.streaming import Stream
from torchgraft.alignment.maps.apply import check_kinds
from torchgraft.errors import AlignmentError, OptionError
from torchgraft.text import literal, near, plural, spelled


@attrs.frozen
class _Shard:
    """Entries that go into one file, with the dtype that each of them has."""

    entries: tuple[tuple[Entry, str], ...]
    size: int


@spelled
def apply_to_file(
    alignment: Alignment,
    source_path: str | Path,
    target_path: str | Path,
    *,
    max_shard_size: int | None = None,
) -> tuple[Path, ...]:
    """Write the target's tensors to a safetensors file, out of a file of the source's.

    Memory is bounded by the largest tensor; what keeps its order is copied and never held.
    The files are there in full at the end, or not at all.

    Args:
        alignment: where each tensor comes from.
        source_path: a ``.safetensors`` file, or the ``.safetensors.index.json`` of shards.
        target_path: the ``.safetensors`` file to write; its metadata is the source's, without
            the record of the model that the source was saved from.
        max_shard_size: bytes of tensors in one file; where there are more, shards are
            written beside ``target_path`` with an index that Hugging Face reads.

    Returns:
        The files written; the index is the last.

    Raises:
        AlignmentError: the source does not hold what the alignment takes from.
        CheckpointError: a source is no whole safetensors file.
        OptionError: the target is no ``.safetensors`` file, or the size is out of range.

    Example:
        >>> import tempfile, torch
        >>> from torchgraft.alignment.alignment import Part
        >>> from safetensors.torch import load_file, save_file
        >>> renamed = Alignment({"old": (2,)}, {"new": (2,)}, (Entry("new", (Part("old"),)),))
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"old": torch.tensor([1, 2])}, folder / "a.safetensors")
        >>> [path] = apply_to_file(renamed, folder / "a.safetensors", folder / "b.safetensors")
        >>> load_file(path)
        {'new': tensor([1, 2])}

    Source:
        The format: github.com/huggingface/safetensors, README.
    """
    target = Path(target_path)
    _check_options(target, max_shard_size)
    tensors, metadata = listing(Path(source_path))
    metadata.pop("torchgraft", None)  # it tells how the source was made, and would be wrong here
    shards = _shards(alignment, _dtypes(alignment, tensors), max_shard_size)
    paths = _paths(target, len(shards))
    with Stream(tensors) as stream, replacing(paths) as files:
        for shard, file in zip(shards, files, strict=False):
            told = [(entry.target, dtype, alignment.target[entry.target]) for entry, dtype in shard.entries]
            file.write(header(told, metadata))
            for entry, dtype in shard.entries:
                for chunk in stream.chunks(entry, dtype):
                    file.write(chunk)
        if len(shards) > 1:
            files[-1].write(_index(shards, paths))
    return paths


def _dtypes(alignment: Alignment, tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Return the dtype of each target tensor, after checking all that is taken from."""
    dtypes: dict[str, str] = {}
    for entry in alignment.entries:
        if entry.target == METADATA:
            raise AlignmentError(f"{METADATA!r} is no name for a tensor in a safetensors file")
        for key in entry.keys:
            if key not in tensors:
                close = near(key, tensors)
                raise AlignmentError(
                    f"{key!r} is not in the file",
                    asked=f"{entry.target!r} takes from it",
                    found=plural(len(tensors), "tensor"),
                    near=close,
                    write=literal(close[0]) if close else "the file that the alignment was made for",
                )
            if tensors[key].shape != alignment.source[key]:
                raise AlignmentError(
                    f"{key!r} has another shape than the alignment was made for",
                    asked=f"{alignment.source[key]}",
                    found=f"{tensors[key].shape}",
                    write="the file that the alignment was made for",
                )
        kinds = {key: tensors[key].dtype for key in entry.keys}
        check_kinds(entry, kinds)
        dtypes[entry.target] = next(iter(kinds.values()), "F32")
    return dtypes


def _shards(alignment: Alignment, dtypes: Mapping[str, str], most: int | None) -> list[_Shard]:
    """Fill one file after the other; a tensor that is larger than a file gets its own."""
    shards: list[_Shard] = []
    held: list[tuple[Entry, str]] = []
    size = 0
    for entry in alignment.entries:
        dtype = dtypes[entry.target]
        count = math.prod(alignment.target[entry.target]) * BYTES[dtype]
        if held and most is not None and size + count > most:
            shards.append(_Shard(_aligned(held), size))
            held, size = [], 0
        held.append((entry, dtype))
        size += count
    return [*shards, _Shard(_aligned(held), size)]


def _aligned(held: list[tuple[Entry, str]]) -> tuple[tuple[Entry, str], ...]:
    """Put wide elements first, so that all begin at a multiple of their size."""
    return tuple(sorted(held, key=lambda item: -BYTES[item[1]]))


def _paths(target: Path, count: int) -> tuple[Path, ...]:
    if count == 1:
        return (target,)
    if target.exists():
        raise OptionError(
            f"{target.name!r} is there already, and readers would take it and not the shards",
            asked=f"{count} shards beside {str(target)!r}",
            write="another folder, or remove it first",
        )
    names = [f"{target.stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return tuple(target.with_name(name) for name in (*names, f"{target.name}.index.json"))


def _index(shards: list[_Shard], paths: tuple[Path, ...]) -> bytes:
    files = {
        entry.target: path.name
        for shard, path in zip(shards, paths, strict=False)
        for entry, _ in shard.entries
    }
    told = {"metadata": {"total_size": sum(shard.size for shard in shards)}, "weight_map": files}
    return (json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _check_options(target: Path, most: int | None) -> None:
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise OptionError(
            "the target is a .safetensors file in a folder that is there",
            found=str(target),
            write=literal(str(target.with_suffix(".safetensors"))),
        )
    if most is not None and (type(most) is not int or most < 1):
        raise OptionError(
            "the size of a shard is a number of bytes from 1",
            found=f"max_shard_size={literal(most)}",
            write="max_shard_size=5 * 10**9",
        )

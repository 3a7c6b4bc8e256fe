"""Apply an alignment to files of weights, one tensor at a time and without any model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchgraft.alignment.alignment import Alignment, Entry
from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.files.container import BYTES, METADATA, Stored, header, listing
from torchgraft.alignment.files.streaming import blocks, read
from torchgraft.alignment.maps.apply import check_kinds, made
from torchgraft.errors import AlignmentError, OptionError
from torchgraft.text import literal, near, plural, spelled


@spelled
def apply_to_file(
    alignment: Alignment,
    source_path: str | Path,
    target_path: str | Path,
    *,
    max_shard_size: int | None = None,
) -> tuple[Path, ...]:
    """Write the target's tensors to a safetensors file, out of a file of the source's.

    One tensor is held at a time, with what it is made of.
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
    dtypes = _dtypes(alignment, tensors)
    sizes = {key: math.prod(alignment.target[key]) * BYTES[dtype] for key, dtype in dtypes.items()}
    shards = [
        sorted(shard, key=lambda entry: -BYTES[dtypes[entry.target]])  # all begin at a multiple of their size
        for shard in _shards(alignment.entries, sizes, max_shard_size)
    ]
    paths = _paths(target, len(shards))
    with replacing(paths) as files:
        for shard, file in zip(shards, files, strict=False):
            file.write(
                header([(e.target, dtypes[e.target], alignment.target[e.target]) for e in shard], metadata)
            )
            for entry in shard:
                state = {key: read(tensors[key]) for key in entry.keys}
                shape = alignment.target[entry.target]
                for block in blocks(made(entry, alignment.source, shape, state).reshape(-1)):
                    file.write(block)
        if len(shards) > 1:
            files[-1].write(_index(shards, paths, sum(sizes.values())))
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


def _shards(entries: Sequence[Entry], sizes: Mapping[str, int], most: int | None) -> list[list[Entry]]:
    """Fill one file after the other; a tensor that is larger than a file gets its own."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and most is not None and filled + sizes[entry.target] > most:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += sizes[entry.target]
    return shards


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


def _index(shards: list[list[Entry]], paths: tuple[Path, ...], size: int) -> bytes:
    files = {e.target: path.name for shard, path in zip(shards, paths, strict=False) for e in shard}
    told = {"metadata": {"total_size": size}, "weight_map": files}
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

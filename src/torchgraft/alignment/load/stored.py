"""Files of weights: read as data alone, nothing in them is ever run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from torchgraft.alignment.files.strict_json import decoded
from torchgraft.errors import CheckpointError
from torchgraft.text import kind, near, plural

_CODE = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported class (\S+)")


def read_file(path: Path) -> tuple[object, dict[str, str]]:
    """Read what a file holds, and the metadata beside it.

    Args:
        path: a ``.safetensors`` file, an index of shards (``.index.json``), or a file of
            ``torch.save``, which is read with ``weights_only=True`` always.

    Raises:
        CheckpointError: there is no such file, or it cannot be read as data.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        names = sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
        close = names if path.is_dir() else near(path.name, names)
        raise CheckpointError(
            f"{path.name!r} is a folder" if path.is_dir() else f"there is no file {path.name!r}",
            found=f"{plural(len(names), 'file')} in {str(folder)!r}"
            if folder.is_dir()
            else f"no folder {str(folder)!r}",
            near=close,
            write=repr(str(folder / close[0])) if close else "the path of a file of weights",
        )
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _shards(path) if path.suffix == ".json" else (_pickled(path), {})
    except OSError as error:
        raise CheckpointError(
            f"{path.name!r} cannot be read",
            found=_first_line(error),
            write="a file that may be read",
        ) from error


def _safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            held = {key: file.get_tensor(key) for key in keys}
            metadata = dict(file.metadata() or {})
        with path.open("rb") as raw:
            header = raw.read(int.from_bytes(raw.read(8), "little"))
        decoded(header)
    except (SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name!r} is no whole safetensors file",
            found=_first_line(error),
            write="a fresh copy of the file",
        ) from error
    return held, metadata


def _shards(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    try:
        index = decoded(path.read_text("utf-8"))
    except ValueError as error:
        raise _no_index(path, _first_line(error)) from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise _no_index(path, f"{kind(index)} without a weight_map")
    held: dict[str, object] = {}
    for name in dict.fromkeys(map(str, files.values())):
        # Files beside it, and no index of indices.
        if not name or Path(name).name != name or name.endswith(".json"):
            raise _no_index(path, f"what is no file of tensors beside it: {name!r}")
        shard, _ = read_file(path.with_name(name))
        wanted = [key for key, where in files.items() if where == name]
        if not isinstance(shard, Mapping) or any(key not in shard for key in wanted):
            lost = [key for key in wanted if not isinstance(shard, Mapping) or key not in shard]
            raise _no_index(path, f"{name!r} has no {lost[0]!r}")
        held.update((key, shard[key]) for key in wanted)
    told = index.get("metadata") if isinstance(index, dict) else None
    metadata = {k: v for k, v in told.items() if isinstance(v, str)} if isinstance(told, dict) else {}
    return {key: held[key] for key in files}, metadata


def _pickled(path: Path) -> object:
    with path.open("rb") as raw:
        start = raw.read(4)
    zipped = start == b"PK\x03\x04"
    if not (zipped or start[:1] == b"\x80"):
        raise CheckpointError(
            f"{path.name!r} is no checkpoint, or not a whole one",
            found="an empty file" if not start else f"a file that starts with {start!r}",
            write="a .safetensors file, or one that torch.save wrote",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on files of other writers, which are read or refused below
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except Exception as error:  # hostile bytes raise anything
        code = _CODE.search(str(error))
        if code is not None:
            raise CheckpointError(
                f"{path.name!r} holds code, which is not run: only tensors are read",
                found=f"{code[1] or code[2]}, which torch runs where you trust the file",
                write=f'load_weights(torch.load("{path}", weights_only=False))',
            ) from error
        raise CheckpointError(
            f"{path.name!r} is no checkpoint, or not a whole one",
            found=_first_line(error),
            write="a .safetensors file, or one that torch.save wrote",
        ) from error


def _no_index(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is no index of shards",
        found=found,
        write='{"weight_map": {"<tensor>": "<file beside it>"}}',
    )


def _first_line(error: Exception) -> str:
    said = (str(error).strip() or "nothing more").splitlines()[0]
    return f"{type(error).__name__}: {said[:160]}"

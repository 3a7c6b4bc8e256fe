"""Files of weights: read as data alone, nothing in them is ever run."""

from __future__ import annotations

import argparse
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import _weights_only_unpickler as unpickler

from torchgraft.alignment.files.strict_json import decoded
from torchgraft.errors import CheckpointError
from torchgraft.text import kind, literal, near, plural

_CODE = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported class (\S+)")
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0a"  # how files of torch.save start
_WEIGHTS = (".safetensors", ".index.json", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".pkl")


@attrs.define
class Numbers:
    """Stand for numpy's dtypes and arrays, whose own code trusts what it is given."""

    code: str = ""
    array: object = None

    def __setstate__(self, state: Sequence[object]) -> None:
        if self.code:
            self.code = f"{state[1]}{self.code}"
            return
        _, shape, kind, columns, raw = state
        if isinstance(kind, Numbers) and isinstance(raw, (str, bytes)):
            raw = raw.encode("latin1") if isinstance(raw, str) else raw
            flat = np.frombuffer(raw, kind.code.replace("|", "="))
            self.array = flat.reshape(shape, order="F" if columns else "C")  # type: ignore[call-overload]  # numpy checks it


_HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")
_DATA: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace,
    Numbers,
    *((PurePosixPath, f"{home}.PosixPath") for home in ("pathlib", "pathlib._local")),
    *((lambda *_: Numbers(), f"{home}.{name}") for home in _HOMES for name in ("_reconstruct", "scalar")),
    (Numbers, "numpy.ndarray"),
    (lambda code, *_: Numbers(code), "numpy.dtype"),
]
"""What a pickle may name besides what torch allows: settings, paths and numbers; none of it is numpy's."""
_ALONE = threading.Lock()


def read_file(path: Path) -> tuple[object, dict[str, str]]:
    """Read what a file holds, and the metadata beside it.

    Args:
        path: a ``.safetensors`` file, an index of shards (``.index.json``), arrays of numpy
            (``.npz``), or a pickle, which torch's ``weights_only`` unpickler reads always.

    Raises:
        CheckpointError: there is no such file, or it cannot be read as data.
    """
    if not path.is_file():
        raise _no_file(path)
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        if path.suffix == ".npz":
            return _arrays(path), {}
        return _shards(path) if path.suffix == ".json" else (_pickled(path), {})
    except OSError as error:
        raise CheckpointError(
            f"{path.name!r} cannot be read",
            found=_first_line(error),
            write="a file that may be read",
        ) from error


def _no_file(path: Path) -> CheckpointError:
    folder = path if path.is_dir() else path.parent
    names = sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
    files = tuple(name for name in names if name.endswith(_WEIGHTS))
    close = files if path.is_dir() else near(path.name, names)
    write = repr(str(folder / close[0])) if close else "the path of a file of weights"
    if path.is_dir() and ".metadata" in names:
        close, save = (), "dcp_to_torch_save"
        write = f"from torch.distributed.checkpoint.format_utils import {save}; "
        write += f'{save}("{path}", "{path}.pth")'
    error = CheckpointError(
        f"{path.name!r} is a folder" if path.is_dir() else f"there is no file {path.name!r}",
        found=f"{plural(len(names), 'file')} in {str(folder)!r}"
        if folder.is_dir()
        else f"no folder {str(folder)!r}",
        near=close[:3],
        write=write,
    )
    if close:
        error.swap = literal(str(path)), literal(str(folder / close[0]))
    return error


def _arrays(path: Path) -> dict[str, object]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # hostile bytes raise anything
        raise _no_checkpoint(path, _first_line(error)) from error


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
    if start != _ZIP and start[:1] != b"\x80":
        found = "an empty file" if not start else f"a file that starts with {start!r}"
        raise _no_checkpoint(path, found)
    trusted = f'load_weights(torch.load("{path}", weights_only=False))'
    if start not in (_ZIP, _LEGACY):
        trusted = f'load_weights(pickle.load(open("{path}", "rb"), encoding="latin1"))'
    try:
        # The list is that of the process: others read after this, and what users put there stays.
        with _ALONE, warnings.catch_warnings(), torch.serialization.safe_globals(_lacking()):
            warnings.simplefilter("ignore")  # on files of other writers, which are read or refused below
            if start in (_ZIP, _LEGACY):
                return torch.load(path, weights_only=True, map_location="cpu", mmap=start == _ZIP)
            with path.open("rb") as raw:
                return unpickler.load(raw, encoding="latin1")
    except Exception as error:  # hostile bytes raise anything
        code = _CODE.search(str(error))
        if code is not None:
            raise CheckpointError(
                f"{path.name!r} holds code, which is not run: only tensors are read",
                found=f"{code[1] or code[2]}, which torch runs where you trust the file",
                write=trusted,
            ) from error
        script = "TorchScript" in str(error)
        if script or (path.suffix == ".pkl" and "Unsupported operand" in str(error)):
            what = "an archive of TorchScript" if script else "a pickle of a later protocol"
            if script:
                trusted = f'load_weights(torch.jit.load("{path}").state_dict())'
            raise CheckpointError(
                f"{path.name!r} is {what}, which torch does not read as data alone",
                found=_first_line(error),
                write=f"{trusted}, where you trust the file",
            ) from error
        raise _no_checkpoint(path, _first_line(error)) from error


def _lacking() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    known = torch.serialization.get_safe_globals()
    return [one for one in _DATA if one not in known]


def _no_checkpoint(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is no checkpoint, or not a whole one",
        found=found,
        write="a .safetensors file, or one that torch.save wrote",
    )


def _no_index(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is no index of shards",
        found=found,
        write='{"weight_map": {"<tensor>": "<file beside it>"}}',
    )


def _first_line(error: Exception) -> str:
    said = (str(error).strip() or "nothing more").splitlines()[0]
    return f"{type(error).__name__}: {said[:160]}"

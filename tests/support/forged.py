"""Files of models that were tampered with: a part of a valid one is exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def parts(raw: bytes) -> tuple[dict, dict, bytes]:
    """Take a file apart: its header, the record in it, and the tensors."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["torchgraft"]), raw[8 + length :]


def joined(header: dict | bytes, record: dict | str | None, data: bytes) -> bytes:
    """Put a file together again; offsets stand as they are."""
    if isinstance(header, dict):
        if record is not None:
            text = record if isinstance(record, str) else json.dumps(record)
            header["__metadata__"]["torchgraft"] = text
        header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def forge(path: Path, change: Callable[[dict, dict], object]) -> Path:
    """Write a file in which header or record are changed in place, or exchanged by what is returned."""
    header, record, data = parts(path.read_bytes())
    made = change(header, record)
    forged = path.with_name("forged.safetensors")
    forged.write_bytes(joined(header, record if made is None else made, data))
    return forged


def without(header: dict, name: str, data: bytes) -> tuple[dict, bytes]:
    """Take a tensor out of a file."""
    start, end = header.pop(name)["data_offsets"]
    for key, item in header.items():
        if key != "__metadata__" and item["data_offsets"][0] >= end:
            item["data_offsets"] = [place - (end - start) for place in item["data_offsets"]]
    return header, data[:start] + data[end:]

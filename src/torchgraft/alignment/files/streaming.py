"""The bytes of one target tensor, chunk by chunk, out of files of source tensors.

What keeps its order is copied in chunks and never held; only what is turned is read in full.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch

from torchgraft.alignment.entry import Entry, Part, Shape, joined_shape, part_shape, seen_shape
from torchgraft.alignment.files.container import BYTES, Stored
from torchgraft.alignment.maps.apply import seen
from torchgraft.errors import CheckpointError

_CHUNK = 1 << 22
# Elements are moved and never computed with, so that their size is all that counts.
_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Stream:
    """Read tensors of files in chunks; close it after use.

    Args:
        tensors: where they stand.
    """

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self._tensors = tensors
        self._shapes = {key: stored.shape for key, stored in tensors.items()}
        self._buffer = memoryview(bytearray(_CHUNK))
        self._files: dict[Path, FileIO] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def chunks(self, entry: Entry, dtype: str) -> Iterator[memoryview]:
        """Give the bytes of one target tensor; a chunk is valid until the next one is taken."""
        if not entry.axes:
            for part in entry.parts:
                yield from self._part(part, dtype)
            return
        shape = joined_shape(entry, self._shapes)
        joined = memoryview(bytearray(math.prod(shape) * BYTES[dtype]))
        filled = 0
        for part in entry.parts:
            for chunk in self._part(part, dtype):
                joined[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        yield from blocks(_as_tensor(joined, dtype, shape).permute(entry.axes))

    def _part(self, part: Part, dtype: str) -> Iterator[memoryview]:
        if not part.key:
            left = math.prod(part.view) * BYTES[dtype]
            zeros = memoryview(bytes(min(left, _CHUNK)))
            for start in range(0, left, _CHUNK):
                yield zeros[: left - start]
            return
        stored = self._tensors[part.key]
        if part.axes:
            held = memoryview(bytearray(stored.size))
            self._fill(held, stored, stored.start)
            yield from blocks(seen(part, _as_tensor(held, dtype, stored.shape)))
            return
        row = math.prod(seen_shape(part, self._shapes)[1:]) * BYTES[dtype]
        start = stored.start + (part.rows[0] * row if part.rows else 0)
        stop = start + math.prod(part_shape(part, self._shapes)) * BYTES[dtype]
        for place in range(start, stop, _CHUNK):
            chunk = self._buffer[: stop - place]
            self._fill(chunk, stored, place)
            yield chunk

    def _fill(self, held: memoryview, stored: Stored, place: int) -> None:
        file = self._files.get(stored.path)
        if file is None:
            file = self._stack.enter_context(stored.path.open("rb", buffering=0))
            self._files[stored.path] = file
        file.seek(place)
        filled = 0
        while filled < len(held):
            got = file.readinto(held[filled:])
            if not got:
                raise CheckpointError(
                    f"{stored.path.name!r} became shorter while it was read", write="a fresh copy of the file"
                )
            filled += got


def _as_tensor(held: memoryview, dtype: str, shape: Shape) -> torch.Tensor:
    kind = _OF_SIZE[BYTES[dtype]]
    return (torch.frombuffer(held, dtype=kind) if len(held) else torch.empty(0, dtype=kind)).reshape(shape)


def blocks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Give the bytes of a tensor of any device, in its order, a block of its first axis at a time."""
    row = tensor.nbytes // max(1, tensor.shape[0])
    if row > _CHUNK:
        for inner in tensor:
            yield from blocks(inner)
        return
    step = max(1, _CHUNK // max(1, row))
    for start in range(0, tensor.shape[0], step):
        # A copy on write stays one: of the tensor itself, nothing but its values is taken.
        block = tensor[start : start + step].clone(memory_format=torch.contiguous_format).cpu()
        yield block.reshape(-1).view(torch.uint8).numpy().data

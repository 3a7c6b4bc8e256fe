"""Tensors of files, read one at a time, and the bytes of tensors, to be written block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchgraft.alignment.files.container import BYTES, Stored
from torchgraft.errors import CheckpointError

_CHUNK = 1 << 22
# Elements are moved and never computed with, so that their size is all that counts.
_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def read(stored: Stored) -> torch.Tensor:
    """Read a tensor as whole numbers of the size of its elements.

    Raises:
        CheckpointError: the file became shorter.
    """
    held = bytearray(stored.size)
    fill(memoryview(held), stored)
    kind = _OF_SIZE[BYTES[stored.dtype]]
    return (torch.frombuffer(held, dtype=kind) if held else torch.empty(0, dtype=kind)).reshape(stored.shape)


def fill(held: memoryview, stored: Stored) -> None:
    """Read the bytes of a tensor of a file.

    Raises:
        CheckpointError: the file became shorter.
    """
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.start)
        filled = 0
        while filled < len(held):
            got = file.readinto(held[filled:])
            if not got:
                raise CheckpointError(
                    f"{stored.path.name!r} became shorter while it was read", write="a fresh copy of the file"
                )
            filled += got


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

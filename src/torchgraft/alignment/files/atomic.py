"""Files that are there in full or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Open files that take the place of others at the end, or not at all.

    Args:
        paths: where they will stand; put there in this order, once all are on the disk.

    Yields:
        The files to write.
    """
    beside = [path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.part") for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(path.open("xb")) for path in beside]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path, final in zip(beside, paths, strict=True):
            path.replace(final)
    finally:
        for path in beside:
            path.unlink(missing_ok=True)

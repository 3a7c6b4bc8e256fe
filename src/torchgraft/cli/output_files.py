"""Where results go: checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchgraft.errors import OptionError


def check_output(path: Path, option: str, suffixes: Sequence[str], *, force: bool) -> None:
    """Check that the file of an option can be written, and with ``force`` in the place of another."""
    asked, folder = f"{option} {path}", path.parent
    if not path.name.endswith(tuple(suffixes)) or path.is_dir():
        raise OptionError(
            f"{option} takes a file that ends in {' or '.join(suffixes)}",
            asked=asked,
            found="a folder" if path.is_dir() else path.suffix or "no ending",
            write=f"{option} {path / 'model' if path.is_dir() else path.with_suffix('')}{suffixes[0]}",
        )
    if not folder.is_dir():
        raise OptionError(
            f"the folder of {option} is not there",
            asked=asked,
            found="a file" if folder.exists() else f"no folder {str(folder)!r}",
            write=f"mkdir -p {folder}",
        )
    if not os.access(folder, os.W_OK):
        raise OptionError(
            f"the folder of {option} cannot be written to",
            asked=asked,
            found=str(folder),
            write="a folder of your own",
        )
    taken = [held for held in (path, path.with_name(f"{path.name}.index.json")) if held.exists()]
    if taken and not force:
        raise OptionError(
            f"{taken[0].name!r} is there already",
            asked=asked,
            found=f"{taken[0].stat().st_size:,} bytes",
            write=f"{option} {path} --force, or another name",
        )

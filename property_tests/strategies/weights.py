"""Weights that fit the head of every net, at hand and in a file."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from strategies.net import CLASSES
from strategies.parts import WIDTH

HEAD = {
    "head.weight": torch.arange(CLASSES * WIDTH, dtype=torch.float64).reshape(CLASSES, WIDTH) - 3,
    "head.bias": torch.ones(CLASSES, dtype=torch.float64),
}
_FOLDER = tempfile.TemporaryDirectory(prefix="torchgraft-")


@functools.cache
def head_file() -> str:
    """Write the weights into a file that is there as long as the tests run, and return its path."""
    path = str(Path(_FOLDER.name) / "head.safetensors")
    save_file(HEAD, path)
    return path

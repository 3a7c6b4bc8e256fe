"""Weights of Hugging Face models: the files beside a config, on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import attrs

from torchgraft.sources.remote import Remote, from_hub

_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)


@attrs.frozen
class HuggingFaceWeights:
    """Know the files of weights in a folder, or in the cache under the name of a repository."""

    def labels(self, name: str) -> Sequence[str]:
        """Name the files that are there, the one to prefer first."""
        return [label for label in _NAMES if self.remote(name, label).cached()]

    def kind(self, name: str) -> str:  # noqa: ARG002 - others have one
        """Name what may stand before a file: nothing."""
        return ""

    def files(self, name: str) -> Mapping[str, str]:  # noqa: ARG002 - others have them
        """Tell nothing: every model has files of these names."""
        return {}

    def remote(self, name: str, label: str) -> Remote:
        """Tell where a file is."""
        folder = Path(name).expanduser()
        path = folder / label
        if folder.is_dir():
            return Remote(label, folder, lambda: path if path.is_file() else None, lambda: _not_there(path))
        return from_hub(name, [label])


def _not_there(path: Path) -> NoReturn:
    raise FileNotFoundError(path)

"""Weights of Hugging Face models: the files beside a config, on this machine.

What a file holds has other names than what a model holds, for many kinds of models; how they are
turned into each other is known to transformers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
from torch import nn

from torchgraft.alignment.load.checkpoints import read_checkpoint
from torchgraft.errors import SourceError
from torchgraft.sources.hugging_face import HUGGING_FACE
from torchgraft.sources.remote import Remote, from_hub
from torchgraft.text import write_dims

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

    def files(self, name: str) -> Mapping[str, str]:  # noqa: ARG002 - the same for all
        """Tell which files transformers writes; they hold what it can turn into a model."""
        return {label: label for label in _NAMES}

    def remote(self, name: str, label: str) -> Remote:
        """Tell where a file is."""
        folder = Path(name).expanduser()
        path = folder / label
        if folder.is_dir():
            return Remote(label, folder, lambda: path if path.is_file() else None, lambda: _not_there(path))
        return from_hub(name, [label])

    def structured(self, name: str, label: str, options: Mapping[str, object]) -> nn.Module:  # noqa: ARG002 - others need it
        """Build a model as it is with its weights, without their values: as without them."""
        return HUGGING_FACE.build(name, options)

    def loaded(self, name: str, label: str, options: Mapping[str, object], path: Path) -> nn.Module:
        """Build a model with its weights out of a file; the file is read here, and nothing is fetched."""
        model: Any = self.structured(name, label, options)
        # With a state dict and no name there is no folder and no server for transformers to look at.
        whole, account = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(read_checkpoint(path).tensors),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        _check_whole(account, path)
        model.load_state_dict(whole.state_dict())
        return model  # type: ignore[no-any-return]  # of transformers, without types


def _check_whole(account: Mapping[str, Any], path: Path) -> None:
    """Check that a file and a model hold the same tensors.

    Raises:
        SourceError: they do not.
    """
    differ = [f"{key} {write_dims(was)} -> {write_dims(now)}" for key, was, now in account["mismatched_keys"]]
    lists = {
        "differ": sorted(differ),
        "new": sorted(account["missing_keys"]),
        "unexpected": sorted(account["unexpected_keys"]),
    }
    found = [
        f"{what} {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in lists.items()
        if keys
    ]
    if found:
        raise SourceError(
            f"{path.name!r} is for another model than the config",
            found="\n         ".join(found),
            write="weights that are for this config, or the config that was saved with them",
        )


def _not_there(path: Path) -> NoReturn:
    raise FileNotFoundError(path)

"""Files of weights that a source keeps elsewhere: taken from its cache, or fetched into it."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch

from torchgraft.errors import SourceError
from torchgraft.text import literal

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HASH = re.compile(r"-([a-f0-9]{8,})\.")


@attrs.frozen
class Remote:
    """Say where a file of weights is kept, and how it gets there.

    Args:
        name: name of the file.
        folder: where it is kept.
        cached: gives its path, where it is there.
        fetch: gets it there and gives its path.
    """

    name: str
    folder: Path
    cached: Callable[[], Path | None] = attrs.field(eq=False)
    fetch: Callable[[], Path] = attrs.field(eq=False)

    def path(self, asked: str) -> Path:
        """Return the path of the file, which is fetched where it is not there yet.

        Args:
            asked: the call, for the error.

        Raises:
            SourceError: it is not there and cannot be fetched.
        """
        held = self.cached()
        if held is not None:
            return held
        try:
            return self.fetch()
        # A network fails in the ways of whoever uses it; all of them mean that there is no file.
        except Exception as error:
            raise SourceError(
                "the weights are not on this machine, and they could not be fetched",
                asked=asked,
                found=f"no {self.name!r} in {str(self.folder)!r}, and {type(error).__name__} on fetching it",
                write=f"weights={literal(f'<path of {self.name}>')}, or the file in that folder",
            ) from error


def from_url(url: str) -> Remote:
    """Describe a file that torch.hub keeps.

    Args:
        url: where it comes from; the end of it is the name of the file.

    Returns:
        The description; nothing is fetched yet.

    Example:
        >>> from_url("https://example.org/net-0123abcd.pth").name
        'net-0123abcd.pth'
    """
    name = url.rpartition("/")[2].partition("?")[0]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        said = _HASH.search(name)
        torch.hub.download_url_to_file(url, str(path), said[1] if said else None)
        return path

    return Remote(name, path.parent, lambda: path if path.is_file() else None, fetch)


def from_hub(repository: str, names: Sequence[str]) -> Remote:
    """Describe a file that the hub of Hugging Face keeps.

    Args:
        repository: owner and name.
        names: names that the file may have there, the best one first.

    Returns:
        The description; nothing is fetched yet.
    """
    hub, errors = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".errors"))
    held, _, revision = repository.partition("@")
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{held.replace('/', '--')}"

    def cached() -> Path | None:
        for name in names if _REPOSITORY.fullmatch(held) else ():
            found = hub.try_to_load_from_cache(held, name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch() -> Path:
        for name in names[:-1]:
            with contextlib.suppress(errors.RemoteEntryNotFoundError):
                return Path(hub.hf_hub_download(held, name, revision=revision or None))
        return Path(hub.hf_hub_download(held, names[-1], revision=revision or None))

    return Remote(names[0], folder, cached, fetch)

"""Bounds for the numbers in configs of unknown origin: some sizes become lists before any tensor."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from torchgraft.errors import SourceError
from torchgraft.paths import join_path
from torchgraft.text import literal

_MOST = 1_000_000
_MOST_LISTED = 65_536
_TIMES = 8
_NO_SIZES = ("vocab", "token", "label", "_id")
"""Parts of the keys of numbers that name words and classes, or count them; none becomes a list."""


def check_sizes(name: str, config: Mapping[str, object]) -> None:
    """Refuse numbers that are far beyond those of the kind of model.

    Args:
        name: of the model, for the error.
        config: the config; nothing is built from it.

    Raises:
        SourceError: a number is too large.

    Example:
        >>> check_sizes("net", {"model_type": "resnet", "embedding_size": 64})
    """
    for path, value, most in _numbers("", config, _usual(config)):
        if abs(value) > most:
            raise SourceError(
                f"the config of {literal(name)} asks for more than there is reason for",
                asked=f"get_model({literal(f'hf/{name}')})",
                found=f"{path}={value:,}, {most:,} at most",
                write="a config with usual sizes",
            )


def _numbers(path: str, value: object, usual: object) -> Iterator[tuple[str, int, int]]:
    """Yield each whole number of a config with its path and what it may be at most."""
    if isinstance(value, Mapping):
        known = usual if isinstance(usual, Mapping) and "model_type" not in value else _usual(value)
        for key, item in value.items():
            yield from _numbers(join_path(path, key), item, known.get(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(path, item, usual)
    elif isinstance(value, int):
        default = max(_whole(usual), default=0)
        no_size = any(part in path for part in _NO_SIZES)
        yield path, value, max(_MOST, default) if no_size else max(_MOST_LISTED, _TIMES * default)


def _whole(usual: object) -> Iterator[int]:
    if isinstance(usual, int):
        yield usual
    elif isinstance(usual, (list, tuple)):
        for item in usual:
            yield from _whole(item)


def _usual(config: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the config that its kind of model has by default; nothing for an unknown kind."""
    known, wanted = importlib.import_module("transformers").CONFIG_MAPPING, config.get("model_type")
    if not isinstance(wanted, str) or wanted not in known:
        return {}
    usual: dict[str, Any] = known[wanted]().to_dict()
    return usual

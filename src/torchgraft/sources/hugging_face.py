"""The models of Hugging Face transformers, where it is installed: by config, never by code of others."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from torch import nn

from torchgraft.alignment.files.strict_json import decoded
from torchgraft.errors import SourceError
from torchgraft.paths import join_path, last_of
from torchgraft.sources.hugging_face_sizes import check_sizes
from torchgraft.text import kind, literal, near

_MOST_CLASSES = 1_000_000
_LARGEST = 10_000_000
"""Bytes of a config; the largest ones list some ten thousand labels."""
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@attrs.frozen
class HuggingFace:
    """Models by the config in a folder, in the local cache, or given as the option ``config``.

    What an origin keeps of one is its config as JSON text, so that it can be built again where
    the folder is not.
    """

    name: str = "hf"
    extra: str = "hf"

    def installed(self) -> bool:
        """Tell whether transformers is installed."""
        return importlib.util.find_spec("transformers") is not None

    def names(self, *, pretrained: bool = False) -> Sequence[str]:  # noqa: ARG002 - a source
        """List nothing: what there is stands on a server."""
        return []

    def has(self, name: str) -> bool:
        """Tell whether it can be asked for; whether it is there shows its config."""
        return bool(name)

    def signature(self, name: str, options: Mapping[str, object] | None = None) -> inspect.Signature:
        """Return what a config of this model holds."""
        config = _config(name, {key: value for key, value in (options or {}).items() if key == "config"})
        known = [key for key in config.to_dict() if not key.startswith("_")]
        fields = inspect.signature(type(config)).parameters
        taken = dict.fromkeys(("config", "num_labels", *fields, *known))
        return inspect.Signature(
            [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in taken]
        )

    def build(self, name: str, options: Mapping[str, object]) -> nn.Module:
        """Build the class that the config names; the bare model, where it names none."""
        config = _config(name, options)
        transformers = importlib.import_module("transformers")
        for wanted in config.architectures or ():
            found: Any = getattr(transformers, wanted, None)
            if isinstance(getattr(found, "config_class", None), type) and isinstance(
                config, found.config_class
            ):
                return cast("nn.Module", found._from_config(config))  # as Auto classes do
            raise SourceError(
                f"the config of {literal(name)} is not for the class that it names",
                asked=f"get_model({literal(f'hf/{name}')})",
                found=f"architectures={config.architectures!r}",
            )
        return cast("nn.Module", transformers.AutoModel.from_config(config, trust_remote_code=False))

    def check_modest(self, name: str, options: Mapping[str, object]) -> None:
        """Check that a config of unknown origin asks for usual sizes.

        Raises:
            SourceError: it does not, or it is none.
        """
        given = options.get("config")
        plain = _read(name) if given is None else _plain(name, given)
        check_sizes(name, {**plain, **_as_json({k: v for k, v in options.items() if k != "config"})})

    def settled(self, name: str, options: Mapping[str, object]) -> Mapping[str, object]:
        """Return the config with the options in it."""
        return {"config": json.dumps(json.loads(_config(name, options).to_json_string()), sort_keys=True)}


HUGGING_FACE = HuggingFace()


def _config(name: str, options: Mapping[str, object]) -> Any:
    given = options.get("config")
    plain = _read(name) if given is None else _plain(name, given)
    others = _as_json({key: value for key, value in options.items() if key != "config"})
    _check_classes(name, {**plain, **others})
    known = importlib.import_module("transformers").CONFIG_MAPPING
    wanted = plain.get("model_type")
    if not isinstance(wanted, str) or wanted not in known:
        close = near(wanted, known) if isinstance(wanted, str) else ()
        raise SourceError(
            f"the config of {literal(name)} is of no kind that transformers knows",
            asked=f"get_model({literal(f'hf/{name}')})",
            found=f"model_type={wanted!r}",
            near=close,
            write=f'config={{"model_type": {literal(close[0] if close else "resnet")}, ...}}',
        )
    _check_here(name, plain)
    _check_here(name, others)
    return known[wanted].from_dict(plain, **others)


def _read(name: str) -> dict[str, Any]:
    """Read a config from a folder, or else from the cache of files that were fetched before."""
    path = Path(name).expanduser() / "config.json"
    if not path.is_file():
        cached = importlib.import_module("huggingface_hub").try_to_load_from_cache
        held = cached(name, "config.json") if _ID.fullmatch(name) else None
        if not isinstance(held, str):
            raise SourceError(
                f"no config of {literal(name)} is on this machine",
                asked=f"get_model({literal(f'hf/{name}')})",
                found=f"no {str(path)!r}, and none in the cache",
                write=f"get_model({literal('hf/<a folder with config.json>')})",
            )
        path = Path(held)
    if path.stat().st_size > _LARGEST:
        raise _no_config(name, f"{path.stat().st_size:,} bytes")
    return _plain(name, path.read_bytes())


def _plain(name: str, given: object) -> dict[str, Any]:
    """Take a config as text, as a mapping, or as a value of transformers."""
    if hasattr(given, "to_json_string"):
        given = given.to_json_string()
    if isinstance(given, (str, bytes)):
        try:
            given = decoded(given)
        except ValueError as error:
            raise _no_config(name, str(error)) from error
    if not isinstance(given, Mapping):
        raise _no_config(name, kind(given))
    return _as_json(given)


def _as_json(given: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy as a file would hold it: lists for tuples."""
    return cast("dict[str, Any]", json.loads(json.dumps(dict(given))))


def _check_here(name: str, value: object, path: str = "") -> None:
    """Refuse a config that would have code or models fetched, or a file read.

    Raises:
        SourceError: it would.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_here(name, item, join_path(path, key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_here(name, item, path)
    elif isinstance(value, str) and _leads_away(path, value):
        raise SourceError(
            f"the config of {literal(name)} asks for something to be fetched",
            asked=f"get_model({literal(f'hf/{name}')})",
            found=f"{path}={literal(value)}",
        )


def _check_classes(name: str, config: Mapping[str, object]) -> None:
    """Refuse a number of classes for which transformers would write a name each, without end.

    Raises:
        SourceError: it is such a number.
    """
    count = config.get("num_labels")
    if isinstance(count, int) and count > _MOST_CLASSES:
        raise SourceError(
            f"the config of {literal(name)} asks for more classes than there is reason for",
            asked=f"get_model({literal(f'hf/{name}')})",
            found=f"num_labels={count:,}, {_MOST_CLASSES:,} at most",
        )


def _leads_away(path: str, value: str) -> bool:
    """Tell whether a text names a model, a kernel or a file somewhere else."""
    key = last_of(path)
    if key in ("architecture", "backbone"):  # a model of timm, which can be any with its server before it
        return ":" in value
    return key == "checkpoint_path" or ("implementation" in path and "/" in value)


def _no_config(name: str, found: str) -> SourceError:
    return SourceError(
        f"the config of {literal(name)} is no JSON object",
        asked=f"get_model({literal(f'hf/{name}')})",
        found=found,
        write='config={"model_type": "resnet", ...}',
    )

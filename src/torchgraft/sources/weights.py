"""Which weights are asked for: a name that a source has for them, its default, or a file."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs
from torch import nn

from torchgraft.errors import SourceError
from torchgraft.paths import last_of
from torchgraft.sources.hugging_face_weights import HuggingFaceWeights
from torchgraft.sources.remote import Remote
from torchgraft.sources.source import Found
from torchgraft.sources.timm_weights import TimmWeights
from torchgraft.sources.torchvision_weights import TorchvisionWeights
from torchgraft.text import kind, literal, near

_DEFAULT = "DEFAULT"
_FILES = (".safetensors", ".json", ".pth", ".pt", ".bin", ".ckpt", ".tar")


class Pretrained(Protocol):
    """Know the weights that a source has for its models."""

    def labels(self, name: str) -> Sequence[str]:
        """Name the weights of a model, the default ones first."""
        ...

    def kind(self, name: str) -> str:
        """Name the class of the weights of a model, which may stand before their name."""
        ...

    def files(self, name: str) -> Mapping[str, str]:
        """Tell which weights a file is, where the name of the file says so."""
        ...

    def remote(self, name: str, label: str) -> Remote:
        """Tell where the file of weights is kept."""
        ...


@runtime_checkable
class Converting(Pretrained, Protocol):
    """Know weights that only the code of the source puts right into a model."""

    def structured(self, name: str, label: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model as it is with its weights, without their values."""
        ...

    def loaded(self, name: str, label: str, options: Mapping[str, object], path: Path) -> nn.Module:
        """Build a model with its weights out of a file."""
        ...


@attrs.frozen
class Meant:
    """Say which weights are meant.

    Args:
        label: their name; empty for those that the source does not know.
        path: the file; ``None`` for the one that the source keeps.
    """

    label: str
    path: Path | None = None


_KNOWN: Mapping[str, Pretrained] = {
    "torchvision": TorchvisionWeights(),
    "timm": TimmWeights(),
    "hf": HuggingFaceWeights(),
}


def weights_of(found: Found) -> Pretrained | None:
    """Return what knows the weights of a source; builders of the user have none of their own."""
    return _KNOWN.get(found.source.name)


def labels_of(found: Found) -> Sequence[str]:
    """Name the weights that a source has for a model, the default ones first."""
    known = weights_of(found)
    return known.labels(found.name) if known else ()


def meant(found: Found, weights: str | bool) -> Meant:
    """Tell which weights are meant; a file does not need to be there."""
    label = _label(found, weights)
    if label:
        return Meant(label)
    known, path = weights_of(found), Path(str(weights))
    return Meant(known.files(found.name).get(path.name, "") if known else "", path)


def chosen(found: Found, weights: object, options: Mapping[str, object]) -> str | None:
    """Find the name of the weights that are asked for, or the file.

    Args:
        found: which model of which source.
        weights: a name, alone or behind that of its class; a member of an enumeration;
            ``True`` or ``"DEFAULT"`` for the default ones; a path; ``None`` for random ones.
        options: options of the builder, for the words of an error.

    Returns:
        The name, or the path as it was given.

    Raises:
        SourceError: it is neither a name nor a file.
    """
    if weights is None or weights is False:
        return None
    labels = labels_of(found)
    asked = asked_for(found, weights, options)
    label = _label(found, weights)
    if label:
        return label
    if weights is True or weights == _DEFAULT:
        raise SourceError(
            f"{found.base} has no weights of its own",
            asked=asked,
            found="weights=None, which are random",
            write='weights="<path of a file>"',
        )
    if not isinstance(weights, (str, Path, enum.Enum)):
        raise SourceError(
            "weights are a name, a file, True for the default ones, or None for random ones",
            asked=asked,
            found=kind(weights),
            write=f"weights={literal(labels[0])}" if labels else 'weights="<path of a file>"',
        )
    said = _said(weights)
    path = Path(said).expanduser()
    if path.is_file():
        return said
    is_path = path.suffix in _FILES or len(path.parts) > 1
    near_by = (
        [str(p) for p in path.parent.iterdir() if p.is_file()] if is_path and path.parent.is_dir() else []
    )
    close = near(said, near_by) if is_path else near(last_of(said), labels)
    raise SourceError(
        f"there is no file {literal(said)}" if is_path else f"{found.base} has no weights {literal(said)}",
        asked=asked,
        found=", ".join(labels[:6]) + ", ..." * (len(labels) > 6) or "no weights of its own",
        near=close,
        write=f"weights={literal((close or tuple(labels) or ('<path of a file>',))[0])}",
    )


def _label(found: Found, weights: object) -> str:
    """Return the name of the weights that a source has for a model; empty where it has no such."""
    known, labels = weights_of(found), labels_of(found)
    if known is None or not labels:
        return ""
    label = _said(weights).removeprefix(f"{known.kind(found.name)}.")
    return labels[0] if label == _DEFAULT else label if label in labels else ""


def _said(weights: object) -> str:
    if weights is True:
        return _DEFAULT
    return f"{type(weights).__name__}.{weights.name}" if isinstance(weights, enum.Enum) else str(weights)


def asked_for(found: Found, weights: object, options: Mapping[str, object]) -> str:
    """Write the call that asks for a model."""
    given = {"weights": weights, **options}
    return (
        ", ".join(
            [f"get_model({literal(found.base)}", *(f"{key}={literal(value)}" for key, value in given.items())]
        )
        + ")"
    )

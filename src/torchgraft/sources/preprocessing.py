"""Preprocessing: the transform of images that belongs to the weights of a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import nn

from torchgraft.errors import GraftError, SourceError
from torchgraft.graph.checks import check_model
from torchgraft.graph.draft import Draft
from torchgraft.graph.entry.search import find_inputs
from torchgraft.graph.history import Origin, history_of
from torchgraft.sources.find import resolve
from torchgraft.sources.registry import REGISTERED
from torchgraft.sources.torchvision import TORCHVISION
from torchgraft.sources.torchvision_weights import TorchvisionWeights
from torchgraft.sources.weights import meant
from torchgraft.text import literal, spelled

Preprocessing = Callable[..., Any]

_HF = "hf/"


@attrs.frozen
class Processed:
    """Make a tensor of an image, as an image processor of transformers does.

    Args:
        processor: the processor.
    """

    processor: Callable[..., dict[str, torch.Tensor]]

    def __call__(self, image: object) -> torch.Tensor:
        """Return the tensor of one image, ``c h w``."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


@spelled
def preprocessing(model: nn.Module) -> Preprocessing:
    """Return the transform of images that belongs to the weights of a model.

    It is found through what the model knows of itself, so it stays the same through transforms,
    through saving and loading.

    Args:
        model: the model; it is only read.

    Returns:
        A function from an image to a tensor, as the source of the weights gives it.

    Raises:
        SourceError: nothing is known of its weights, they have no such transform, or the model
            takes other channels than the transform gives.
        ModelError: it is no model.

    Example:
        >>> from torchgraft import get_model, register_model
        >>> @register_model("on_halves", preprocessing=lambda image: image / 2)
        ... def on_halves() -> nn.Module:
        ...     return nn.Linear(3, 2)
        >>> preprocessing(get_model("on_halves"))(4)
        2.0
    """
    check_model(model, "preprocessing")
    origin = history_of(model).origin
    told = vars(model).get("pretrained_cfg")
    found = (_by_config(told) if isinstance(told, dict) else None) or _by_origin(origin, model)
    if found is None:
        raise _none(model, origin)
    _check_channels(model, found)
    return found


def _check_channels(model: nn.Module, found: Preprocessing) -> None:
    """Check that a transform gives the channels that a model takes, where both can be told.

    Raises:
        SourceError: it gives others.
    """
    given = _channels(found)
    known = history_of(model)
    if given < 2 or not (known.steps or (known.origin and known.origin.options)):
        return  # a model as it was built for its weights takes what their transform gives
    try:
        taken = {held.channels for held in find_inputs(Draft(model))}
    except GraftError:
        return
    if taken and taken != {given}:
        count = max(taken)
        raise SourceError(
            "the transform of the weights gives other channels than the model takes",
            asked="preprocessing(model)",
            found=f"a model of {count} channels, and a transform with {given} means",
            write=f"a transform of your own with {count} means, or adapt_input({given})(model)",
        )


def _channels(found: object) -> int:
    """Count the means of a transform; 0 where it has none that are known."""
    held = (found, getattr(found, "processor", None), *getattr(found, "transforms", ()))
    means = (getattr(one, name, None) for one in held for name in ("mean", "image_mean"))
    return next((len(one) for one in means if isinstance(one, (list, tuple, torch.Tensor))), 0)


def _by_config(told: dict[str, object]) -> Preprocessing:
    """Make what timm makes of its configuration of the weights."""
    data = importlib.import_module("timm.data")
    config = data.resolve_data_config({}, pretrained_cfg=told)
    return cast("Preprocessing", data.create_transform(**config, is_training=False))


def _by_origin(origin: Origin | None, model: nn.Module) -> Preprocessing | None:
    config: Any = vars(model).get("config")
    named = getattr(config, "name_or_path", "") if origin is None else origin.base.removeprefix(_HF)
    if named and (origin is None or origin.base.startswith(_HF)):
        return _of_folder(named)
    if origin is None:
        return None
    found = resolve(origin.base)
    if found.source is REGISTERED:
        return REGISTERED.preprocessing(found.name)
    if found.source is TORCHVISION and origin.weights is not None:
        label = meant(found, origin.weights).label
        return TorchvisionWeights().preprocessing(found.name, label) if label else None
    return None


def _of_folder(name: str) -> Preprocessing | None:
    """Make the image processor that stands beside a config, on this machine."""
    if not (Path(name).expanduser() / "preprocessor_config.json").is_file():
        return None
    known = importlib.import_module("transformers").AutoImageProcessor
    return Processed(known.from_pretrained(str(Path(name).expanduser()), local_files_only=True))


def _none(model: nn.Module, origin: Origin | None) -> SourceError:
    """Say why there is none, and what to write."""
    if origin is None:
        return SourceError(
            "nothing is known of the weights of this model, so neither is their preprocessing",
            found=f"a {type(model).__name__} that get_model did not make",
            write='get_model("resnet50", weights="IMAGENET1K_V2"), which knows them',
        )
    if origin.base.startswith(_HF):
        folder = origin.base.removeprefix(_HF)
        return SourceError(
            f"no preprocessing belongs to this model of {origin.base}",
            found=f"no preprocessor_config.json in {folder!r}",
            write=f"that file in {folder!r}, as an image processor's save_pretrained writes it, "
            "or a transform of your own",
        )
    registered = origin.base.startswith(f"{REGISTERED.name}/")
    said = "random weights" if origin.weights is None else f"weights={literal(origin.weights)}"
    return SourceError(
        f"no preprocessing belongs to this model of {origin.base}",
        found="a builder that was registered without one" if registered else said,
        write="@register_model(..., preprocessing=<a function from an image to a tensor>)"
        if registered
        else f"get_model({literal(origin.base)}, weights=True), or a transform of your own",
    )

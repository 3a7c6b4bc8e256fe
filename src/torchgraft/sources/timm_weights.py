"""Weights of timm: the tags of its models; timm's own code converts and loads the files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from torchgraft.alignment.files.container import listing
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import SourceError
from torchgraft.sources.remote import Remote, from_hub, from_url
from torchgraft.text import some


@attrs.frozen
class TimmWeights:
    """Know the tags of each model; timm's own code puts the weights in."""

    def labels(self, name: str) -> Sequence[str]:
        """Name the tags of a model that have weights, the default one first."""
        models = _timm().models
        arch, _, tag = name.partition(".")
        known = [held.tag for held in models.get_arch_pretrained_cfgs(arch).values() if held.has_weights]
        first = models.get_pretrained_cfg(arch).tag
        return [tag] * (tag in known) if tag else sorted(known, key=lambda held: held != first)

    def kind(self, name: str) -> str:  # noqa: ARG002 - others have one
        """Name what may stand before a tag: nothing."""
        return ""

    def files(self, name: str) -> Mapping[str, str]:
        """Tell which weights a file is that timm kept under a name of its own."""
        known = {
            label: _timm().models.get_pretrained_cfg(tagged(name, label)).url for label in self.labels(name)
        }
        return {from_url(url).name: label for label, url in known.items() if isinstance(url, str)}

    def remote(self, name: str, label: str) -> Remote:
        """Tell where the file of weights is kept."""
        known = _timm().models.get_pretrained_cfg(tagged(name, label))
        if known.hf_hub_id:
            named = known.hf_hub_filename
            return from_hub(known.hf_hub_id, [named] if named else ["model.safetensors", "pytorch_model.bin"])
        return from_url(known.url)

    def structured(self, name: str, label: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model as it is with its weights, without their values."""
        return _create(tagged(name, label), options)

    def loaded(self, name: str, label: str, options: Mapping[str, object], path: Path) -> nn.Module:
        """Build a model with its weights out of a file."""
        full = tagged(name, label)
        given = {**options, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        model = _create(full, given)
        _check_whole(model, lambda: _create(full, given), path)
        config: Any = model.pretrained_cfg
        del config["file"]  # it tells what the weights are, and not where they lay once
        return model


def tagged(name: str, label: str) -> str:
    """Write the name of a model of timm with that of its weights: ``resnet50.a1_in1k``."""
    return f"{name.partition('.')[0]}.{label}"


def _create(name: str, options: Mapping[str, object]) -> nn.Module:
    made: nn.Module = _timm().create_model(name, **options)
    return made


def _timm() -> Any:
    return importlib.import_module("timm")


def _check_whole(model: nn.Module, again: Callable[[], nn.Module], path: Path) -> None:
    """Check that every parameter came out of the file.

    Some models of timm are loaded without strictness, after their file was renamed. What the
    file does not have is random then, so it is another thing the second time.

    Raises:
        SourceError: a tensor is random.
    """
    held = tensors_of(model)
    if path.suffix == ".safetensors" and held.keys() <= listing(path)[0].keys():
        return
    other = tensors_of(again())
    new = [key for key, place in held.items() if not place.tensor.equal(other[key].tensor)]
    if new:
        raise SourceError(
            f"{path.name!r} does not have all of the model",
            found=f"nothing for {some(new)}",
            write="weights that are for this model",
        )

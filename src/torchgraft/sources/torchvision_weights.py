"""Weights of torchvision: its enumerations of them, and the models that belong to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from torchgraft.alignment.load.stored import read_file
from torchgraft.sources.remote import Remote, from_url

_State = Mapping[str, Any]


@attrs.frozen
class TorchvisionWeights:
    """Know the weights of each model; torchvision's own code puts them in."""

    def labels(self, name: str) -> Sequence[str]:
        """Name the weights of a model, the default ones first."""
        known = models.get_model_weights(name)
        first = known.__members__.get("DEFAULT")
        return sorted((held.name for held in known), key=lambda held: first is None or held != first.name)

    def kind(self, name: str) -> str:
        """Name the class of the weights of a model, which may stand before their name."""
        return str(models.get_model_weights(name).__name__)

    def files(self, name: str) -> Mapping[str, str]:
        """Tell which weights a file of torchvision is, by its name."""
        return {self.remote(name, label).name: label for label in self.labels(name)}

    def sizes(self, name: str) -> Sequence[int]:
        """Tell how many parameters a model has with its weights, as far as torchvision tells."""
        return [
            held.meta["num_params"] for held in models.get_model_weights(name) if "num_params" in held.meta
        ]

    def remote(self, name: str, label: str) -> Remote:
        """Tell where the file of weights is kept."""
        return from_url(_member(name, label).url)

    def structured(self, name: str, label: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model as it is with its weights, without their values."""
        return _built(name, label, options, _own)

    def loaded(self, name: str, label: str, options: Mapping[str, object], path: Path) -> nn.Module:
        """Build a model with its weights out of a file."""
        state = cast("_State", read_file(path)[0])
        return _built(name, label, options, lambda: state)

    def preprocessing(self, name: str, label: str) -> Callable[..., Any]:
        """Return the transform of images that belongs to weights."""
        made: Callable[..., Any] = _member(name, label).transforms()
        return made


class _Standing:
    """Stand for weights in a builder: of their class, equal to them, with other values.

    Builders read from weights what else is different with them (sizes, frozen norms), load
    them, and change the model after that. All of this is wanted, the values are not always.

    Args:
        member: the weights.
        meta: what they are to say of themselves.
        values: gives the state dict to load.
    """

    def __init__(self, member: WeightsEnum, meta: Mapping[str, object], values: Callable[[], _State]) -> None:
        self._member = member
        self.meta = meta
        self._values = values

    @property  # type: ignore[misc]  # as a mock does it, so that isinstance holds
    def __class__(self) -> type:
        return type(self._member)

    def __eq__(self, other: object) -> bool:
        return other is self._member or other is self

    def __hash__(self) -> int:
        return hash(self._member)

    def get_state_dict(self, *_: object, **__: object) -> _State:
        """Give the values, where a builder asks for a download."""
        return self._values()


def _built(name: str, label: str, options: Mapping[str, object], values: Callable[[], _State]) -> nn.Module:
    member = _member(name, label)
    meta = dict(member.meta)
    if isinstance(classes := options.get("num_classes"), int):
        meta["categories"] = range(classes)  # a builder refuses any other number
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder(weights=_Standing(member, meta, values), progress=False, **options)


def _own() -> _State:
    """Return what the model holds that a builder of torchvision is about to load weights into."""
    frame = sys._getframe()
    while "weights" not in frame.f_locals or "model" not in frame.f_locals:
        frame = cast("Any", frame.f_back)
    state: _State = frame.f_locals["model"].state_dict()
    return state


def _member(name: str, label: str) -> WeightsEnum:
    return models.get_model_weights(name)[label]

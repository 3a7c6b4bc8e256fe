"""What a source of base models is: names, their options, their builders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
from torch import nn


class Source(Protocol):
    """Know models by name; a name of a source is written without the name of the source."""

    @property
    def name(self) -> str:
        """What stands before the slash of a full name."""
        ...

    @property
    def extra(self) -> str:
        """The extra of this library that brings it; empty where it is always there."""
        ...

    def installed(self) -> bool:
        """Tell whether it can be asked at all."""
        ...

    def names(self, *, pretrained: bool = False) -> Sequence[str]:
        """List the names that it can list; only those with weights if asked."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether a model of this name can be asked for."""
        ...

    def signature(self, name: str, options: Mapping[str, object] | None = None) -> inspect.Signature:
        """Return what options a builder takes, those that it hands on included.

        Args:
            name: of the model.
            options: those asked for, where what else may be given depends on them.
        """
        ...

    def build(self, name: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model with random weights, without the network."""
        ...

    def settled(self, name: str, options: Mapping[str, object]) -> Mapping[str, object]:
        """Return the options with which the same model is built anywhere, without a file."""
        ...


@attrs.frozen
class Found:
    """Name one model of one source."""

    source: Source
    name: str
    said: str = attrs.field(default="", eq=False)
    """The name as it was asked for."""

    @property
    def base(self) -> str:
        """The full name, as recipes write it: ``torchvision/resnet50``."""
        return f"{self.source.name}/{self.name}"

"""One function written more than once: what the catalogues of pairs are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import attrs
import torch
from torch import nn

CLASSES = 10
Build = Callable[[], nn.Module]


@attrs.frozen
class Group:
    """Builders of independent implementations of one function, and the images they take.

    Args:
        family: name of the architecture.
        side: height and width of the images.
        sides: builders, by whose implementation it is.
    """

    family: str
    side: int
    sides: dict[str, Build]

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 3, self.side, self.side)


def timm(name: str, **options: object) -> Build:
    """Build a model of timm."""

    def build() -> nn.Module:
        import timm as library

        return _quiet(lambda: library.create_model(name, **{"num_classes": CLASSES, **options}))

    return build


def torchvision(name: str, **options: object) -> Build:
    """Build a model of torchvision, by the name of its factory."""

    def build() -> nn.Module:
        from torchvision import models

        return _quiet(lambda: models.get_model(name, weights=None, num_classes=CLASSES, **options))

    return build


def hugging(name: str, *given: object, **config: object) -> Build:
    """Build a model of Hugging Face, by the name of its class and the fields of its configuration."""

    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, name)
        return _quiet(lambda: kind(kind.config_class(**{"num_labels": CLASSES, **config}), *given))

    return build


def plain(make: Build) -> Build:
    """Build by a function."""
    return lambda: _quiet(make)


def _quiet(make: Build) -> nn.Module:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return make()

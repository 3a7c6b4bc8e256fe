"""The models of torchvision, through its own list of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import attrs
from torch import nn
from torchvision import models

from torchgraft.sources.tracing import followed

_OURS = {"weights": None, "progress": False, "weights_backbone": None}
"""Arguments of builders that are no options here; with these values nothing is fetched."""


@attrs.frozen
class Torchvision:
    """All models that torchvision lists: classifiers, segmentation, detection, video, optical flow."""

    name: str = "torchvision"
    extra: str = ""

    def installed(self) -> bool:
        """Tell that torchvision is always there."""
        return True

    def names(self, *, pretrained: bool = False) -> Sequence[str]:
        """List all of them."""
        known = models.list_models()
        return [name for name in known if len(models.get_model_weights(name))] if pretrained else known

    def has(self, name: str) -> bool:
        """Tell whether torchvision lists it."""
        return name in models.list_models()

    def signature(self, name: str, options: Mapping[str, object] | None = None) -> inspect.Signature:  # noqa: ARG002 - a source
        """Return the options of a builder and of what it hands them on to."""
        return _signature(name)

    def build(self, name: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model with random weights, those of its backbone as well."""
        builder: Callable[..., nn.Module] = models.get_model_builder(name)
        taken = inspect.signature(builder).parameters
        given = {key: value for key, value in _OURS.items() if key in taken}
        start = self.signature(name).parameters.get("init_weights")
        if start is not None and start.default is None:
            given["init_weights"] = True  # what it means today, said so that it does not warn
        return builder(**{**given, **options})

    def settled(self, name: str, options: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - a source
        """Return the options as they are."""
        return options


TORCHVISION = Torchvision()


@functools.cache
def _signature(name: str) -> inspect.Signature:
    return followed(models.get_model_builder(name), _OURS)

"""The models of timm, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType

import attrs
from torch import nn

from torchgraft.sources.tracing import followed

_OURS = {"pretrained": False}
_NO_OPTIONS = ("features_only", "out_indices", "feature_cls", "pruned", "device", "dtype")
"""What is not about how a model is set up, or makes another one of it; that is what transforms are for."""


@attrs.frozen
class Timm:
    """All models that timm lists; a name may have a tag, as in ``resnet50.a1_in1k``."""

    name: str = "timm"
    extra: str = "timm"

    def installed(self) -> bool:
        """Tell whether timm is installed."""
        return importlib.util.find_spec("timm") is not None

    def names(self, *, pretrained: bool = False) -> Sequence[str]:
        """List all of them without tags; those with weights, if asked."""
        known: list[str] = _timm().list_models(pretrained=pretrained, include_tags=False)
        return known

    def tagged(self, name: str = "*") -> Sequence[str]:
        """List the names with tags of one model, or of all; each has weights."""
        known: list[str] = _timm().list_models(f"{name}.*", pretrained=True)
        return known

    def has(self, name: str) -> bool:
        """Tell whether timm lists it, with this tag."""
        if not _timm().is_model(name):
            return False
        try:
            _timm().get_pretrained_cfg(name)
        except RuntimeError:
            return False
        return True

    def signature(self, name: str, options: Mapping[str, object] | None = None) -> inspect.Signature:  # noqa: ARG002 - a source
        """Return the options of a builder and of what it hands them on to."""
        known = followed(_timm().model_entrypoint(name), _OURS)
        internal = {*inspect.signature(_timm().models.build_model_with_cfg).parameters, *_NO_OPTIONS}
        return known.replace(parameters=[p for p in known.parameters.values() if p.name not in internal])

    def build(self, name: str, options: Mapping[str, object]) -> nn.Module:
        """Build a model with random weights."""
        model: nn.Module = _timm().create_model(name, **_OURS, **options)
        return model

    def settled(self, name: str, options: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - a source
        """Return the options as they are."""
        return options


TIMM = Timm()


def _timm() -> ModuleType:
    return importlib.import_module("timm")

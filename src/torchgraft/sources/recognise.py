"""Recognise where a model comes from: by what it says of itself, or by its structure."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import attrs
from torch import nn
from torchvision import models

from torchgraft.errors import GraftError
from torchgraft.graph.history import History, Origin, history_of
from torchgraft.graph.level import Level
from torchgraft.graph.outline import Outline, outline_of
from torchgraft.graph.portrait import portrait
from torchgraft.sources.get import skeleton_of
from torchgraft.sources.torchvision_weights import TorchvisionWeights

Replay = Callable[[nn.Module], nn.Module]

_MOST = 4
"""How many class counts are tried."""


def recognised(model: nn.Module, replay: Replay) -> Origin | None:
    """Tell which model of a source a model was before anything was done to it.

    What its history says is tried, or its configuration, or what torchvision builds of its
    class. It is believed only where the model of the source becomes this one again.

    Args:
        model: the model; it is only read.
        replay: does to a model without values what was done to this one.

    Returns:
        The origin; ``None`` where no source gives this model.

    Example:
        >>> from torchvision.models import resnet18
        >>> recognised(resnet18(num_classes=7), lambda base: base)
        Origin(base='torchvision/resnet18', weights=None, options=(('num_classes', 7),), sha256='')
    """
    bases = _bases(model, history_of(model))
    return next((history_of(base).origin for base in bases if _becomes(base, model, replay)), None)


def _bases(model: nn.Module, history: History) -> Iterator[nn.Module]:
    """Yield models without values that a model may have been, as far as anything tells."""
    first = history.outline if history.steps else outline_of(model)
    if history.origin is not None:
        base = _built(history.origin)
        yield from () if base is None else (base,)
    elif first is not None:
        said = _configured(model)
        declared = vars(model).get("num_classes")
        yield from _fitting(said, first, declared) if said else _of_torchvision(_class(model), first)


def _configured(model: nn.Module) -> Origin | None:
    """Read what models of timm and of transformers keep about themselves."""
    told, config = (cast("Any", vars(model).get(name)) for name in ("pretrained_cfg", "config"))
    if isinstance(told, dict) and isinstance(told.get("architecture"), str):
        tag = told.get("tag")
        return Origin(f"timm/{told['architecture']}" + (f".{tag}" if tag else ""))
    if hasattr(config, "to_json_string") and hasattr(config, "model_type"):
        held = {**json.loads(config.to_json_string()), "architectures": [_class(model).__name__]}
        name = getattr(config, "name_or_path", "") or config.model_type
        return Origin(f"hf/{name}", options=(("config", json.dumps(held, sort_keys=True)),))
    return None


def _of_torchvision(kind: type, first: Outline) -> Iterator[nn.Module]:
    """Yield what builders make that know a class: those of its file and of about its size first."""
    size = sum(math.prod(shape) for shape, learns in first.tensors.values() if learns is not None)
    weights = TorchvisionWeights()
    home = {name: models.get_model_builder(name).__module__ for name in models.list_models()}
    beside = [
        name for name, where in home.items() if getattr(sys.modules[where], kind.__name__, None) is kind
    ]
    apart = {
        name: (home[name] != kind.__module__, min((abs(size - n) for n in weights.sizes(name)), default=size))
        for name in beside
    }
    ranked = sorted(beside, key=apart.__getitem__)
    near = [name for name in ranked if apart[name] == apart[ranked[0]]]
    fitting: list[str] = []
    for name in ranked:
        if fitting and apart[name] != apart[fitting[0]]:
            break  # what is of the same shapes is of the same size
        found = list(_fitting(Origin(f"torchvision/{name}"), first))
        yield from found
        fitting += [name] * bool(found)
    # For some weights builders make other models: of other sizes, norms, attributes.
    for name in fitting or near:
        for label in weights.labels(name):
            yield from _fitting(Origin(f"torchvision/{name}", label), first)


def _fitting(origin: Origin, first: Outline, declared: object = None) -> Iterator[nn.Module]:
    """Yield a candidate without values, and with the class counts that its outline suggests."""
    base = _built(origin)
    if base is None:
        return
    usual = outline_of(base)
    if _fits(usual, first):
        yield base
        return
    word = "num_labels" if origin.base.startswith("hf/") else "num_classes"
    for count in _counts(usual, first, declared):
        other = _built(attrs.evolve(origin, options=(*origin.options, (word, count))))
        if other is not None and _fits(outline_of(other), first):
            yield other


def _counts(usual: Outline, first: Outline, declared: object) -> list[int]:
    """Find the class counts that may make the difference between two outlines."""
    counts = [declared] if type(declared) is int else []
    if usual.modules.keys() != first.modules.keys():
        return counts  # no head at all, perhaps
    for key, (now, _) in first.tensors.items():
        was = usual.tensors.get(key, (now, None))[0]
        counts += [new for old, new in zip(was, now, strict=False) if old != new]
    return list(dict.fromkeys(counts))[:_MOST]


def _fits(outline: Outline, first: Outline) -> bool:
    """Tell whether two models have the same paths, classes and shapes."""
    shapes = [{key: shape for key, (shape, _) in held.tensors.items()} for held in (outline, first)]
    return outline.modules == first.modules and shapes[0] == shapes[1]


def _becomes(base: nn.Module, model: nn.Module, replay: Replay) -> bool:
    """Tell whether a model of a source becomes another, as far as code and plain data tell."""
    try:
        again = replay(base)
    except GraftError:
        return False
    return portrait(again) == portrait(model)


def _class(module: nn.Module) -> type:
    return module._origin if isinstance(module, Level) else type(module)


def _built(origin: Origin) -> nn.Module | None:
    try:
        return skeleton_of(origin)
    except GraftError:
        return None

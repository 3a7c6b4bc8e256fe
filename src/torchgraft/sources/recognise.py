"""Recognise where a model comes from: by what it says of itself, or by its structure."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import attrs
import torch
from torch import nn
from torchvision import models

from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import GraftError
from torchgraft.graph.history import History, Origin, history_of
from torchgraft.graph.level import Level
from torchgraft.graph.outline import Outline, outline_of
from torchgraft.graph.portrait import portrait
from torchgraft.sources.find import resolve
from torchgraft.sources.get import get_model, skeleton_of
from torchgraft.sources.torchvision import TORCHVISION
from torchgraft.sources.torchvision_weights import TorchvisionWeights
from torchgraft.sources.weights import labels_of, weights_of

Replay = Callable[[nn.Module], nn.Module]

_MOST = 4
"""How many class counts are tried."""


def recognised(model: nn.Module, replay: Replay) -> Origin | None:
    """Tell which model of a source a model was before anything was done to it.

    Its configuration is tried, or what torchvision builds of its class, with the options that
    the model suggests. It is believed only where the model of the source becomes this one again,
    and weights are named only where their file is on this machine and the model has its values.

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
    """Yield models that a model may have been, as far as anything tells."""
    first = history.outline if history.steps else outline_of(model)
    if first is not None:
        said = _configured(model)
        declared = vars(model).get("num_classes")
        yield from _fitting(said, first, model, declared) if said else _of_torchvision(model, first)


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


def _of_torchvision(model: nn.Module, first: Outline) -> Iterator[nn.Module]:
    """Yield what builders make that know a class: those of its file and of about its size first."""
    kind = _class(model)
    size = sum(math.prod(shape) for shape, learns in first.tensors.values() if learns is not None)
    home = {name: models.get_model_builder(name).__module__ for name in models.list_models()}
    beside = [
        name for name, where in home.items() if getattr(sys.modules[where], kind.__name__, None) is kind
    ]
    sizes = TorchvisionWeights().sizes
    apart = {
        name: (home[name] != kind.__module__, min((abs(size - n) for n in sizes(name)), default=size))
        for name in beside
    }
    ranked = sorted(beside, key=apart.__getitem__)
    fitting = ""
    for name in ranked:
        if fitting and apart[name] != apart[fitting]:
            break  # what is of the same shapes is of the same size
        for base in _fitting(Origin(f"torchvision/{name}"), first, model):
            fitting = name
            yield base
    for name in ranked if not fitting else ():  # for some weights builders make other models
        if apart[name] == apart[ranked[0]]:
            yield from _shown(Origin(f"torchvision/{name}"), model)


def _fitting(
    origin: Origin, first: Outline, model: nn.Module, declared: object = None
) -> Iterator[nn.Module]:
    """Yield candidates without values, with the options and the class counts that a model suggests."""
    usual = _built(origin)
    if usual is None:
        return
    word = "num_labels" if origin.base.startswith("hf/") else "num_classes"
    for options in _suggested(origin, usual, first, model):
        asked = attrs.evolve(origin, options=(*origin.options, *options.items()))
        base = _built(asked) if options else usual
        if base is None:
            continue
        if _fits(outline_of(base), first):
            yield from (*_shown(asked, model), base)
            continue
        for count in _counts(outline_of(base), first, declared):
            counted = attrs.evolve(asked, options=tuple(sorted((*asked.options, (word, count)))))
            other = _built(counted)
            if other is not None and _fits(outline_of(other), first):
                yield from (*_shown(counted, model), other)


def _suggested(
    origin: Origin, usual: nn.Module, first: Outline, model: nn.Module
) -> Iterator[dict[str, object]]:
    """Yield options of a builder: none, those that attributes tell of, and each flag where modules differ."""
    yield {}
    found = resolve(origin.base)
    taken = found.source.signature(found.name).parameters if found.source is TORCHVISION else {}
    was, now = portrait(usual), portrait(model)
    words = {key: key.rpartition(".")[2] for key in was}
    told: dict[str, object] = {}
    for name, parameter in taken.items():
        usually = [key for key, text in was.items() if text == repr(parameter.default)]
        # Kept under its name, or else under another one, as the rate of a dropout is.
        own = [k for k in (was if parameter.default in (..., None) else usually) if words[k] == name]
        for key in own or [k for k in usually if words[k] == "p" or name.endswith(f"_{words[k]}")]:
            if now.get(key, was[key]) != was[key]:
                with contextlib.suppress(ValueError, SyntaxError):
                    told[name] = ast.literal_eval(now[key])
    yield from [told] if told else []
    if outline_of(usual).modules != first.modules:
        flags = [name for name in taken.keys() - told if "bool" in str(taken[name].annotation)]
        yield from ({**told, name: not taken[name].default} for name in flags)


def _shown(origin: Origin, model: nn.Module) -> Iterator[nn.Module]:
    """Yield a base with weights whose file is on this machine, where the model has all their values."""
    found = resolve(origin.base)
    known, new = weights_of(found), history_of(model).new
    held = {name: place.tensor for name, place in tensors_of(model).items() if name not in new}
    for label in labels_of(found):
        if known is None or known.remote(found.name, label).cached() is None:
            continue
        try:
            base = get_model(origin.base, weights=label, **dict(origin.options))
        except GraftError:
            continue
        both = [(place.tensor, held[name]) for name, place in tensors_of(base).items() if name in held]
        learnt = any(isinstance(tensor, nn.Parameter) and not tensor.is_meta for _, tensor in both)
        if learnt and all(o.dtype == t.dtype and torch.equal(o.to(t.device), t) for o, t in both):
            yield base


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

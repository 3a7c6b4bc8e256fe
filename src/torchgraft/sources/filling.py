"""Filling: build a model of a source together with the weights that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from torch import nn

from torchgraft.alignment.load.accounts import LoadReport, keep_report
from torchgraft.alignment.load.by_names import by_names
from torchgraft.alignment.load.checkpoints import Checkpoint, read_checkpoint
from torchgraft.alignment.load.loading import Terms, put
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import CheckpointError, GraftError, SourceError
from torchgraft.sources.advice import CLASSES, advice, computed, shapes_of
from torchgraft.sources.options import written
from torchgraft.sources.skeleton import skeleton
from torchgraft.sources.source import Found
from torchgraft.sources.weights import Converting, asked_for, chosen, meant, weights_of
from torchgraft.text import literal

__all__ = ["chosen", "filled", "structured"]

_INPUTS = ("in_chans", "in_channels", "num_channels")
Options = Mapping[str, object]


def structured(found: Found, weights: str | bool | None, options: Options) -> nn.Module:
    """Build a model as it is with its weights, without their values.

    Args:
        found: which model of which source.
        weights: what ``chosen`` gave; a file does not need to be there.
        options: options of its builder.

    Returns:
        The model; what it holds is random.
    """
    known = weights_of(found)
    if weights is not None and isinstance(known, Converting):
        label = meant(found, weights).label
        if label:
            return known.structured(found.name, label, options)
    return found.source.build(found.name, options)


def filled(found: Found, weights: str | bool | None, options: Options) -> nn.Module:
    """Build a model and put its weights in; ``load_report`` gives the account of it.

    With another number of classes the trunk is loaded, and the head is new: what may stay as it
    was initialised is what has another shape than without that option. All else has to come out
    of the file.

    Args:
        found: which model of which source.
        weights: what ``chosen`` gave.
        options: options of its builder.

    Returns:
        The model.

    Raises:
        CheckpointError: the file is broken.
        SourceError: the weights are not to be had, or are for another model.
    """
    if weights is None:
        return found.source.build(found.name, options)
    asked = asked_for(found, weights, options)
    known, wanted = weights_of(found), meant(found, weights)
    _check_inputs(found, weights, options, asked)
    path = wanted.path
    if path is None and known is not None:
        path = known.remote(found.name, wanted.label).path(asked)
    path = Path(str(path)).expanduser()
    usual = {key: value for key, value in options.items() if key not in CLASSES}
    if not isinstance(known, Converting) or not wanted.label:
        model = found.source.build(found.name, options)
        plain = skeleton(lambda: found.source.build(found.name, usual))
        try:
            checkpoint = read_checkpoint(path).for_keys(shapes_of(model))
        except CheckpointError as error:
            if error.write.startswith("prefix="):
                error.write = f"load_weights({literal(str(path))}, {error.write})({written(found, options)})"
            raise

        def advised(report: LoadReport) -> str:
            return advice(found, weights, options, checkpoint.shapes, report)

        return _put(model, checkpoint, plain, asked, advised)
    whole = _loaded(known, found, wanted.label, usual, path, asked)
    if len(usual) == len(options):
        held = tuple(tensors_of(whole))
        keep_report(whole, LoadReport(held, evidence=(("names", len(held)),)))
        return whole
    _check_unpacked(whole, asked)
    model = known.structured(found.name, wanted.label, options)
    tensors = {key: held.tensor.detach() for key, held in tensors_of(whole).items()}
    return _put(model, Checkpoint(tensors), whole, asked, lambda _: "the usual number of classes")


def _loaded(
    known: Converting, found: Found, label: str, options: Options, path: Path, asked: str
) -> nn.Module:
    """Build a model with the code of its source, which loads all of a file or raises anything."""
    try:
        return known.loaded(found.name, label, options, path)
    except GraftError as error:
        error.asked = error.asked or asked
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or ["nothing more"]
        raise SourceError(
            f"the weights {label} do not go into {found.base}" + " with these options" * bool(options),
            asked=asked,
            found=f"{type(error).__name__}: {' '.join(line.strip() for line in said[:2])[:160]}",
            write=f"get_model({literal(found.base)}, weights={literal(label)}), and transforms after it"
            if options
            else "a fresh copy of the file",
        ) from error


def _put(
    model: nn.Module,
    checkpoint: Checkpoint,
    plain: nn.Module,
    asked: str,
    advised: Callable[[LoadReport], str],
) -> nn.Module:
    """Fill a model, all of it but for what the number of classes decides on, or the builder computes.

    Args:
        model: the model; its tensors get other values.
        checkpoint: the tensors.
        plain: the same model with its usual number of classes.
        asked: the call, for the error.
        advised: writes the call that the checkpoint is for.

    Raises:
        SourceError: the checkpoint is for another model.
    """
    shapes, usual = shapes_of(model), shapes_of(plain)
    report = put(model, checkpoint, by_names(checkpoint.shapes, shapes), Terms(min_coverage=0))
    left = computed(model)
    lacking = tuple(key for key in report.missing if key not in left)
    new = (*(held.target for held in report.mismatched), *lacking)
    if any(shapes.get(key) == usual.get(key) for key in (*new, *report.unexpected)):
        raise SourceError(
            "the weights are for another model" if new else "the file holds more than this model",
            asked=asked,
            found="\n         ".join(" ".join(line.split()) for line in str(report).splitlines()),
            write=advised(report),
        )
    keep_report(model, attrs.evolve(report, initialised=new))
    return model


def _check_inputs(found: Found, weights: str | bool, options: Options, asked: str) -> None:
    """Refuse another number of input channels: what a stem makes of its weights is for the user to say.

    Raises:
        SourceError: the options ask for it.
    """
    given = {key: value for key, value in options.items() if key in _INPUTS}
    rest = {key: value for key, value in options.items() if key not in _INPUTS}
    if given and _planned(found, weights, options) != _planned(found, weights, rest):
        raise SourceError(
            "weights are for the number of input channels that they were trained with",
            asked=asked,
            found=", ".join(f"{key}={literal(value)}" for key, value in given.items()),
            write="adapt_input(<channels>)(get_model(...)), which adapts them",
        )


def _check_unpacked(model: nn.Module, asked: str) -> None:
    """Refuse to take a part of tensors that are packed.

    Raises:
        SourceError: a model is quantised.
    """
    packed = [key for key in model.state_dict() if key not in tensors_of(model)]
    if packed:
        raise SourceError(
            "a quantised model is loaded whole or not at all",
            asked=asked,
            found=f"{packed[0]!r}, which is no tensor",
            write="the usual number of classes",
        )


def _planned(found: Found, weights: str | bool, options: Options) -> dict[str, tuple[int, ...]]:
    return shapes_of(skeleton(lambda: structured(found, weights, options)))

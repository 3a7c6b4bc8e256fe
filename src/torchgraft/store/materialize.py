"""Materialize: give values to a model that was built and edited without them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft.alignment.load.by_names import by_names
from torchgraft.alignment.load.checkpoints import opened
from torchgraft.alignment.load.loading import Terms
from torchgraft.alignment.load.loading import put as fill
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import CheckpointError, GraftError, ModelError
from torchgraft.graph.checks import check_model
from torchgraft.graph.clone import clone
from torchgraft.graph.history import history_of
from torchgraft.graph.outline import named_tensors
from torchgraft.graph.portrait import portrait
from torchgraft.sources.advice import shapes_of
from torchgraft.sources.get import skeleton_of
from torchgraft.sources.recognise import recognised
from torchgraft.sources.skeleton import constants
from torchgraft.store.constants import buffers
from torchgraft.store.fitting import put
from torchgraft.store.load import device_named
from torchgraft.text import plural, spelled
from torchgraft.transform import done

_SHOWN = 3
_ALL = Terms(strict=True, min_coverage=0, allow_nan=True)
Weights = str | Path | Mapping[str, object] | nn.Module


@spelled
def materialize(model: nn.Module, weights: Weights, *, device: str | torch.device = "cpu") -> nn.Module:
    """Give values to a model that was built, and edited, on the meta device.

    The base gets the weights, and what the steps added starts as it does where the same steps are
    done to a model with values: bit for bit, with the seed, or the state of the generator, that
    the steps were done with.

    Args:
        model: the model; it is only read.
        weights: of the model before its steps: a state dict, what was saved around it, the path
            of a file, or a model. One with all values is needed where some are in no state dict.
        device: where the tensors shall be.

    Returns:
        A new model with values, modes and history; parameters that are held are held in it.

    Raises:
        CheckpointError: there are no such weights, or not all that the base needs.
        CoverageError: the weights are not those of the base.
        ModelError: the model was changed by hand after its steps, or is a wrapper.
        OptionError: there is no such device.

    Example:
        >>> from torchgraft import pipe, swap_head
        >>> base = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> with torch.device("meta"):
        ...     empty = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> filled = materialize(pipe(empty, swap_head(5), seed=0), base.state_dict())
        >>> wanted = pipe(base, swap_head(5), seed=0)
        >>> all(value.equal(filled.state_dict()[key]) for key, value in wanted.state_dict().items())
        True
    """
    check_model(model, "materialize")
    where, deferred = device_named(device), history_of(model).deferred
    base = clone(model if deferred.base is None else deferred.base)
    if isinstance(weights, nn.Module) and portrait(weights) == portrait(base):
        base = clone(weights).to(where)
    else:
        _fill(base, weights.state_dict() if isinstance(weights, nn.Module) else weights, where)
    result = done(deferred, base)
    made, wanted = portrait(result), portrait(model)
    other = [path for path in {**made, **wanted} if made.get(path) != wanted.get(path)]
    if other:
        raise ModelError(
            "the model is not what its steps make of its base",
            found=f"another {', '.join(other[:_SHOWN])}",
            write="materialize(model, ...) first, and changes by hand after it",
        )
    for (_, to), (_, like) in zip(result.named_modules(), model.named_modules(), strict=True):
        to.training = like.training
    for (_, tensor), (_, like) in zip(named_tensors(result), named_tensors(model), strict=True):
        tensor.data = tensor.data.to(like.dtype)
        tensor.requires_grad_(like.requires_grad)
    return result


def _fill(base: nn.Module, weights: str | Path | Mapping[str, object], device: torch.device) -> None:
    """Give a model memory and weights, and what no state dict holds where it can be computed.

    Raises:
        CheckpointError: there are no such weights.
        CoverageError: some are missing, left over, or of another shape.
    """
    checkpoint = opened(weights).for_keys(shapes_of(base))
    beside, given = buffers(base), checkpoint.tensors
    known = {key: tensor for key, tensor in given.items() if key in beside}
    if any(tensor.is_meta and path not in known for path, tensor in constants(base)):
        known = {**_computed(base), **known}
    lost = [path for path, t in constants(base) if t.is_meta and not (path in known and path in beside)]
    if lost:
        raise CheckpointError(
            f"{lost[0]!r} is in no state dict, and was built without values",
            found=plural(len(lost), "tensor") + " that the builder of the model computes",
            write="materialize(model, <a model with all values of its base>)",
        )
    groups: dict[int, list[str]] = {}
    places = tensors_of(base) | beside
    for key, place in places.items():
        groups.setdefault(id(place.tensor), []).append(key)
    for keys in groups.values():
        old = places[keys[0]].tensor
        value = known.get(keys[0], old)
        fresh = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
        fresh = fresh if value.is_meta else fresh.copy_(value)
        put(fresh, [places[key] for key in keys], device, trainable=old.requires_grad)
    checkpoint = attrs.evolve(checkpoint, tensors={k: t for k, t in given.items() if k not in beside})
    try:
        fill(base, checkpoint, by_names(checkpoint.shapes, shapes_of(base)), _ALL)
    except GraftError as error:
        error.write = "materialize(model, <the weights of its base>)"
        raise


def _computed(base: nn.Module) -> dict[str, torch.Tensor]:
    """Compute what no state dict holds as the source of a model does, where one has it."""
    origin = history_of(base).origin or recognised(base, lambda other: other)
    return {} if origin is None else dict(constants(skeleton_of(origin)))

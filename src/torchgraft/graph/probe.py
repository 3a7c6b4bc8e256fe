"""Find an input that a model takes, by what its first layers ask for."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from torchgraft.errors import AnalysisError
from torchgraft.graph.constant_values import reads_values
from torchgraft.graph.deep.record import Record, record
from torchgraft.graph.run import Arguments as Arguments
from torchgraft.graph.whereabouts import stopped_at
from torchgraft.text import write_error

Example = torch.Tensor | tuple[object, ...] | Mapping[str, object]

# Sizes that vision models are made for, the usual one first.
_SIDES = (224, 256, 299, 384, 240, 192, 448, 512, 288, 320, 196, 160, 128, 336, 518, 96, 64, 32)
_SMALL = (8, 16, 32, 14, 64)
_BATCH = 2


def arguments_of(example: Example) -> Arguments:
    """Turn an example into positional and keyword arguments."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example) if isinstance(example, (tuple, list)) else (example,), {}


def on_meta(example: Example) -> Example:
    """Keep of an example tensor what it looks like; other examples are kept as they are."""
    return torch.empty_like(example, device="meta") if isinstance(example, torch.Tensor) else example


def probe(model: nn.Module, example: Example | None, *, training: bool = False) -> Record:
    """Record a run of a model on meta tensors, on the example or on the first guess that it takes.

    Args:
        model: the model; it is only read.
        example: an input, a tuple of arguments or a mapping of keyword arguments.
        training: the mode to run in.

    Returns:
        The record.

    Raises:
        AnalysisError: the example, or every guess, fails.
    """
    if example is None:
        return _guess(model, training=training)[1]
    try:
        return record(model, arguments_of(example), training=training)
    except Exception as error:
        raise _failed(model, error, "the example given") from error


def guessed(model: nn.Module) -> torch.Tensor:
    """Return the first guess of an input that a model takes, on meta.

    Raises:
        AnalysisError: every guess fails.
    """
    return _guess(model, training=False)[0]


def small_guesses(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield guesses of an input, on meta, that are small enough for a run on values."""
    seen: set[int] = set()
    for guess in _guesses(module):
        if guess.ndim != 4:
            yield guess
        elif guess.shape[1] not in seen:
            seen.add(guess.shape[1])
            sides = (*_SMALL, *itertools.islice(_declared(module), 1))
            yield from (guess.new_empty(*guess.shape[:2], *_both(side)) for side in sides)


def _guess(model: nn.Module, *, training: bool) -> tuple[torch.Tensor, Record]:
    first: Exception | None = None
    last = ""
    for guess in _guesses(model):
        try:
            return guess, record(model, ((guess,), {}), training=training)
        except Exception as error:  # noqa: BLE001 - a guess may fail in any way
            first, before, last = first or error, last, repr(error)
            if reads_values(error) or (last == before and isinstance(error, _SIZELESS)):
                break  # no other size would help
    raise _failed(model, first, "a guessed input") from first


_SIZELESS = (TypeError, AttributeError, NameError, KeyError)
"""Errors that do not come from the size of an input."""


def needed_by(forward: Callable[..., object]) -> list[str]:
    """Name the arguments that a forward cannot do without."""
    parameters = inspect.signature(forward).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def _failed(model: nn.Module, error: Exception | None, given: str) -> AnalysisError:
    name = type(model).__name__
    found = write_error(error) if error else "no layer that tells what it takes"
    if error is not None and reads_values(error):
        filename, number, line = stopped_at(error, model)
        return AnalysisError(
            f"{name} decides on values, so it does not run on meta tensors, and its shapes are unknown",
            found=f"{filename}:{number}: {line} ({found})",
            write="replace(<target>, <block>, keep_shape=False)",
        )
    needed = needed_by(model.forward) if callable(model.forward) else []
    example = f"({', '.join(needed)})" if len(needed) > 1 else "torch.zeros(<sizes>)"
    return AnalysisError(
        f"{name} does not run on {given} on meta tensors, so its shapes are unknown",
        found=found,
        write=f"pipe(model, ..., example={example})",
    )


def _guesses(model: nn.Module) -> Iterator[torch.Tensor]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def of(*shape: int) -> torch.Tensor:
        return torch.empty(_BATCH, *shape, dtype=dtype, device="meta")

    leaves = [m for m in model.modules() if not m._modules]
    convolutions = [m for m in leaves if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    if convolutions:
        channels = convolutions[0].in_channels
        sides = dict.fromkeys((*_declared(model), *_SIDES))
        for side in sides:
            yield of(channels, *_both(side))
        if channels != 3:  # the first convolution registered need not be the first called
            for side in sides:
                yield of(3, *_both(side))
    for leaf in leaves:
        if isinstance(leaf, nn.Linear):
            yield of(leaf.in_features)
            yield of(6, leaf.in_features)
            yield of(6, 6, leaf.in_features)
            break
    for leaf in leaves:
        if isinstance(leaf, nn.Conv1d):
            yield of(leaf.in_channels, 64)
            break
        if isinstance(leaf, nn.Conv3d):
            yield of(leaf.in_channels, 16, 112, 112)
            yield of(leaf.in_channels, 16, 224, 224)
            break
        if isinstance(leaf, nn.Embedding):
            yield torch.empty(_BATCH, 16, dtype=torch.long, device="meta")
            break
        if isinstance(leaf, nn.modules.batchnorm._BatchNorm):
            yield of(leaf.num_features, 8, 8)
            yield of(leaf.num_features)
            break
    for side in (*_declared(model), 224, 32):
        yield of(3, *_both(side))


def _both(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _declared(model: nn.Module) -> Iterator[int | tuple[int, int]]:
    """Yield the sides that a model declares in its own attributes, two where they differ."""
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        size = getattr(config, "input_size", None)
        if size is None and isinstance(config, Mapping):
            size = config.get("input_size")
        if isinstance(size, (tuple, list)) and len(size) == 3:
            yield from _sides(size[1:])
    for module in (model, *model.children()):
        for name in ("image_size", "img_size"):
            yield from _sides(getattr(module, name, None))


def _sides(size: object) -> Iterator[int | tuple[int, int]]:
    high, wide = (size[0], size[-1]) if isinstance(size, (tuple, list)) and size else (size, size)
    if isinstance(high, int) and isinstance(wide, int):
        yield wide if high == wide else (high, wide)

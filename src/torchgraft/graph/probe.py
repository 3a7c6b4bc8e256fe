"""Find an input that a model takes, by what its first layers ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from torchgraft.errors import AnalysisError
from torchgraft.graph.run import Run, run_on_meta

Example = torch.Tensor | tuple[object, ...] | Mapping[str, object]
Arguments = tuple[tuple[object, ...], dict[str, object]]

# Sizes that vision models are made for, the usual one first.
_SIDES = (224, 256, 299, 384, 240, 192, 448, 512, 288, 320, 196, 160, 128, 336, 518, 96, 64, 32)
_BATCH = 2


def arguments_of(example: Example) -> Arguments:
    """Turn an example into positional and keyword arguments."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example), {}


def on_meta(example: Example) -> Example:
    """Keep of an example tensor what it looks like; other examples are kept as they are."""
    return torch.empty_like(example, device="meta") if isinstance(example, torch.Tensor) else example


def probe(model: nn.Module, example: Example | None, *, training: bool = False) -> Run:
    """Run a model on meta tensors, with the example or with the first guess that it takes.

    Args:
        model: the model; it is only read.
        example: an input, a tuple of arguments or a mapping of keyword arguments.
        training: the mode to run in.

    Returns:
        The run.

    Raises:
        AnalysisError: the example, or every guess, fails.
    """
    if example is not None:
        try:
            return run_on_meta(model, *arguments_of(example), training=training)
        except Exception as error:
            raise AnalysisError(
                f"{type(model).__name__} does not run on the example given",
                found=_short(error),
                write="pipe(model, ..., example=torch.zeros(<an input the model takes>))",
            ) from error
    return _tried(model, training)[1]


def guessed(model: nn.Module) -> torch.Tensor:
    """Return the first guess of an input that a model takes, on meta.

    Raises:
        AnalysisError: every guess fails.
    """
    return _tried(model, training=False)[0]


def _tried(model: nn.Module, training: bool) -> tuple[torch.Tensor, Run]:
    first: Exception | None = None
    for guess in _guesses(model):
        try:
            return guess, run_on_meta(model, (guess,), training=training)
        except Exception as error:  # noqa: BLE001 - a guess may fail in any way
            first = first or error
    raise AnalysisError(
        f"no guessed input runs through {type(model).__name__} on meta tensors, so its shapes are unknown",
        found=_short(first) if first else "no layer that tells what it takes",
        write="pipe(model, ..., example=torch.zeros(<an input the model takes>))",
    ) from first


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
            yield of(channels, side, side)
        if channels != 3:  # the first convolution registered need not be the first called
            for side in sides:
                yield of(3, side, side)
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
            break
        if isinstance(leaf, nn.Embedding):
            yield torch.empty(_BATCH, 16, dtype=torch.long, device="meta")
            break
        if isinstance(leaf, nn.modules.batchnorm._BatchNorm):
            yield of(leaf.num_features, 8, 8)
            yield of(leaf.num_features)
            break
    for side in (*_declared(model), 224, 32):
        yield of(3, side, side)


def _declared(model: nn.Module) -> Iterator[int]:
    """Yield the sides that a model declares in its own attributes."""
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        size = getattr(config, "input_size", None)
        if size is None and isinstance(config, Mapping):
            size = config.get("input_size")
        if isinstance(size, (tuple, list)) and len(size) == 3:
            yield int(size[-1])
    for module in (model, *model.children()):
        for name in ("image_size", "img_size"):
            size = getattr(module, name, None)
            size = size[-1] if isinstance(size, (tuple, list)) and size else size
            if isinstance(size, int):
                yield size


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]

"""What is given on the command line: models by name, as a saved file or a recipe; files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft.alignment.entry import Shape
from torchgraft.alignment.load.checkpoints import read_checkpoint
from torchgraft.cli.progress import Stage
from torchgraft.errors import CheckpointError, OptionError
from torchgraft.graph.probe import Example
from torchgraft.recipe import Recipe, build, read_recipe
from torchgraft.recipe.building import example_of
from torchgraft.sources.find import resolve
from torchgraft.sources.get import skeleton_of
from torchgraft.store.load import load
from torchgraft.store.reading import KEY, SUFFIX, looked_at, read_record
from torchgraft.store.rebuilding import rebuilt
from torchgraft.store.record import Record
from torchgraft.store.stock import DTYPES
from torchgraft.transform import replayed

_INDEX = ".safetensors.index.json"
_RECIPES = (".yaml", ".yml", ".json")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", _INDEX)


Sizes = tuple[tuple[int, ...], ...]
"""Shapes of inputs."""


def is_file(text: str) -> bool:
    """Return True if a text means a file of weights: one that is there, or what is named like one."""
    return text.endswith(_WEIGHTS) or (Path(text).is_file() and not is_recipe(text))


def is_recipe(text: str) -> bool:
    """Return True if a text means a recipe."""
    return text.endswith(_RECIPES) and not text.endswith(_INDEX)


def make_skeleton(stage: Stage, text: str, options: Mapping[str, object]) -> nn.Module:
    """Set up a model without its values; options are for the builder of one that is given by name."""
    stage(f"setting up {text}")
    if not (is_file(text) or is_recipe(text)):
        return skeleton_of(Recipe(resolve(text).base, options=options).origin, files=True)
    _check_alone(text, options)
    if is_file(text):
        return rebuilt(read_record(text))
    recipe = read_recipe(text)
    return replayed(skeleton_of(recipe.origin, files=True), recipe.steps, example_of(recipe))


def make_model(
    stage: Stage,
    text: str,
    *,
    weights: str | None = None,
    options: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Make a model with its values; weights and options are for one that is given by name."""
    if is_file(text) or is_recipe(text):
        _check_alone(text, {**(options or {}), **({"weights": weights} if weights else {})})
        stage(f"{'loading' if is_file(text) else 'building'} {text}")
        if is_file(text):
            check_regular(Path(text))
            return load(text)
        return build(text, seed=seed)
    stage(f"building {text}")
    return build(Recipe(resolve(text).base, weights=weights, options=options or {}), seed=seed)


def make_example(shapes: Sizes, *, device: str = "cpu") -> Example | None:
    """Return inputs of some shapes; nothing for no shapes."""
    made = tuple(torch.zeros(shape, device=device) for shape in shapes)
    return made if len(made) > 1 else next(iter(made), None)


def _check_alone(text: str, options: Mapping[str, object]) -> None:
    if options:
        raise OptionError(
            "options and weights are for a model that is given by name",
            asked=", ".join(f"{name}={value}" for name, value in options.items()),
            found=f"{text}, which says itself what it is made of",
            write=f"{text} alone, or the name of its base",
        )


@attrs.frozen
class Held:
    """What stands in a file: its tensors by name; ``record`` is ``None`` for weights alone."""

    path: Path
    tensors: Mapping[str, tuple[str, Shape]]
    record: Record | None
    metadata: Mapping[str, str]
    size: int


def read_file(path: Path) -> Held:
    """Read what stands in a file; of safetensors no tensor is read."""
    check_regular(path)
    if path.suffix not in (SUFFIX, ".json"):
        found = read_checkpoint(path)
        kinds = {n: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in found.tensors.items()}
        return Held(path, kinds, None, found.metadata, sum(t.nbytes for t in found.tensors.values()))
    file, tensors, metadata = looked_at(path)
    record = read_record(path) if KEY in metadata else None
    told = {name: (stored.dtype, stored.shape) for name, stored in tensors.items()}
    other = {name: str(text) for name, text in metadata.items() if name != KEY}
    return Held(file, told, record, other, sum(stored.size for stored in tensors.values()))


def check_regular(path: Path) -> None:
    """Check that reading a file comes to an end: that it is no folder, pipe or device."""
    if path.exists() and not path.is_file():
        raise CheckpointError(
            f"{path.name!r} is no file of weights",
            asked=str(path),
            found="a folder" if path.is_dir() else "a pipe or a device",
            write="a .safetensors file, or one that torch.save wrote",
        )

"""Models as they are given on the command line: by name, as a saved file, or as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from torchgraft.cli.stage import Stage
from torchgraft.cli.work.files import check_regular
from torchgraft.errors import OptionError
from torchgraft.graph.probe import Example
from torchgraft.recipe import Recipe, build, read_recipe
from torchgraft.recipe.building import example_of
from torchgraft.sources.find import resolve
from torchgraft.sources.get import skeleton_of
from torchgraft.store.load import load
from torchgraft.store.reading import read_record
from torchgraft.store.rebuilding import rebuilt
from torchgraft.transform import replayed

_INDEX = ".safetensors.index.json"
_RECIPES = (".yaml", ".yml", ".json")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", _INDEX)


def is_file(text: str) -> bool:
    """Tell whether a text means a file of weights: one that is there, or what is named like one."""
    return text.endswith(_WEIGHTS) or (Path(text).is_file() and not is_recipe(text))


def is_recipe(text: str) -> bool:
    """Tell whether a text means a recipe."""
    return text.endswith(_RECIPES) and not text.endswith(_INDEX)


def structure(stage: Stage, text: str, options: Mapping[str, object]) -> nn.Module:
    """Set up a model without its values.

    Args:
        stage: told what begins.
        text: as it was typed.
        options: of the builder of a model that is given by name.

    Raises:
        GraftError: there is no such model.
    """
    stage(f"setting up {text}")
    if not (is_file(text) or is_recipe(text)):
        return skeleton_of(Recipe(resolve(text).base, options=options).origin, files=True)
    _check_alone(text, options)
    if is_file(text):
        return rebuilt(read_record(text))
    recipe = read_recipe(text)
    return replayed(skeleton_of(recipe.origin, files=True), recipe.steps, example_of(recipe))


def model(
    stage: Stage,
    text: str,
    *,
    weights: str | None = None,
    options: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Make a model with its values.

    Args:
        stage: told what begins.
        text: as it was typed.
        weights: of a model that is given by name.
        options: of its builder.
        seed: for random values.

    Raises:
        GraftError: there is no such model.
    """
    if is_file(text) or is_recipe(text):
        _check_alone(text, {**(options or {}), **({"weights": weights} if weights else {})})
        stage(f"{'loading' if is_file(text) else 'building'} {text}")
        if is_file(text):
            check_regular(Path(text))
            return load(text)
        return build(text, seed=seed)
    stage(f"building {text}")
    return build(Recipe(resolve(text).base, weights=weights, options=options or {}), seed=seed)


def example(shapes: tuple[tuple[int, ...], ...], *, device: str = "cpu") -> Example | None:
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

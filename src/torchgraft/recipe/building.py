"""From a recipe to a model, and from a model to its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from torchgraft.errors import OptionError, RecipeError
from torchgraft.graph.checks import check_model
from torchgraft.graph.history import Origin, history_of
from torchgraft.recipe.reading import read_recipe
from torchgraft.recipe.recipe import Recipe
from torchgraft.recipe.written import read_back, remark
from torchgraft.sources.get import get_model
from torchgraft.sources.recognise import recognised
from torchgraft.text import kind, literal, spelled
from torchgraft.transform import Transform, pipe, replayed, seeded

_FROM_MEMORY = "load_weights(<"
"""How the step begins that holds tensors, or a model, and no path."""


@spelled
def build(
    recipe: Recipe | str | Path,
    *,
    seed: int | None = None,
    variables: Mapping[str, object] | None = None,
    outside: bool = False,
) -> nn.Module:
    """Make the model of a recipe.

    Args:
        recipe: a recipe, or the path of one.
        seed: seed for new parameters; the global generator is then left where it was.
        variables: of a file, values that win over its ``vars``.
        outside: of a file, paths may lead out of its folder.

    Returns:
        The model, which knows its recipe.

    Raises:
        GraftError: its base cannot be had, or a step cannot be done.
        RecipeError: it is no recipe, or its base has other weights than it was written for.

    Example:
        >>> build(Recipe("torchvision/resnet18", steps=["swap_head(10)"])).fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    if isinstance(recipe, Recipe) and (variables or outside):
        raise OptionError(
            "a recipe that was read has its variables and its paths",
            found="a Recipe",
            write="build(<path>, ...), or read_recipe(<path>, ...)",
        )
    held = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, variables=variables, outside=outside)
    if not held.base:
        raise RecipeError(
            "the recipe does not say what it begins with",
            found='base ""',
            write="pipe(<the model>, *recipe.steps)",
        )
    with seeded(seed):
        base = get_model(held.base, weights=held.weights, **dict(held.options))
    found = history_of(base).origin
    if held.sha256 and held.weights and found and found.sha256 != held.sha256:
        raise RecipeError(
            f"the weights of {held.base} are not those that the recipe was written for",
            asked=f"sha256={literal(held.sha256)}",
            found=f"sha256={literal(found.sha256)} of {held.weights}",
            write="a recipe without sha256, for whatever weights these are",
        )
    if not held.steps:
        return base
    return pipe(base, *held.steps, example=example_of(held), seed=seed)


def recipe_of(model: nn.Module) -> Recipe:
    """Tell how a model was made: its base, and the steps since.

    Args:
        model: the model; it is only read. Its base is known if it was made with ``get_model``
            or ``load``, or if it is a model of a library as that library builds it.

    Returns:
        The recipe; its base is empty where it is not known.

    Raises:
        ModelError: it is a wrapper or no model.
        RecipeError: a step cannot be written; tells which.

    Example:
        >>> from torchgraft import freeze
        >>> recipe_of(pipe(get_model("resnet18", num_classes=5), freeze("layer1")))
        Recipe("torchvision/resnet18", options=(("num_classes", 5),), steps=(freeze("layer1"),))
    """
    check_model(model)
    history = history_of(model)
    steps = tuple(read_back(step, number) for number, step in enumerate(history.steps, 1))
    held = history.example
    if held is not None and not isinstance(held, torch.Tensor):
        raise RecipeError(
            "the example that the model was made with cannot be written",
            found=f"{kind(held)}, and a recipe names the sizes of one tensor",
            write="save(model, ...), whose files can hold it",
        )
    sizes = tuple(held.shape) if held is not None else None
    origin = history.origin or recognised(model, lambda base: replayed(base, steps, held)) or Origin("")
    return Recipe(
        origin.base,
        weights=origin.weights,
        options=origin.options,
        steps=steps,
        example=sizes or None,
        sha256=origin.sha256,
    )


def steps_of(model: nn.Module) -> tuple[Transform, ...]:
    """Return what was done to a model, as far as a file with its tensors needs it.

    Steps that filled tensors out of memory are left out; of those that no text holds there is a remark.

    Args:
        model: the model; it is only read.
    """
    steps = [step for step in history_of(model).steps if not step.startswith(_FROM_MEMORY)]
    made: list[Transform] = []
    for number, step in enumerate(steps, 1):
        try:
            made.append(read_back(step, number))
        except RecipeError:
            made.append(remark(step))
    return tuple(made)


def example_of(recipe: Recipe) -> torch.Tensor | None:
    """Return an input of the sizes that a recipe names, without values."""
    return torch.empty(recipe.example, device="meta") if recipe.example else None

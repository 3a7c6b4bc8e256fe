"""Recipes as plain data: what stands in the metadata of a file."""

from __future__ import annotations

from torchgraft.recipe.entry import NotRead, entered
from torchgraft.recipe.problem import Place, Problems
from torchgraft.recipe.recipe import Recipe, recipe_of_entry
from torchgraft.recipe.written import to_plain as to_plain


def from_plain(data: object, where: str = "") -> Recipe:
    """Read a recipe from plain data of unknown origin; a dollar in it is a dollar.

    Args:
        data: what ``to_plain`` gave.
        where: what it stands in, for messages.

    Returns:
        The recipe.

    Raises:
        RecipeError: it is none.

    Example:
        >>> from_plain({"torchgraft": 1, "base": "torchvision/resnet18"})
        Recipe("torchvision/resnet18")
    """
    problems, place = Problems(), Place(where)
    try:
        return recipe_of_entry(entered(data, place), problems)
    except NotRead as error:
        problems.add(place, str(error), found=error.found, write=error.write)
        raise problems.error() from error

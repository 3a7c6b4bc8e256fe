"""Read a recipe from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torchgraft.recipe.contents import Contents, contents_of
from torchgraft.recipe.files import Folder, gathered
from torchgraft.recipe.problem import Problems
from torchgraft.recipe.recipe import Recipe
from torchgraft.text import spelled


@spelled
def read_recipe(
    path: str | Path, *, variables: Mapping[str, object] | None = None, outside: bool = False
) -> Recipe:
    r"""Read a recipe from a file of YAML or JSON, and from those that it extends.

    A recipe may extend another one: its own names win, its steps follow. ``${name}`` stands
    for a value of ``vars``. Paths are relative to the file in which they stand.

    Args:
        path: of the file.
        variables: values that win over ``vars``.
        outside: paths may lead out of the folder of the recipe.

    Returns:
        The recipe.

    Raises:
        RecipeError: it is none; tells the first of what is wrong, with file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "recipe.yaml"
        ...     _ = path.write_text("torchgraft: 1\nbase: torchvision/resnet18\nsteps:\n- drop_head()\n")
        ...     read_recipe(path)
        Recipe("torchvision/resnet18", steps=(drop_head(),))
    """
    problems = Problems()
    contents = contents_at(Path(path), problems, variables or {}, outside=outside)
    problems.check()
    return Recipe.of(contents)


def contents_at(
    path: Path, problems: Problems, variables: Mapping[str, object], *, outside: bool
) -> Contents:
    """Read what a file says; what is wrong with it is noted.

    Args:
        path: of the file.
        problems: gets what is wrong.
        variables: values that win over those of the file.
        outside: paths may lead out of its folder.
    """
    folder = Folder.of(path, outside=outside)
    sheet = gathered(path, folder, problems)
    return contents_of(sheet, folder, problems, variables) if sheet else Contents()

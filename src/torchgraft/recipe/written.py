"""Recipes as plain data, and steps as text that is read back as the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from torchgraft.errors import GraftError, RecipeError
from torchgraft.graph.draft import Draft
from torchgraft.recipe.bounds import excerpt
from torchgraft.recipe.reader import parse
from torchgraft.recipe.sheet import VERSION
from torchgraft.transform import Transform

if TYPE_CHECKING:
    from torchgraft.recipe.recipe import Recipe

MARK = "# "
"""How a step begins in a file that it could not be written to."""
_REGISTERED = '@register_block("my_block") on what makes the module, and "my_block" in the step'
_HELD = (
    ("edit(", "it holds a function of the draft", "a transform of torchgraft in its place"),
    ("where(", "it holds a function of a site", "a path, a glob, a class or an operation in its place"),
    ("load_weights(<", "it holds tensors", 'load_weights("weights.safetensors"), with the path of a file'),
    ("<lambda", "it holds a function without a name", _REGISTERED),
)


def to_plain(recipe: Recipe) -> dict[str, object]:
    """Turn a recipe into plain data: text, numbers, flags, lists, and values by name.

    Args:
        recipe: the recipe.

    Returns:
        The data, in the order in which it is written; sizes of an example and a digest only
        where there are any.

    Raises:
        RecipeError: a step cannot be written as text.

    Example:
        >>> from torchgraft.recipe.recipe import Recipe
        >>> to_plain(Recipe("torchvision/resnet18", steps=["drop_head()"]))["steps"]
        ['drop_head()']
    """
    held: dict[str, object] = {
        "torchgraft": VERSION,
        "base": recipe.base,
        "weights": recipe.weights,
        "options": {name: _listed(value) for name, value in recipe.options},
        "steps": [written(step, number) for number, step in enumerate(recipe.steps, 1)],
    }
    if recipe.example:
        held["example"] = list(recipe.example)
    return {**held, "sha256": recipe.sha256} if recipe.sha256 else held


def written(step: Transform, number: int) -> str:
    """Write a step as text.

    Args:
        step: the step.
        number: its number, from 1.

    Raises:
        RecipeError: what is read back from its text is not the same step.
    """
    said = repr(step)
    if isinstance(step, Remark):
        return said
    if read_back(said, number) != step:
        raise unwritable(said, number, "its text is read as another step")
    return said


@attrs.frozen(repr=False)
class Remark(Transform):
    """A step of which a file has nothing but a remark, as no text says all that there is to it.

    Args:
        text: what it printed.
    """

    text: str

    def _edit(self, draft: Draft) -> None:  # noqa: ARG002 - nothing can be done
        raise unwritable(self.text, 0, "the file has a remark in its place")

    def __repr__(self) -> str:
        return MARK + self.text


def remark(said: str) -> Remark:
    """Keep what a step printed, in short."""
    return Remark(excerpt(said.removeprefix(MARK.strip()).strip()))


def read_back(said: str, number: int) -> Transform:
    """Read a step from what it prints.

    Raises:
        RecipeError: it holds what cannot be written.
    """
    try:
        return parse(said)
    except GraftError as error:
        raise unwritable(said, number, error.summary) from error


def unwritable(said: str, number: int, why: str) -> RecipeError:
    """Make the error for a step that no file can hold."""
    for mark, found, instead in _HELD:
        if mark in said:
            why, write = found, instead
            break
    else:
        write = _REGISTERED
    what = (
        f"step {number} cannot be written" if number else "a step was not written, so it cannot be done again"
    )
    return RecipeError(what, asked=excerpt(said), found=why, write=write)


def _listed(value: object) -> object:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value

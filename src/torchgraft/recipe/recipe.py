"""The recipe: which model, with which weights, and what is done to it, as a frozen value."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from torchgraft.graph.history import Origin
from torchgraft.recipe.contents import Contents, contents_of
from torchgraft.recipe.entry import Entry
from torchgraft.recipe.files import Folder, document
from torchgraft.recipe.problem import Problems
from torchgraft.recipe.sheet import KEYS, PLAIN, sheet_of
from torchgraft.recipe.values import (
    Options,
    base_value,
    example_value,
    options_value,
    sha256_value,
    steps_value,
    weights_value,
)
from torchgraft.recipe.variables import escaped
from torchgraft.recipe.written import MARK, to_plain
from torchgraft.recipe.yaml_text import write_yaml
from torchgraft.text import call, spelled_class
from torchgraft.transform import Transform


@spelled_class
@attrs.frozen(repr=False)
class Recipe:
    """Say which model, with which weights, and what is done to it.

    A recipe is equal by content, hashes, and is written as YAML, as JSON or as plain data.
    Steps are transforms or their text.

    Args:
        base: full name of the model; empty where it is not known.
        weights: name of its weights, path of a file, or ``True`` for the default of the source.
        options: for its builder.
        steps: what is done to it, the first one first.
        example: sizes of an input, for models whose input cannot be guessed.
        sha256: digest of the base's weights, checked where the model is built.

    Example:
        >>> recipe = Recipe("torchvision/resnet50", steps=('wrap("layer4", se)', "swap_head(10)"))
        >>> print(recipe.to_yaml(), end="")
        torchgraft: 1
        base: torchvision/resnet50
        steps:
          - wrap("layer4", se())
          - swap_head(10)
        >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    base: str = attrs.field(converter=base_value)
    weights: str | bool | None = attrs.field(kw_only=True, default=None, converter=weights_value)
    options: Options = attrs.field(kw_only=True, default=(), converter=options_value)
    steps: tuple[Transform, ...] = attrs.field(kw_only=True, default=(), converter=steps_value)
    example: tuple[int, ...] | None = attrs.field(kw_only=True, default=None, converter=example_value)
    sha256: str = attrs.field(kw_only=True, default="", converter=sha256_value)

    @property
    def origin(self) -> Origin:
        """Where the base comes from."""
        return Origin(self.base, self.weights, self.options, self.sha256)

    def to_yaml(self) -> str:
        """Write it as YAML, one step a line.

        Returns:
            The text; ``Recipe.from_yaml`` reads it back.

        Raises:
            RecipeError: a step cannot be written as text.
        """
        held = _with_base(escaped(to_plain(self)))
        return write_yaml({name: value for name, value in held.items() if value or name == "base"})

    def to_json(self) -> str:
        """Write it as JSON.

        Returns:
            The text; ``Recipe.from_json`` reads it back.

        Raises:
            RecipeError: a step cannot be written as text.
        """
        return json.dumps(_with_base(escaped(to_plain(self))), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe that is YAML; of a file, use ``read_recipe``.

        Args:
            text: the recipe.

        Returns:
            The recipe.

        Raises:
            RecipeError: it is none; tells the first of what is wrong, with its line.
        """
        return cls._of_text(text, json=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe that is JSON; of a file, use ``read_recipe``.

        Args:
            text: the recipe.

        Returns:
            The recipe.

        Raises:
            RecipeError: it is none; tells the first of what is wrong, with its line.
        """
        return cls._of_text(text, json=True)

    @classmethod
    def of(cls, contents: Contents) -> Recipe:
        """Make it of parts that were checked."""
        return cls(
            contents.base,
            weights=contents.weights,
            options=contents.options,
            steps=tuple(step.transform for step in contents.steps if step.transform is not None),
            example=contents.example,
            sha256=contents.sha256,
        )

    @classmethod
    def _of_text(cls, text: str, *, json: bool) -> Recipe:
        problems = Problems()
        entry = document(text, problems, json=json)
        return recipe_of_entry(entry, problems, {})

    def __repr__(self) -> str:
        return call("Recipe", self)


def _with_base(held: dict[str, object]) -> dict[str, object]:
    """Say in the place of a base that it is not known."""
    return {**held, "base": held["base"] or f"{MARK}no source knows the model that the steps were done to"}


def recipe_of_entry(
    entry: Entry | None, problems: Problems, variables: Mapping[str, object] | None = None
) -> Recipe:
    """Make a recipe of a document that stands in no file.

    Args:
        entry: the document; ``None`` where it could not be read.
        problems: what is wrong so far.
        variables: values for its variables; ``None`` for plain data, which has none.

    Raises:
        RecipeError: something in it is wrong.
    """
    sheet = sheet_of(entry, problems, KEYS if variables is not None else PLAIN) if entry else None
    if sheet and sheet.extends:
        problems.add(
            sheet.extends.place,
            "a recipe that is in no file extends none",
            asked=f"extends: {sheet.extends.value}"[:200],
            write="read_recipe(path)",
        )
    contents = contents_of(sheet, Folder(), problems, variables) if sheet else Contents()
    problems.check()
    return Recipe.of(contents)

"""Contents: what a sheet means, part by part, with a note for each part that means nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import attrs

from torchgraft.errors import GraftError
from torchgraft.recipe.entry import Entry
from torchgraft.recipe.files import Folder
from torchgraft.recipe.problem import Place, Problems
from torchgraft.recipe.sheet import Sheet
from torchgraft.recipe.values import (
    Options,
    base_value,
    check_count,
    example_value,
    options_value,
    sha256_value,
    step_value,
    weights_value,
)
from torchgraft.recipe.variables import filled
from torchgraft.transform import Transform

T = TypeVar("T")


@attrs.frozen
class Step:
    """One step, and where it stands.

    Args:
        transform: the step; ``None`` where it could not be read.
        place: where it stands.
        said: its text.
        meant: what was most likely meant, as text, where it could not be read.
    """

    transform: Transform | None
    place: Place
    said: str
    meant: str = ""


@attrs.frozen
class Contents:
    """The parts of a recipe with their places.

    Args:
        base: name of the model.
        weights: its weights.
        options: of its builder.
        steps: what is done to it.
        example: sizes of an input.
        sha256: digest of the weights.
        places: of the parts and of the options, by name.
    """

    base: str = ""
    weights: str | bool | None = None
    options: Options = ()
    steps: tuple[Step, ...] = ()
    example: tuple[int, ...] | None = None
    sha256: str = ""
    places: Mapping[str, Place] = attrs.field(factory=dict)


def contents_of(
    sheet: Sheet, folder: Folder, problems: Problems, variables: Mapping[str, object] | None = None
) -> Contents:
    """Take a sheet at its word.

    Args:
        sheet: what the files say.
        folder: which no path may lead out of.
        problems: gets what is wrong.
        variables: values for the variables; ``None`` where a dollar is a dollar.

    Returns:
        What could be read.
    """
    if sheet.base is None and sheet.extends is None:
        problems.add(sheet.place, "the recipe has no base", write="base: torchvision/resnet50")
    if variables is not None:
        sheet = filled(sheet, variables, problems)
    sheet = folder.sheet(sheet, problems)
    steps = [
        step
        for number, entry in enumerate(sheet.steps, 1)
        for step in _steps(entry, number, folder, problems)
    ]
    last = steps[-1].place if steps else Place()
    _noted(check_count, len(steps), last, problems, None)
    named = {"base": sheet.base, "weights": sheet.weights, "example": sheet.example, "sha256": sheet.sha256}
    places = {name: entry.place for name, entry in {**named, **sheet.options}.items() if entry is not None}
    return Contents(
        base=_taken(base_value, sheet.base, problems, ""),
        weights=_taken(weights_value, sheet.weights, problems, None),
        options=_options(sheet.options, problems),
        steps=tuple(steps),
        example=_taken(example_value, sheet.example, problems, None),
        sha256=_taken(sha256_value, sheet.sha256, problems, ""),
        places=places,
    )


def _taken(check: Callable[..., T], entry: Entry | None, problems: Problems, otherwise: T) -> T:
    if entry is None:
        return otherwise
    try:
        value = entry.frozen()
    except ValueError:
        value = entry.value
    return _noted(check, value, entry.place, problems, otherwise)


def _noted(check: Callable[..., T], value: object, place: Place, problems: Problems, otherwise: T) -> T:
    try:
        return check(value)
    except GraftError as error:
        problems.of(error, place)
        return otherwise


def _options(entries: Mapping[str, Entry], problems: Problems) -> Options:
    made: list[tuple[str, object]] = []
    nothing: Options = ()
    for name, entry in entries.items():
        made += _taken(partial(_option, name), entry, problems, nothing)
    return options_value(made)


def _option(name: str, value: object) -> Options:
    return options_value({name: value})


def _steps(entry: Entry, number: int, folder: Folder, problems: Problems) -> list[Step]:
    place = attrs.evolve(entry.place, step=number)
    said = str(entry.value)
    if isinstance(entry.value, dict) and len(entry.value) == 1:
        name, value = next(iter(entry.value.items()))
        problems.add(
            place,
            "a step with a colon has to be quoted",
            asked=f"{name}: {value.value}"[:200],
            write=f"- '{name}: {value.value}'" if isinstance(value.value, str) else "- '...'",
        )
        return [Step(None, place, said)]
    try:
        made = step_value(entry.value, number)
    except GraftError as error:
        problems.of(error, place)
        return [Step(None, place, said, error.write)]
    return [Step(folder.step(step, place, problems), place, repr(step)) for step in made]

"""The sheet: what the files of a recipe say under which name, before it is taken as anything."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from torchgraft.recipe.entry import Entry, check_keys
from torchgraft.recipe.problem import NOWHERE, Place, Problems

VERSION = 1
PLAIN = ("torchgraft", "base", "weights", "options", "steps", "example", "sha256")
KEYS = (*PLAIN, "extends", "vars")


@attrs.frozen
class Sheet:
    """What stands under each name; ``None`` where nothing does.

    Args:
        base: name of the model.
        weights: its weights.
        options: of its builder.
        steps: what is done to it.
        example: sizes of an input.
        sha256: digest of the weights.
        extends: path of the recipe that this one begins with; of several sheets put together,
            the one that could not be followed.
        variables: values by name.
        place: of the document.
    """

    base: Entry | None = None
    weights: Entry | None = None
    options: Mapping[str, Entry] = {}
    steps: tuple[Entry, ...] = ()
    example: Entry | None = None
    sha256: Entry | None = None
    extends: Entry | None = None
    variables: Mapping[str, Entry] = {}
    place: Place = NOWHERE


def sheet_of(entry: Entry, problems: Problems, keys: tuple[str, ...] = KEYS) -> Sheet | None:
    """Take a document apart.

    Args:
        entry: the document.
        problems: gets what is wrong with it.
        keys: names that may stand in it.

    Returns:
        What it says, without what is wrong; ``None`` where it is no recipe of this version.
    """
    if not isinstance(entry.value, dict):
        problems.add(
            entry.place,
            "a recipe is values by name",
            found=entry.words(),
            write=f"torchgraft: {VERSION}\nbase: torchvision/resnet50",
        )
        return None
    if not _is_version(entry.value, entry.place, problems):
        return None
    held = check_keys(entry.value, keys, "a recipe", problems)
    said = {name: item for name, item in held.items() if item.value is not None}
    return Sheet(
        base=said.get("base"),
        weights=held.get("weights"),  # nothing, written down, is an answer: random ones
        example=said.get("example"),
        sha256=said.get("sha256"),
        extends=said.get("extends"),
        options=_named(held.get("options"), "options", problems),
        steps=_listed(held.get("steps"), problems),
        variables=_named(held.get("vars"), "vars", problems),
        place=entry.place,
    )


def joined(below: Sheet, above: Sheet) -> Sheet:
    """Put one sheet over another: its names win, its options and variables too, its steps follow."""
    # A digest belongs to the base and the weights that stand beside it.
    other = above.base is not None or above.weights is not None
    return Sheet(
        base=above.base or below.base,
        weights=above.weights or below.weights,
        options={**below.options, **above.options},
        steps=(*below.steps, *above.steps),
        example=above.example or below.example,
        sha256=above.sha256 if other else above.sha256 or below.sha256,
        extends=below.extends,
        variables={**below.variables, **above.variables},
        place=above.place,
    )


def _is_version(held: Mapping[str, Entry], place: Place, problems: Problems) -> bool:
    said = held.get("torchgraft")
    if said is None:
        problems.add(
            place,
            "a recipe says which version of its form it is written in",
            found=", ".join(held)[:200] or "nothing",
            write=f"torchgraft: {VERSION}",
        )
        return True  # what else is wrong with it can be told all the same
    if type(said.value) is not int or said.value != VERSION:
        problems.add(
            said.place,
            "this version of torchgraft does not read recipes of that version",
            asked=f"torchgraft: {said.value if isinstance(said.value, int) else said.words()}",
            found=f"it reads version {VERSION}",
            write=f"torchgraft: {VERSION}",
        )
        return False
    return True


def _named(entry: Entry | None, what: str, problems: Problems) -> Mapping[str, Entry]:
    if entry is None or entry.value is None:
        return {}
    if not isinstance(entry.value, dict):
        problems.add(
            entry.place, f"{what} are values by name", found=entry.words(), write=f"{what}:\n  name: value"
        )
        return {}
    return entry.value


def _listed(entry: Entry | None, problems: Problems) -> tuple[Entry, ...]:
    if entry is None or entry.value is None:
        return ()
    if not isinstance(entry.value, list):
        problems.add(
            entry.place, "steps are a list", found=entry.words(), write='steps:\n  - wrap("layer4", se)'
        )
        return ()
    return tuple(entry.value)

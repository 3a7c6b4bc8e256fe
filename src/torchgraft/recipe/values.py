"""What each part of a recipe may be: checked alike, wherever a recipe comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torchgraft.errors import GraftError, RecipeError
from torchgraft.recipe.bounds import excerpt
from torchgraft.recipe.reader import parse
from torchgraft.recipe.written import MARK, remark
from torchgraft.text import kind, literal
from torchgraft.transform import Transform

MOST_STEPS = 1_000
_LONGEST = 4_000
_LARGEST = 2**63
_AXES = 8
_ELEMENTS = 2**40
_DIGEST = re.compile(r"([0-9a-f]{64})?")

Options = tuple[tuple[str, object], ...]


def base_value(value: object) -> str:
    """Check the name of a base model; empty where it is not known.

    Raises:
        RecipeError: it is no name.
    """
    if isinstance(value, str) and value.startswith(MARK.strip()):
        return ""  # a remark
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        raise RecipeError("base is the name of a model", found=_said(value), write='"torchvision/resnet50"')
    return value


def weights_value(value: object) -> str | bool | None:
    """Check which weights are asked for.

    Raises:
        RecipeError: it is no name, no path, and no flag.
    """
    if value is None or value is False:
        return None
    text = isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()
    if value is not True and not text:
        raise RecipeError(
            "weights is a name, the path of a file, or true for those that the source takes itself",
            found=_said(value),
            write='"DEFAULT"',
        )
    return value  # type: ignore[return-value]  # text or True


def options_value(value: Mapping[str, object] | Iterable[tuple[str, object]]) -> Options:
    """Check the options of a builder: plain values by name, kept in the order of the names.

    Raises:
        RecipeError: there is a name that is none, or a value that no file can hold.
    """
    try:
        held = dict(value)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            "options are values by name", found=_said(value), write='{"num_classes": 10}'
        ) from error
    for name in held:
        if not isinstance(name, str) or not name.isidentifier():
            raise RecipeError(
                "the name of an option is an identifier", found=_said(name), write="num_classes"
            )
        if name in ("name", "weights"):
            raise RecipeError(
                f"{name!r} is no option of a builder", found="it has a place of its own", write="weights"
            )
    return tuple((name, _plain(name, held[name], 0)) for name in sorted(held))


def _plain(name: str, value: object, depth: int) -> object:
    if isinstance(value, (list, tuple)) and depth < 8:
        return tuple(_plain(name, item, depth + 1) for item in value)
    whole = type(value) is int and abs(value) < _LARGEST
    number = whole or (type(value) is float and math.isfinite(value))
    text = type(value) is str and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if value is None or isinstance(value, bool) or number or text:
        return value
    raise RecipeError(
        f"option {name!r} is no text, number, flag or list of these, so no file can hold it",
        found=_said(value),
        write="a function that sets it up, under a name: @register_model(...)",
    )


def example_value(value: Iterable[int] | None) -> tuple[int, ...] | None:
    """Check the sizes of an example.

    Raises:
        RecipeError: they are no sizes of an input.
    """
    if value is None:
        return None
    held = tuple(value) if isinstance(value, (tuple, list)) else ()
    sizes = 0 < len(held) <= _AXES and all(type(size) is int and size > 0 for size in held)
    if not sizes or math.prod(held) > _ELEMENTS:
        raise RecipeError(
            "example is the sizes of an input, all of them positive",
            found=_said(value),
            write="[1, 3, 224, 224]",
        )
    return held


def sha256_value(value: object) -> str:
    """Check a digest; empty where it is not known.

    Raises:
        RecipeError: it is none.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise RecipeError("sha256 is 64 digits, 0 to 9 and a to f", found=_said(value), write="no sha256")
    return value


def steps_value(value: Iterable[Transform | str]) -> tuple[Transform, ...]:
    """Read steps, given as transforms or as text; compositions among them are flattened.

    Raises:
        GraftError: a text is no step; the error has a note with its number.
        RecipeError: something else is given as a step, or there are too many.
    """
    if isinstance(value, (str, Transform)):
        value = (value,)
    if not isinstance(value, Iterable):
        raise RecipeError("steps are a list", found=_said(value), write='steps=["swap_head(10)"]')
    made: list[Transform] = []
    for number, step in enumerate(value, 1):
        made += step_value(step, number)
        check_count(len(made))
    return tuple(made)


def step_value(step: object, number: int) -> tuple[Transform, ...]:
    """Read one step.

    Raises:
        GraftError: it is none; the error has a note with its number.
    """
    if isinstance(step, Transform):
        return step.steps()
    if not isinstance(step, str):
        raise RecipeError("a step is a transform, or its text", found=_said(step), write='wrap("layer4", se)')
    try:
        return (remark(step),) if step.startswith(MARK.strip()) else parse(step).steps()
    except GraftError as error:
        error.add_note(f"while reading step {number}: {excerpt(step)}")
        raise


def check_count(count: int) -> None:
    """Check the number of steps.

    Raises:
        RecipeError: there are too many.
    """
    if count > MOST_STEPS:
        raise RecipeError(
            f"a recipe has at most {MOST_STEPS:,} steps",
            found=f"{count:,}",
            write="two recipes, one extends the other",
        )


def _said(value: object) -> str:
    """Say what a value is, in short, whatever it is."""
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return f"a number of {value.bit_length():,} bits"
    return f"{kind(value)} {excerpt(literal(value))}"[:120]

"""The words of the command line: arguments and options, and how their values are read."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_LONGEST = 10_000
_SOURCES = ("torchvision", "timm", "hf", "registered")

Base = Annotated[str, typer.Argument(metavar="BASE", help="A model by name, a saved file, or a recipe.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model by name, a file, or a recipe.")]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="A glob as in a shell: '*resnet*'.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe as YAML or JSON.")]
Steps = Annotated[
    list[str], typer.Argument(metavar="STEP", help="Steps as in Python: 'wrap(\"layer4\", se)'.")
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"One of {', '.join(_SOURCES)}.", autocompletion=lambda: list(_SOURCES)
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Take the place of a file that is there.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="DEFAULT, a name that the source knows, or a file. Random if missing."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the builder; may be given again."),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="A variable of the recipe; may be given again."),
]
Outside = Annotated[bool, typer.Option("--outside", help="Let the recipe name files outside of its folder.")]
Seed = Annotated[
    int | None, typer.Option(metavar="INTEGER", min=0, max=2**63 - 1, help="Seed for random parameters.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="1,3,224,224", help="Shape of an input; may be given again for a second one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def pairs(words: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read ``name=value`` words.

    Args:
        words: as they were typed.
        option: with which they were given.

    Raises:
        BadParameter: one of them is none, or a name comes twice.

    Example:
        >>> pairs(["attention=se"], "--var")
        {'attention': 'se'}
    """
    held: dict[str, str] = {}
    for word in words or ():
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier() or name in held:
            why = f"{name} is given twice" if name in held else f"{word!r} is not NAME=VALUE"
            raise typer.BadParameter(why, param_hint=option)
        held[name] = value
    return held


def options(words: Sequence[str] | None) -> dict[str, object]:
    """Read the options of a builder.

    Args:
        words: as they were typed.

    Raises:
        BadParameter: one of them is none, or a name comes twice.

    Example:
        >>> options(["num_classes=10"])
        {'num_classes': 10}
    """
    return {name: value(word) for name, word in pairs(words, "--option").items()}


def value(word: str) -> object:
    """Read a value as a literal of Python, and as text where it is none.

    Args:
        word: as it was typed.

    Example:
        >>> value("10"), value("true"), value("(1, 2)"), value("relu")
        (10, True, (1, 2), 'relu')
    """
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word) if len(word) <= _LONGEST else word
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def sizes(words: Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """Read the shapes of inputs.

    Args:
        words: as they were typed.

    Raises:
        BadParameter: one of them is none.

    Example:
        >>> sizes(["1,3,224,224"])
        ((1, 3, 224, 224),)
    """
    try:
        held = tuple(tuple(map(_side, word.split(","))) for word in words or ())
    except ValueError as error:
        raise typer.BadParameter(
            f"{error} is no side of a shape such as 1,3,224,224", param_hint="--shape"
        ) from None
    return held


def _side(word: str) -> int:
    stripped = word.strip()
    if not (stripped.isascii() and stripped.isdigit()) or not 0 < len(stripped) < 10 or not int(stripped):
        raise ValueError(repr(word))
    return int(stripped)

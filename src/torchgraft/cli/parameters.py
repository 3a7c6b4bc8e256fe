"""The arguments and options of the command line, and how their values are read."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from torchgraft.cli.output_files import check_output

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_LONGEST = 10_000
_SOURCES = ("torchvision", "timm", "hf", "registered")


def read_pairs(words: Sequence[str] | None) -> dict[str, str]:
    """Read ``name=value`` words.

    Raises:
        BadParameter: one of them is none, or a name comes twice.

    Example:
        >>> read_pairs(["attention=se"])
        {'attention': 'se'}
    """
    held: dict[str, str] = {}
    for word in words or ():
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier() or name in held:
            why = f"{name} is given twice" if name in held else f"{word!r} is not NAME=VALUE"
            raise typer.BadParameter(why)
        held[name] = value
    return held


def read_options(words: Sequence[str] | None) -> dict[str, object]:
    """Read the options of a builder.

    Raises:
        BadParameter: one of them is none, or a name comes twice.

    Example:
        >>> read_options(["num_classes=10"])
        {'num_classes': 10}
    """
    return {name: read_value(word) for name, word in read_pairs(words).items()}


def read_value(word: str) -> object:
    """Read a value as a literal of Python, and as text where it is none.

    Example:
        >>> read_value("10"), read_value("true"), read_value("(1, 2)"), read_value("relu")
        (10, True, (1, 2), 'relu')
    """
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word) if len(word) <= _LONGEST else word
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def read_shapes(words: Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """Read the shapes of inputs.

    Raises:
        BadParameter: one of them is none.

    Example:
        >>> read_shapes(["1,3,224,224"])
        ((1, 3, 224, 224),)
    """
    return tuple(tuple(map(_read_side, word.split(","))) for word in words or ())


def _read_side(word: str) -> int:
    side = word.strip()
    if not (side.isascii() and side.isdigit()) or not 0 < len(side) < 10 or not int(side):
        raise typer.BadParameter(f"{word!r} is no side of a shape such as 1,3,224,224")
    return int(side)


def _file(option: str, what: str, *suffixes: str) -> Any:
    """Declare an option that takes a file to write."""

    def check(context: typer.Context, value: Path | None) -> Path | None:
        if value is not None:
            check_output(value, option, suffixes, force=context.params["force"])
        return value

    names = ("--output", "-o") if option == "-o" else (option,)
    return typer.Option(*names, metavar="FILE", help=what, callback=check)


def _repeated(option: str, form: str, what: str, read: Callable[..., object]) -> Any:
    """Declare an option that may be given again."""
    return typer.Option(option, metavar=form, help=what, callback=read)


Base = Annotated[str, typer.Argument(metavar="BASE", help="A model by name, a saved file, or a recipe.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model by name, a file, or a recipe.")]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="A glob as in a shell: '*resnet*'.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe as YAML or JSON.")]
Steps = Annotated[
    list[str], typer.Argument(metavar="STEP", help="Steps as in Python: 'wrap(\"layer4\", se)'.")
]
Force = Annotated[
    bool, typer.Option("--force", "-f", is_eager=True, help="Take the place of a file that is there.")
]
Output = Annotated[Path, _file("-o", "The .safetensors file to write.", ".safetensors")]
Html = Annotated[Path | None, _file("--html", "Also write one page with the two trees.", ".html", ".htm")]
AlignmentFile = Annotated[Path | None, _file("-o", "Write the alignment as JSON.", ".json")]
Rewritten = Annotated[
    Path | None, _file("--apply", "Write the source's weights under the target's names.", ".safetensors")
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"One of {', '.join(_SOURCES)}.", autocompletion=lambda: list(_SOURCES)
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="DEFAULT, a name that the source knows, or a file. Random if missing."
    ),
]
Options = Annotated[
    list[str] | None,
    _repeated("--option", "NAME=VALUE", "An option of the builder; may be given again.", read_options),
]
Variables = Annotated[
    list[str] | None,
    _repeated("--var", "NAME=VALUE", "A variable of the recipe; may be given again.", read_pairs),
]
Outside = Annotated[bool, typer.Option("--outside", help="Let the recipe name files outside of its folder.")]
Seed = Annotated[
    int | None, typer.Option(metavar="INTEGER", min=0, max=2**63 - 1, help="Seed for random parameters.")
]
Shapes = Annotated[
    list[str] | None,
    _repeated(
        "--shape", "1,3,224,224", "Shape of an input; may be given again for a second one.", read_shapes
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

"""The program ``torchgraft``: its commands, declared without torch, which is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchgraft.cli import parameters as given
from torchgraft.cli.app import Command, Commands
from torchgraft.cli.output import write

app = typer.Typer(
    cls=Commands,
    name="torchgraft",
    help="Functional surgery for PyTorch vision models: look at them, change, compare and align them.",
    epilog="Exit codes: 0; 1 where what was asked is wrong; 2 where it cannot be read.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the program."""
    app()


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415 - a sixth of the time that --help takes

        write(f"torchgraft {version('torchgraft')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        write(context.get_help().strip())
        raise typer.Exit(2)


@app.command(cls=Command, epilog="Example: torchgraft models '*resnet*' --pretrained")
def models(
    pattern: given.Pattern = "*",
    *,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those with weights.")] = False,
    source: given.Source = None,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """List the models that can be asked for by name."""


@app.command(cls=Command, epilog="Example: torchgraft blocks '*attention*'")
def blocks(pattern: given.Pattern = "*", *, as_json: given.Json = False, debug: given.Debug = False) -> None:
    """List the blocks that can be put into a model."""


@app.command(
    cls=Command,
    epilog="Example: torchgraft show resnet50 --select 'nn.Conv2d & inside(\"layer4\")' --shape 1,3,224,224",
)
def show(
    model: given.Model,
    *,
    select: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Mark what a selector means: a path, or as in Python."),
    ] = None,
    sizes: given.Shapes = None,
    every: Annotated[bool, typer.Option("--all", help="Every module, however many there are.")] = False,
    options: given.Options = None,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Show what a model consists of: its tiers, its modules, their shapes, without its weights."""


@app.command(
    cls=Command,
    epilog="Example: torchgraft apply resnet50 'wrap(\"layer4\", se)' 'swap_head(10)' -o m.safetensors",
)
def apply(
    base: given.Base,
    steps: given.Steps,
    *,
    output: given.Output,
    force: given.Force = False,
    weights: given.Weights = None,
    options: given.Options = None,
    sizes: given.Shapes = None,
    seed: given.Seed = None,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Apply steps to a model and save what comes out, with its recipe."""


@app.command(cls=Command, epilog="Example: torchgraft build recipe.yaml -o m.safetensors --var attention=se")
def build(
    recipe: given.Recipe,
    *,
    output: given.Output,
    force: given.Force = False,
    variables: given.Variables = None,
    seed: given.Seed = None,
    outside: given.Outside = False,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Build the model of a recipe and save it."""


@app.command(cls=Command, epilog="Example: torchgraft check recipe.yaml")
def check(
    recipe: given.Recipe,
    *,
    variables: given.Variables = None,
    outside: given.Outside = False,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Check a recipe against the real model, without its weights: every problem with file and line."""


@app.command(cls=Command, epilog="Example: torchgraft explain m.safetensors")
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")],
    *,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Tell what a file says of itself: base, weights, steps, versions and sizes; no tensor is read."""


@app.command(cls=Command, epilog="Example: torchgraft diff resnet50 m.safetensors --html diff.html")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model by name, a saved file, or a recipe.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to compare it with.")],
    *,
    html: given.Html = None,
    force: given.Force = False,
    sizes: given.Shapes = None,
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Tell what differs between two models: modules, parameters, shapes, costs."""


@app.command(
    cls=Command, epilog="Example: torchgraft align old.pth resnet50 -o alignment.json --apply new.safetensors"
)
def align(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Has the weights: a model by name, or a file.")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Needs them: a model, a file or a recipe.")],
    *,
    output: given.AlignmentFile = None,
    rewritten: given.Rewritten = None,
    force: given.Force = False,
    weights: given.Weights = None,
    sizes: given.Shapes = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="same_function, or same_shape for a target that is deeper.")
    ] = "same_function",
    as_json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Tell which tensor of one model is which of another, and rewrite weights by it."""

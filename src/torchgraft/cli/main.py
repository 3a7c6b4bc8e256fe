"""The program ``torchgraft``: its commands, declared without torch, which is imported when one runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from torchgraft.cli import words
from torchgraft.cli.group import Commands
from torchgraft.cli.output import Answer, give, quiet, write
from torchgraft.cli.paths import HTML, JSON, MODEL, check_output
from torchgraft.cli.stage import watched

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


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415 - a sixth of the time that --help takes

        write(f"torchgraft {version('torchgraft')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        write(context.get_help().strip())
        raise typer.Exit(2)


def _run(command: str, as_json: bool, debug: bool, **asked: object) -> None:
    """Run the command that stands in the module of its name, and show what it answers."""
    with watched(shown=not as_json) as stage, quiet(silent=as_json and not debug):
        module = importlib.import_module(f"torchgraft.cli.work.{command}")
        answer: Answer = module.run(stage, **asked)
    give(answer, as_json=as_json)


@app.command(epilog="Example: torchgraft models '*resnet*' --pretrained")
def models(
    pattern: words.Pattern = "*",
    *,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those with weights.")] = False,
    source: words.Source = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """List the models that can be asked for by name."""
    _run("models", as_json, debug, pattern=pattern, pretrained=pretrained, source=source)


@app.command(epilog="Example: torchgraft blocks '*attention*'")
def blocks(
    pattern: words.Pattern = "*",
    *,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """List the blocks that can be put into a model."""
    _run("blocks", as_json, debug, pattern=pattern)


@app.command(
    epilog="Example: torchgraft show resnet50 --select 'nn.Conv2d & inside(\"layer4\")' --shape 1,3,224,224"
)
def show(
    model: words.Model,
    *,
    select: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Mark what a selector means: a path, or as in Python."),
    ] = None,
    shape: words.Shapes = None,
    every: Annotated[bool, typer.Option("--all", help="Every module, however many there are.")] = False,
    option: words.Options = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Show what a model consists of: its tiers, its modules, their shapes, without its weights."""
    asked = {"sizes": words.sizes(shape), "options": words.options(option)}
    _run("show", as_json, debug, model=model, select=select, every=every, **asked)


@app.command(
    epilog="Example: torchgraft apply resnet50 'wrap(\"layer4\", se)' 'swap_head(10)' -o m.safetensors"
)
def apply(
    base: words.Base,
    steps: words.Steps,
    *,
    output: words.Output,
    force: words.Force = False,
    weights: words.Weights = None,
    option: words.Options = None,
    shape: words.Shapes = None,
    seed: words.Seed = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Apply steps to a model and save what comes out, with its recipe."""
    asked = {"sizes": words.sizes(shape), "options": words.options(option), "weights": weights}
    check_output(output, "-o", MODEL, force=force)
    _run("apply", as_json, debug, base=base, steps=steps, output=output, seed=seed, **asked)


@app.command(epilog="Example: torchgraft build recipe.yaml -o m.safetensors --var attention=se")
def build(
    recipe: words.Recipe,
    *,
    output: words.Output,
    force: words.Force = False,
    var: words.Variables = None,
    seed: words.Seed = None,
    outside: words.Outside = False,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Build the model of a recipe and save it."""
    variables = words.pairs(var, "--var")
    check_output(output, "-o", MODEL, force=force)
    _run(
        "build", as_json, debug, recipe=recipe, output=output, variables=variables, seed=seed, outside=outside
    )


@app.command(epilog="Example: torchgraft check recipe.yaml")
def check(
    recipe: words.Recipe,
    *,
    var: words.Variables = None,
    outside: words.Outside = False,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Check a recipe against the real model, without its weights: every problem with file and line."""
    _run("check", as_json, debug, recipe=recipe, variables=words.pairs(var, "--var"), outside=outside)


@app.command(epilog="Example: torchgraft explain m.safetensors")
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")],
    *,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Tell what a file says of itself: base, weights, steps, versions and sizes; no tensor is read."""
    _run("explain", as_json, debug, file=file)


@app.command(epilog="Example: torchgraft diff resnet50 m.safetensors --html diff.html")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model by name, a saved file, or a recipe.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to compare it with.")],
    *,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one page with the two trees.")
    ] = None,
    force: words.Force = False,
    shape: words.Shapes = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Tell what differs between two models: modules, parameters, shapes, costs."""
    if html is not None:
        check_output(html, "--html", HTML, force=force)
    _run("diff", as_json, debug, a=a, b=b, html=html, sizes=words.sizes(shape))


@app.command(epilog="Example: torchgraft align old.pth resnet50 -o alignment.json --apply new.safetensors")
def align(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Has the weights: a model by name, or a file.")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Needs them: a model, a file or a recipe.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the alignment as JSON.")
    ] = None,
    rewritten: Annotated[
        Path | None,
        typer.Option("--apply", metavar="FILE", help="Write the source's weights under the target's names."),
    ] = None,
    force: words.Force = False,
    weights: words.Weights = None,
    shape: words.Shapes = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="same_function, or same_shape for a target that is deeper.")
    ] = "same_function",
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Tell which tensor of one model is which of another, and rewrite weights by it."""
    for path, option, suffixes in ((output, "-o", JSON), (rewritten, "--apply", MODEL)):
        if path is not None:
            check_output(path, option, suffixes, force=force)
    asked = {"output": output, "rewritten": rewritten, "policy": policy, "weights": weights}
    _run("align", as_json, debug, source=source, target=target, sizes=words.sizes(shape), **asked)

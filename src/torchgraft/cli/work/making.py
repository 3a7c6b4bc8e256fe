"""Commands that make a model: by steps or by a recipe; and that check whether a recipe would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from torch import nn

from torchgraft.alignment.load.accounts import load_report
from torchgraft.cli.output import Answer
from torchgraft.cli.progress import Stage
from torchgraft.cli.work import given
from torchgraft.cli.work.showing import describe_file
from torchgraft.errors import ModelError
from torchgraft.recipe import build as build_recipe
from torchgraft.recipe import check as check_recipe
from torchgraft.recipe import parse, read_recipe
from torchgraft.store.save import save
from torchgraft.text import plural
from torchgraft.transform import pipe


def apply(
    stage: Stage,
    *,
    base: str,
    steps: Sequence[str],
    output: Path,
    weights: str | None,
    options: dict[str, object],
    sizes: given.Sizes,
    seed: int | None,
) -> Answer:
    """Read the steps, build the base, apply them, save the result."""
    transforms = [parse(step) for step in steps]
    model = given.make_model(stage, base, weights=weights, options=options, seed=seed)
    stage(f"applying {plural(len(transforms), 'step')}")
    result = pipe(model, *transforms, example=given.make_example(sizes), seed=seed)
    return _save(stage, result, output)


def build(
    stage: Stage, *, recipe: Path, output: Path, variables: dict[str, str], seed: int | None, outside: bool
) -> Answer:
    """Read the recipe, build its model, save it."""
    held = read_recipe(recipe, variables=variables, outside=outside)
    stage(f"building {held.base} with {len(held.steps)} steps")
    return _save(stage, build_recipe(held, seed=seed), output)


def check(stage: Stage, *, recipe: Path, variables: dict[str, str], outside: bool) -> Answer:
    """Tell every problem of a recipe, with file and line."""
    stage(f"checking {recipe.name}")
    report = check_recipe(recipe, variables=variables, outside=outside)
    return Answer(str(report), report.to_json(), code=0 if report.ok else 1)


def _save(stage: Stage, model: nn.Module, path: Path) -> Answer:
    """Save a model and tell what the file holds, and what became of weights that were loaded."""
    stage(f"writing {path.name}")
    told = describe_file(given.read_file(save(model, path)))
    try:
        report = load_report(model)
    except ModelError:
        return attrs.evolve(told, data={**told.data, "loaded": None})
    return Answer(f"{told.text}\n{report}", {**told.data, "loaded": attrs.asdict(report)})

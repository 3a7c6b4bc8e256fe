"""Build the model of a recipe and save it."""

from __future__ import annotations

from pathlib import Path

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work.saving import saved
from torchgraft.recipe import build, read_recipe


def run(
    stage: Stage, *, recipe: Path, output: Path, variables: dict[str, str], seed: int | None, outside: bool
) -> Answer:
    """Read the recipe, build its model, save it."""
    held = read_recipe(recipe, variables=variables, outside=outside)
    stage(f"building {held.base} with {len(held.steps)} steps")
    return saved(stage, build(held, seed=seed), output)

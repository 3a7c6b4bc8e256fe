"""Check a recipe against the real model."""

from __future__ import annotations

from pathlib import Path

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.recipe import check


def run(stage: Stage, *, recipe: Path, variables: dict[str, str], outside: bool) -> Answer:
    """Tell every problem, with file and line."""
    stage(f"checking {recipe.name}")
    report = check(recipe, variables=variables, outside=outside)
    return Answer(str(report), report.to_json(), code=0 if report.ok else 1)

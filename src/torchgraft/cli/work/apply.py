"""Apply steps to a model and save what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work import given
from torchgraft.cli.work.saving import saved
from torchgraft.recipe import parse
from torchgraft.text import plural
from torchgraft.transform import pipe


def run(
    stage: Stage,
    *,
    base: str,
    steps: Sequence[str],
    output: Path,
    weights: str | None,
    options: dict[str, object],
    sizes: tuple[tuple[int, ...], ...],
    seed: int | None,
) -> Answer:
    """Read the steps, build the base, apply them, save the result."""
    transforms = [parse(step) for step in steps]
    model = given.model(stage, base, weights=weights, options=options, seed=seed)
    stage(f"applying {plural(len(transforms), 'step')}")
    result = pipe(model, *transforms, example=given.example(sizes), seed=seed)
    return saved(stage, result, output)

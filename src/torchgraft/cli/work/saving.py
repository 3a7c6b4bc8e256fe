"""Save a model and tell what the file holds."""

from __future__ import annotations

from pathlib import Path

import attrs
from torch import nn

from torchgraft.alignment.load.accounts import load_report
from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work.explain import described
from torchgraft.cli.work.files import held
from torchgraft.errors import ModelError
from torchgraft.store.save import save


def saved(stage: Stage, model: nn.Module, path: Path) -> Answer:
    """Save a model and tell what the file holds, and what became of weights that were loaded."""
    stage(f"writing {path.name}")
    told = described(held(save(model, path)))
    try:
        report = load_report(model)
    except ModelError:
        return attrs.evolve(told, data={**told.data, "loaded": None})
    return Answer(f"{told.text}\n{report}", {**told.data, "loaded": attrs.asdict(report)})

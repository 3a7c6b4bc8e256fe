"""List the models that can be asked for by name."""

from __future__ import annotations

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.sources.get import list_models


def run(stage: Stage, *, pattern: str, pretrained: bool, source: str | None) -> Answer:
    """List them."""
    stage("looking for models")
    found = list(list_models(pattern, pretrained=pretrained, source=source))
    note = "" if found else f"no model is named {pattern!r}" + " and has weights" * pretrained
    return Answer("\n".join(found), {"models": found}, note=note, names=True)

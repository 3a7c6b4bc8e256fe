"""Lists of what can be asked for by name: models and blocks."""

from __future__ import annotations

import fnmatch
import inspect

from torchgraft.blocks import names
from torchgraft.blocks.registry import find_block
from torchgraft.cli.output import Answer
from torchgraft.cli.progress import Stage
from torchgraft.sources.get import list_models
from torchgraft.text import columns, signature_text


def models(stage: Stage, *, pattern: str, pretrained: bool, source: str | None) -> Answer:
    """List the models."""
    stage("looking for models")
    found = list(list_models(pattern, pretrained=pretrained, source=source))
    note = "" if found else f"no model is named {pattern!r}" + " and has weights" * pretrained
    return Answer("\n".join(found), {"models": found}, note=note, names=True)


def blocks(_stage: Stage, *, pattern: str) -> Answer:
    """List the blocks with their options and the first sentence about them."""
    found = [_describe_block(name) for name in names() if fnmatch.fnmatchcase(name, pattern)]
    text = columns([(f"{one['name']}{one['options']}", one["summary"]) for one in found])
    return Answer(text, {"blocks": found}, note="" if found else f"no block is named {pattern!r}")


def _describe_block(name: str) -> dict[str, str]:
    made = find_block(name)
    signature = signature_text(inspect.signature(made)) if callable(made) else "()"
    summary = (inspect.getdoc(made) or "").partition("\n")[0]
    return {"name": name, "options": signature.replace("(*, ", "("), "summary": summary}

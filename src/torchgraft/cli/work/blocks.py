"""List the blocks that can be put into a model."""

from __future__ import annotations

import fnmatch
import inspect

from torchgraft import blocks
from torchgraft.blocks.registry import find_block
from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.text import columns, signature_text


def run(_stage: Stage, *, pattern: str) -> Answer:
    """List them with their options and the first sentence about them."""
    found = [_told(name) for name in blocks.names() if fnmatch.fnmatchcase(name, pattern)]
    text = columns([(f"{one['name']}{one['options']}", one["summary"]) for one in found])
    return Answer(text, {"blocks": found}, note="" if found else f"no block is named {pattern!r}")


def _told(name: str) -> dict[str, str]:
    made = find_block(name)
    signature = signature_text(inspect.signature(made)) if callable(made) else "()"
    summary = (inspect.getdoc(made) or "").partition("\n")[0]
    return {"name": name, "options": signature.replace("(*, ", "("), "summary": summary}

"""Tell what differs between two models."""

from __future__ import annotations

import json
from pathlib import Path

from torchgraft.alignment.files.atomic import replacing
from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work import given
from torchgraft.show.diff import diff


def run(stage: Stage, *, a: str, b: str, html: Path | None, sizes: tuple[tuple[int, ...], ...]) -> Answer:
    """Compare them: with their values if both are files, else as they are built."""
    files = given.is_file(a) and given.is_file(b)
    first, second = (given.model(stage, m) if files else given.structure(stage, m, {}) for m in (a, b))
    stage("comparing")
    found = diff(first, second, example=given.example(sizes, device="meta"))
    if html is not None:
        with replacing([html]) as (file,):
            file.write(found.to_html().encode())
    note = f"written: {html}" if html is not None else ""
    return Answer(str(found), {**json.loads(found.to_json()), "html": html and str(html)}, note=note)

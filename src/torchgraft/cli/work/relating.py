"""Commands about two models: what differs between them, and which tensor of one is which of the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft.alignment.align import align as align_models
from torchgraft.alignment.alignment import Alignment
from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.files.container import header
from torchgraft.alignment.files.rewrite import apply_to_file
from torchgraft.alignment.files.streaming import blocks
from torchgraft.alignment.load.checkpoints import read_checkpoint
from torchgraft.cli.output import Answer
from torchgraft.cli.progress import Stage
from torchgraft.cli.work import given
from torchgraft.errors import CheckpointError
from torchgraft.show.diff import diff as diff_models
from torchgraft.store.stock import DTYPES

Source = nn.Module | Mapping[str, torch.Tensor]


def diff(stage: Stage, *, a: str, b: str, html: Path | None, sizes: given.Sizes) -> Answer:
    """Compare two models: with their values if both are files, else as they are built."""
    files = given.is_file(a) and given.is_file(b)
    first, second = (
        given.make_model(stage, m) if files else given.make_skeleton(stage, m, {}) for m in (a, b)
    )
    stage("comparing")
    found = diff_models(first, second, example=given.make_example(sizes, device="meta"))
    if html is not None:
        with replacing([html]) as (file,):
            file.write(found.to_html().encode())
    note = f"written: {html}" if html is not None else ""
    return Answer(str(found), {**json.loads(found.to_json()), "html": html and str(html)}, note=note)


def align(
    stage: Stage,
    *,
    source: str,
    target: str,
    output: Path | None,
    rewritten: Path | None,
    sizes: given.Sizes,
    policy: str,
    weights: str | None,
) -> Answer:
    """Align them, and write what was asked for."""
    first = _read_source(stage, source, weights)
    second = given.make_model(stage, target)
    stage("aligning")
    found = align_models(first, second, example=given.make_example(sizes), policy=policy)
    if output is not None:
        found.save(output)
    if rewritten is not None:
        stage(f"writing {rewritten.name}")
        _rewrite(found, source, first, rewritten)
    written = [str(path) for path in (output, rewritten) if path is not None]
    note = f"written: {', '.join(written)}" if written else ""
    return Answer(str(found), {**_counts_of(found), "written": written}, note=note)


def _read_source(stage: Stage, text: str, weights: str | None) -> Source:
    """Take a model, or the tensors of a file that knows of none."""
    if given.is_file(text) and given.read_file(Path(text)).record is None:
        stage(f"reading {text}")
        return read_checkpoint(text).tensors
    return given.make_model(stage, text, weights=weights)


def _rewrite(found: Alignment, text: str, source: Source, path: Path) -> None:
    if given.is_file(text) and text.endswith((".safetensors", ".json")):
        apply_to_file(found, given.read_file(Path(text)).path, path)
        return
    made = found.apply(source.state_dict() if isinstance(source, nn.Module) else source)
    # Wide elements first, so that all begin at a multiple of their size.
    tensors = dict(sorted(made.items(), key=lambda item: -item[1].element_size()))
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"safetensors has no dtype for {name!r}", found=str(tensor.dtype))
    with replacing([path]) as (file,):
        told = [(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
        file.write(header(told, {"format": "pt"}))
        for tensor in tensors.values():
            for block in blocks(tensor if tensor.ndim else tensor.reshape(1)):
                file.write(block)


def _counts_of(found: Alignment) -> dict[str, object]:
    return {
        "coverage": found.coverage,
        "entries": len(found.entries),
        "mismatched": [attrs.asdict(one) for one in found.mismatched],
        "ambiguous": [attrs.asdict(one) for one in found.ambiguous],
        "missing": list(found.missing),
        "unused": list(found.unused),
    }

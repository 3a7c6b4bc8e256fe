"""Tell which tensor of one model is which of another, and rewrite weights by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft.alignment.align import align
from torchgraft.alignment.alignment import Alignment
from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.files.container import header
from torchgraft.alignment.files.rewrite import apply_to_file
from torchgraft.alignment.files.streaming import blocks
from torchgraft.alignment.load.checkpoints import read_checkpoint
from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work import given
from torchgraft.cli.work.files import held
from torchgraft.errors import CheckpointError
from torchgraft.store.stock import DTYPES

Source = nn.Module | Mapping[str, torch.Tensor]


def run(
    stage: Stage,
    *,
    source: str,
    target: str,
    output: Path | None,
    rewritten: Path | None,
    sizes: tuple[tuple[int, ...], ...],
    policy: str,
    weights: str | None,
) -> Answer:
    """Align them, and write what was asked for."""
    first = _source(stage, source, weights)
    second = given.model(stage, target)
    stage("aligning")
    found = align(first, second, example=given.example(sizes), policy=policy)
    written = []
    if output is not None:
        found.save(output)
        written.append(str(output))
    if rewritten is not None:
        stage(f"writing {rewritten.name}")
        _rewrite(found, source, first, rewritten)
        written.append(str(rewritten))
    note = f"written: {', '.join(written)}" if written else ""
    return Answer(str(found), {**_told(found), "written": written}, note=note)


def _source(stage: Stage, text: str, weights: str | None) -> Source:
    """Take a model, or the tensors of a file that knows of none."""
    if given.is_file(text) and held(Path(text)).record is None:
        stage(f"reading {text}")
        return read_checkpoint(text).tensors
    return given.model(stage, text, weights=weights)


def _rewrite(found: Alignment, text: str, source: Source, path: Path) -> None:
    if given.is_file(text) and text.endswith((".safetensors", ".json")):
        apply_to_file(found, held(Path(text)).path, path)
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


def _told(found: Alignment) -> dict[str, object]:
    return {
        "coverage": found.coverage,
        "entries": len(found.entries),
        "mismatched": [attrs.asdict(one) for one in found.mismatched],
        "ambiguous": [attrs.asdict(one) for one in found.ambiguous],
        "missing": list(found.missing),
        "unused": list(found.unused),
    }

"""Files of what steps added alone: they tell which base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from torch import nn

from torchgraft.alignment.files.strict_json import Reader, decoded
from torchgraft.alignment.load.checkpoints import Checkpoint
from torchgraft.alignment.load.digest import digest
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import CheckpointError

KEY = "torchgraft.base"
_READ = Reader(CheckpointError, "a fresh copy of the file")
_LONGEST = 1_000


def tell_base(model: nn.Module, added: Collection[str], steps: Sequence[str]) -> str:
    """Write down what a file with some of a model's tensors does not hold.

    Args:
        model: the model; it is only read.
        added: names of the tensors that the file holds.
        steps: what made the model.

    Returns:
        The steps, and digests of all other tensors by child, as JSON.
    """
    return json.dumps({"steps": list(steps), "base": _digests(model, added)}, separators=(",", ":"))


def check_base(model: nn.Module, checkpoint: Checkpoint, source: str, write: str) -> frozenset[str]:
    """Check that a model has a place for all that a file holds, and that the rest is its base.

    Args:
        model: the model; it is only read.
        checkpoint: the tensors of the file, and what is told beside them.
        source: the file, as written.
        write: the step that fills the model, as written.

    Returns:
        Names of the tensors that are the base's.

    Raises:
        CheckpointError: it was made by other steps, or on another base.
    """
    where = "what the file tells of its base"
    told = _READ.mapping(
        _decoded(checkpoint.metadata[KEY], where), where, ("steps", "base"), ("steps", "base")
    )
    base = _READ.mapping(told["base"], where)
    steps = ", ".join(_READ.text(step, where) for step in _READ.items(told["steps"], where))
    held = {name: place.tensor for name, place in tensors_of(model).items()}
    odd = [n for n, t in checkpoint.tensors.items() if n not in held or held[n].shape != t.shape]
    if odd:
        raise CheckpointError(
            f"the file holds what steps added to a model, of which {len(odd)} have no place here",
            found=", ".join(odd[:4]) + ", ..." * (len(odd) > 4),
            write=f"pipe(model, {steps}, {write})"
            if len(steps) < _LONGEST
            else "the steps of the file before",
        )
    if any(tensor.is_meta for tensor in held.values()):
        return frozenset()
    here = _digests(model, checkpoint.tensors.keys())
    wrong = [name for name in {**here, **base} if here.get(name) != base.get(name)]
    if wrong:
        raise CheckpointError(
            "the file holds what steps added to a model, and the rest of this one is not what it was there",
            found=f"other tensors or values in {', '.join(wrong[:4])}" + ", ..." * (len(wrong) > 4),
            write=f"load_weights(read_checkpoint({source}).tensors, min_coverage=0.0)",
        )
    return frozenset(held) - checkpoint.tensors.keys()


def _decoded(text: str, where: str) -> object:
    try:
        return decoded(text)
    except ValueError as error:
        raise _READ.wrong(where, "JSON", str(error)[:80]) from error


def _digests(model: nn.Module, added: Collection[str]) -> dict[str, str]:
    """Sum up all tensors but some, by child."""
    found: dict[str, list[str]] = {}
    for name in tensors_of(model):
        if name not in added:
            found.setdefault(name.partition(".")[0], []).append(name)
    return {child: digest(model, names)[:16] for child, names in found.items()}

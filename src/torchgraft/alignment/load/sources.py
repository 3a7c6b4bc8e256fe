"""Where weights come from: a checkpoint or another model, aligned with the model under edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
from torch import nn

from torchgraft.alignment.align import align
from torchgraft.alignment.alignment import Alignment
from torchgraft.alignment.load.by_names import by_names
from torchgraft.alignment.load.checkpoints import Checkpoint, opened
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.errors import CheckpointError, OptionError
from torchgraft.graph.checks import check_model
from torchgraft.graph.clone import clone
from torchgraft.graph.draft import Draft
from torchgraft.text import kind, literal

WAYS = ("names", "structure")
POLICIES = ("same_function", "same_shape")


@attrs.frozen(repr=False)
class Donor:
    """A model that gives its weights, as it was when it was handed over.

    Args:
        module: the model.
    """

    module: nn.Module = attrs.field(eq=id)

    def __repr__(self) -> str:
        return literal(self.module)


def hold(source: object, *, ema: bool = False, key: str = "") -> str | Checkpoint | Donor:
    """Hold a source: a path, to be read later, or tensors and models as they are now.

    Raises:
        CheckpointError: a mapping holds no weights.
        ModelError: a model is a wrapper.
        OptionError: the source is none of these, or holds no average of the weights.
    """
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, Mapping):
        try:
            return opened(source, ema=ema, key=key)
        except CheckpointError as error:
            error.asked = f"load_weights(<{kind(source)}>)"
            raise
    if not isinstance(source, (Checkpoint, nn.Module)):
        raise OptionError(
            "weights come from a file, from a mapping of names to tensors, or from a model",
            asked=f"load_weights({literal(source)})",
            found=kind(source),
            write='load_weights("weights.safetensors")',
        )
    if ema or key:
        said = "ema=True" if ema else f"key={literal(key)}"
        raise OptionError(
            "which of several weights are meant is said where a checkpoint is read",
            asked=f"load_weights({literal(source)}, {said})",
            found=kind(source),
            write=f"load_weights(read_checkpoint(..., {said}))",
        )
    if isinstance(source, Checkpoint):
        return source
    check_model(source)
    return Donor(clone(source))


def aligned(
    source: Checkpoint | Donor, draft: Draft, *, by: str, policy: str, prefix: str = "", into: str = ""
) -> tuple[Checkpoint, Alignment]:
    """Return the tensors of a source, and which of them the tensors of a model are made from.

    Args:
        source: a checkpoint, of which a prefix is taken off or put on where that helps, or a model.
        draft: the model under edit.
        by: ``"names"`` or ``"structure"``.
        policy: of the alignment by structure.
        prefix: what the names of the tensors that are meant begin with.
        into: path of the part of the model that is filled; the whole where it is empty.

    Raises:
        CheckpointError: several prefixes fit equally well, or no name has the one that was said.
        TargetError: there is no such part.
    """
    part = draft.get(into)
    target = {key: tuple(held.tensor.shape) for key, held in tensors_of(part).items()}
    if isinstance(source, Donor):
        checkpoint = Checkpoint({key: held.tensor for key, held in tensors_of(source.module).items()})
    else:
        checkpoint = (source.part(prefix) if prefix else source).for_keys(target)
    if by == "structure":
        given = source.module if isinstance(source, Donor) else checkpoint.tensors
        draft.runnable()
        example = None if into else draft.example
        found = align(given, part, example=example, policy=policy)
    else:
        found = by_names(checkpoint.shapes, target)
    return checkpoint, _moved(found, draft, into) if into else found


def _moved(found: Alignment, draft: Draft, into: str) -> Alignment:
    """Say of a model what was found for a part of it."""
    target = {key: tuple(held.tensor.shape) for key, held in tensors_of(draft.root).items()}
    return Alignment(
        found.source,
        target,
        tuple(attrs.evolve(one, target=f"{into}.{one.target}") for one in found.entries),
        tuple(attrs.evolve(one, target=f"{into}.{one.target}") for one in found.mismatched),
        tuple(attrs.evolve(one, target=f"{into}.{one.target}") for one in found.ambiguous),
    )

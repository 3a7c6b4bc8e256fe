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


def hold(source: object, *, ema: bool = False) -> str | Checkpoint | Donor:
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
            return opened(source, ema=ema)
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
    if ema:
        raise OptionError(
            "the average of the weights is chosen where a checkpoint is read",
            asked=f"load_weights({literal(source)}, ema=True)",
            found=kind(source),
            write="load_weights(read_checkpoint(..., ema=True))",
        )
    if isinstance(source, Checkpoint):
        return source
    check_model(source)
    return Donor(clone(source))


def aligned(
    source: Checkpoint | Donor,
    draft: Draft,
    *,
    by: str,
    policy: str,
) -> tuple[Checkpoint, Alignment]:
    """Return the tensors of a source, and which of them the tensors of a model are made from.

    Args:
        source: a checkpoint, of which a prefix is taken off or put on where that helps, or a model.
        draft: the model under edit.
        by: ``"names"`` or ``"structure"``.
        policy: of the alignment by structure.

    Raises:
        CheckpointError: several prefixes fit equally well.
    """
    target = {key: tuple(held.tensor.shape) for key, held in tensors_of(draft.root).items()}
    if isinstance(source, Donor):
        checkpoint = Checkpoint({key: held.tensor for key, held in tensors_of(source.module).items()})
    else:
        checkpoint = source.for_keys(target)
    if by == "structure":
        given = source.module if isinstance(source, Donor) else checkpoint.tensors
        return checkpoint, align(given, draft.runnable(), example=draft.example, policy=policy)
    return checkpoint, by_names(checkpoint.shapes, target)

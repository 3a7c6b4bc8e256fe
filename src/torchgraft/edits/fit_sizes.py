"""Fit sizes: tensors of a checkpoint that were made for another size, resampled for a model."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.alignment.alignment import Alignment, Entry, Mismatch, Part
from torchgraft.alignment.load.checkpoints import Checkpoint
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.edits.sized import find_sized
from torchgraft.errors import CheckpointError
from torchgraft.graph.draft import Draft
from torchgraft.text import literal


def fit_sizes(
    draft: Draft, checkpoint: Checkpoint, found: Alignment
) -> tuple[Checkpoint, Alignment, frozenset[str]]:
    """Resample what differs in shape for being made for another size of images, patches or windows.

    Args:
        draft: the model under edit.
        checkpoint: the tensors.
        found: which of them the tensors of the model are made from.

    Returns:
        The tensors with those that were resampled, what the model's are made from now, and the
        names of tables of whole numbers, which the model computed for its own size.

    Raises:
        AnalysisError: the model does not run on meta tensors, so its sizes are unknown.
        CheckpointError: a table is for a map or a window of unknown height and width.
    """
    held = tensors_of(draft.root)
    known = {id(one.tensor): one for one in find_sized(draft, list(draft.root.modules()))[0]}
    tensors, entries = dict(checkpoint.tensors), {entry.target: entry for entry in found.entries}
    computed, left = set[str](), list[Mismatch]()
    for one in found.mismatched:
        place, key = held[one.target].tensor, one.source
        sized = known.get(id(place))
        if not place.is_floating_point() and not isinstance(place, nn.Parameter):
            computed.add(one.target)
        elif sized is None or len(one.found) != len(one.asked):
            left.append(one)
        else:
            old = sized.size_of(one.found)
            made = None if old is None else sized.resampled(checkpoint.tensors[key], old, sized.size)
            if made is None or made.shape != place.shape:
                raise _unknown(one)
            tensors[key] = made
            entries[one.target] = Entry(one.target, (Part(key),), rule="resized", evidence="resized")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    ordered = tuple(entries[key] for key in found.target if key in entries)
    fitted = Alignment(shapes, found.target, ordered, tuple(left), found.ambiguous)
    return attrs.evolve(checkpoint, tensors=tensors), fitted, frozenset(computed)


def _unknown(one: Mismatch) -> CheckpointError:
    return CheckpointError(
        f"{one.source!r} is for another size than {one.target!r}, and how it is laid out is not known",
        found=f"{' '.join(map(str, one.found))} -> {' '.join(map(str, one.asked))}",
        write=f"exclude=({literal(one.target)},)",
    )

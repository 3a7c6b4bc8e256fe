"""Make the tensors of a target out of those of a source: elements move, none is altered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from torchgraft.alignment.entry import Entry, Part, Shape, joined_shape
from torchgraft.errors import AlignmentError
from torchgraft.text import kind, literal, near, plural


def applied(
    entries: Iterable[Entry],
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    state: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Make the tensor of each entry; all that they take from is checked first."""
    held = list(entries)
    for entry in held:
        check_sources(entry, source, state)
    with torch.no_grad():
        return {entry.target: made(entry, source, target[entry.target], state) for entry in held}


def check_sources(entry: Entry, source: Mapping[str, Shape], state: Mapping[str, torch.Tensor]) -> None:
    """Check that a state dict holds what an entry takes from.

    Raises:
        AlignmentError: a tensor is missing, is of another shape, or two cannot be joined.
    """
    for key in entry.keys:
        tensor = state.get(key)
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            close = near(key, state) if tensor is None else ()
            raise AlignmentError(
                f"{key!r} is not in the state dict" if tensor is None else f"{key!r} is no dense tensor",
                asked=f"{entry.target!r} takes from it",
                found=plural(len(state), "tensor") if tensor is None else kind(tensor),
                near=close,
                write=literal(close[0]) if close else "the state dict that the alignment was made from",
            )
        if tuple(tensor.shape) != source[key]:
            raise AlignmentError(
                f"{key!r} has another shape than the alignment was made for",
                asked=f"{source[key]}",
                found=f"{tuple(tensor.shape)}",
                write="the state dict that the alignment was made from",
            )
    check_kinds(entry, {key: f"{state[key].dtype} on {state[key].device}" for key in entry.keys})


def check_kinds(entry: Entry, kinds: Mapping[str, str]) -> None:
    """Check that tensors to be joined are of one dtype: to convert one would alter it.

    Raises:
        AlignmentError: they are not.
    """
    if len(set(kinds.values())) > 1:
        raise AlignmentError(
            f"the parts of {entry.target!r} differ in kind, and joining them would alter some",
            found=", ".join(f"{key}: {said.replace('torch.', '')}" for key, said in kinds.items()),
            write="tensors of one dtype and device",
        )


def made(
    entry: Entry, source: Mapping[str, Shape], shape: Shape, state: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Make one tensor, contiguous and in memory of its own."""
    like = state[entry.keys[0]] if entry.keys else torch.empty(0)
    parts = [_taken(part, state, like) for part in entry.parts]
    # Row by row is how a tensor lies in memory: what is joined flat is joined along the first axis.
    joined = parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
    if entry.axes:
        joined = joined.reshape(joined_shape(entry, source)).permute(entry.axes)
    elif len(parts) > 1:
        return joined.reshape(shape)
    return joined.clone(memory_format=torch.contiguous_format).reshape(shape)


def _taken(part: Part, state: Mapping[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    if not part.key:
        return torch.zeros(part.view, dtype=like.dtype, device=like.device)
    return seen(part, state[part.key].detach())


def seen(part: Part, tensor: torch.Tensor) -> torch.Tensor:
    """Return what a part takes of a tensor, as a view where that can be."""
    turned = tensor.reshape(part.view) if part.view else tensor
    if part.axes:
        turned = turned.permute(part.axes)
    return turned if part.rows is None else turned[slice(*part.rows)]

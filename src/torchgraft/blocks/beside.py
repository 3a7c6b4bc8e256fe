"""What blocks have in common that look at what their target takes as well as at what it gives."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from torchgraft.blocks.contract import Contract
from torchgraft.errors import ShapeError, TargetError
from torchgraft.spec import TensorSpec, shape_text
from torchgraft.text import kind, literal

# Not KEEPS_SHAPE: whether the two fit together is found out by running the block on them.
BESIDE = Contract("keeps the shape; what its target takes has to fit", lambda shape, options: shape)


class Adapting(nn.Module):
    """What adapts a model, and can be switched off."""

    __constants__ = ["enabled"]
    enabled = True


def refuse_in_place(site: TensorSpec, name: str) -> None:
    """Refuse a layer that writes over what it took.

    Raises:
        TargetError: the layer works in place.
    """
    if getattr(site.layer, "inplace", False):
        raise TargetError(
            f"{name} looks at what its target took, and this layer writes over it",
            found=f"{kind(site.layer)} with inplace=True",
            write=f"replace({literal(type(site.layer))}, {literal(type(site.layer))}) before: not in place",
        )


def fitting(x: torch.Tensor, y: torch.Tensor, *, axis: int = -1, channels: int | None = None) -> torch.Tensor:
    """Return what a target took if it fits beside what it gave; arithmetic would stretch it.

    Args:
        x: what it took.
        y: what it gave.
        axis: axis of the channels.
        channels: channels that ``x`` has to have; those of ``y`` if ``None``.

    Raises:
        ShapeError: the places differ, or the channels.
    """
    if has_torch_function((x, y)):  # as torch's own functions do: one step to what traces it
        traced: torch.Tensor = handle_torch_function(fitting, (x, y), x, y, axis=axis, channels=channels)
        return traced
    wanted = list(y.shape)
    wanted[axis] = channels or wanted[axis]
    if list(x.shape) != wanted:
        raise ShapeError(f"{shape_text(x)} goes in and {shape_text(y)} comes out")
    return x

"""What blocks have in common that look at what their target takes as well as at what it gives."""

from __future__ import annotations

import torch

from torchgraft.blocks.contract import Contract
from torchgraft.errors import ShapeError, TargetError
from torchgraft.spec import TensorSpec, shape_text
from torchgraft.text import kind, literal

# Not KEEPS_SHAPE: whether the two fit together is found out by running the block on them.
BESIDE = Contract("keeps the shape; what its target takes has to fit", lambda shape, options: shape)


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


def check_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Check that two values have one shape, as arithmetic would stretch the smaller one.

    Raises:
        ShapeError: they differ.
    """
    if one.shape != other.shape:
        raise ShapeError(f"{shape_text(one)} does not fit beside {shape_text(other)}")

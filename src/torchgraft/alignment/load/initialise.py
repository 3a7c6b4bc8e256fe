"""Initialise: give tensors that no checkpoint fills values by the name of an initialiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from torchgraft.blocks.norms import both_normalise
from torchgraft.text import wrong

_NAMES = (
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "trunc_normal",
    "normal",
    "uniform",
    "orthogonal",
    "zeros",
    "ones",
)
_OF_NORMS = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def check_initialiser(name: object) -> None:
    """Check the name of an initialiser: one of ``torch.nn.init``, without its underscore.

    Raises:
        OptionError: it is unknown.
    """
    if name not in _NAMES:
        raise wrong(f"init is one of {', '.join(_NAMES)}", name, name="init", known=_NAMES)


def initialise(module: nn.Module, name: str, tensor: torch.Tensor, initialiser: str) -> bool:
    """Give a tensor new values, where an initialiser has something to say about it.

    Normalisations start as the identity and biases at zero, whatever the name. Other buffers
    and vectors mean something of their own (tables, layer scales) and keep their values.

    Args:
        module: the module that holds the tensor.
        name: its name there.
        tensor: the tensor; it is written to.
        initialiser: a name that was checked.

    Returns:
        Whether it was written to.
    """
    with torch.no_grad():
        if both_normalise(module, module) and name in _OF_NORMS:
            tensor.fill_(_OF_NORMS[name])
            return True
        if name not in module._parameters or not tensor.is_floating_point():
            return False
        if name == "bias" or name.endswith("_bias"):
            tensor.zero_()
            return True
        if tensor.ndim < 2:
            return False
        fill: Callable[[torch.Tensor], torch.Tensor] = getattr(nn.init, f"{initialiser}_")
        fill(tensor)
    return True

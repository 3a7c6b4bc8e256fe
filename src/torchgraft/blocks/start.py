"""Starts: the values that new modules begin with, now and whenever they are started anew."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

Fill = Callable[[nn.Module], None]


def start(layer: nn.Module, fill: Fill) -> None:
    """Let a layer begin with other values than its class gives it, also after ``reset_parameters``.

    Args:
        layer: holds the tensors itself.
        fill: gives the values, after those of the class; a function of this module, or a partial one.
    """
    keep_start(layer, fill)
    fill(layer)


def keep_start(layer: nn.Module, fill: Fill) -> None:
    """Let ``reset_parameters`` give a layer the values that something else filled it with."""
    known = vars(layer).get("reset_parameters")
    fills = (*(known.args[1:] if isinstance(known, functools.partial) else ()), fill)
    # On the instance, as its class is torch's own; by `partial`, which is copied and pickled with it.
    vars(layer)["reset_parameters"] = functools.partial(_start_layer, layer, *fills)


def start_anew(module: nn.Module) -> None:
    """Let every layer of a module begin as when it was built: in the same order, by the same draws."""
    layers = list(module.modules())
    for layer in layers:
        _start_layer(layer)
    for layer in layers:
        held = vars(layer).get("reset_parameters")
        for fill in held.args[1:] if isinstance(held, functools.partial) else ():
            fill(layer)


def startable(module: nn.Module) -> nn.Module:
    """Give a module with parts the ``reset_parameters`` that starts all of them."""
    if module._modules and not hasattr(module, "reset_parameters"):
        vars(module)["reset_parameters"] = functools.partial(start_anew, module)
    return module


def zero(layer: nn.Module) -> None:
    """Zero the last layer of a gate, so that its logits start at zero."""
    start(layer, constant)


def constant(layer: nn.Module, value: float = 0.0) -> None:
    """Fill the parameters of a layer with a number."""
    for parameter in layer.parameters(recurse=False):
        nn.init.constant_(parameter, value)


def he_start(module: nn.Module) -> None:
    """Start the convolutions as He et al. do (arXiv 1502.01852), grouped ones too."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            start(layer, _he)


def _he(layer: nn.Module) -> None:
    nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.get_parameter("bias"))


def _start_layer(layer: nn.Module, *fills: Fill) -> None:
    own = getattr(type(layer), "reset_parameters", None)
    if own is not None:
        own(layer)
    for fill in fills:
        fill(layer)

"""Kinds of modules: containers, whose forward is of interest, and layers, which are units."""

from __future__ import annotations

from torch import fx, nn


def has_forward(module: nn.Module) -> bool:
    """Tell whether a module can be called; lists and dictionaries of modules cannot."""
    generated = isinstance(module, fx.GraphModule)  # perhaps only when the editing is done
    return generated or type(module).forward is not nn.Module.forward or "forward" in vars(module)


def is_container(module: nn.Module) -> bool:
    """Tell whether a module consists of others that its forward calls.

    The layers of ``torch.nn`` are units even where they hold other modules, as the
    attention layers do.
    """
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, fx.GraphModule)):
        return True
    return bool(module._modules) and not type(module).__module__.startswith("torch.nn")


def searched(module: nn.Module) -> bool:
    """Tell whether the forward of a module may hold operations that users mean.

    The layers of ``torch.nn`` are units, and a plain ``Sequential`` calls its children only.
    """
    if not has_forward(module) or type(module).forward is nn.Sequential.forward:
        return False
    return not type(module).__module__.startswith("torch.nn.")


def is_unit(module: nn.Module) -> bool:
    """Tell whether a module is a layer of ``torch.nn`` with layers in it, such as attention."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, fx.GraphModule)
    )

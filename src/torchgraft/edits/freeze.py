"""Freeze and unfreeze: parameters that get no gradient, statistics that hold still."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import ClassVar

import attrs
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from torchgraft.errors import TargetError
from torchgraft.graph.draft import Draft
from torchgraft.select import Selector, Site, Target, parse
from torchgraft.text import check_flags, literal, spelled
from torchgraft.transform import Transform

_BODIES = frozenset(("backbone", "encoder", "features", "body", "trunk"))
_EVERYTHING = parse("**")
WANTED = "_torchgraft_mode_when_thawed"


@attrs.frozen(repr=False)
class Freeze(Transform):
    """Hold the parameters of the targets, and their running statistics."""

    name: ClassVar[str] = "freeze"
    target: Selector
    norm_stats: bool = attrs.field(kw_only=True, default=True)

    def _edit(self, draft: Draft) -> None:
        for parameters, modules in _sites(self.target, draft):
            for parameter in parameters:
                parameter.requires_grad_(False)
            if self.norm_stats:
                for part in filter(keeps_statistics, modules):
                    _hold(part)


@attrs.frozen(repr=False)
class Unfreeze(Transform):
    """Let the parameters of the targets train again, and their statistics move."""

    name: ClassVar[str] = "unfreeze"
    target: Selector = _EVERYTHING

    def _edit(self, draft: Draft) -> None:
        for parameters, modules in _sites(self.target, draft):
            for parameter in parameters:
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(True)
            for part in modules:
                _release(part)


@spelled
def freeze(target: Target, *, norm_stats: bool = True) -> Freeze:
    """Hold the parameters of a target; ``.train()`` does not thaw them.

    ``"*"`` is every child of the model, ``"**"`` also the parameters of its root, and
    ``~at("head")`` all that is not in the head.
    Order decides: blocks added to a frozen target later are trainable. Tied parameters are
    held under all their names. Dropout and stochastic depth keep following ``.train()``.

    Args:
        target: path, glob, module class, or a selector of modules.
        norm_stats: also keep layers with running statistics in evaluation mode.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> freeze("layer1", norm_stats=False)
        freeze("layer1", norm_stats=False)
    """
    check_flags(norm_stats=norm_stats)
    return Freeze(parse(target), norm_stats=norm_stats)


@spelled
def unfreeze(target: Target = "**") -> Unfreeze:
    """Let the parameters of a target train again, and its running statistics move.

    Args:
        target: path, glob, module class, or a selector of modules; without one, everything.

    Returns:
        The transform.

    Raises:
        OptionError: an argument is of a wrong kind.

    Example:
        >>> freeze("*") >> unfreeze("fc")
        compose(freeze("*"), unfreeze("fc"))
        >>> unfreeze() == unfreeze("**")
        True
    """
    return Unfreeze(parse(target))


def keeps_statistics(module: nn.Module) -> bool:
    """Return True if training mode changes buffers of a layer."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.running_mean is not None or module.running_var is not None
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    # Spectral norm iterates on two vectors; hand-written norms name theirs as torch does.
    return any(name in ("_u", "_v") or name.startswith("running_") for name in module._buffers)


def _sites(target: Selector, draft: Draft) -> Iterator[tuple[list[nn.Parameter], list[nn.Module]]]:
    """Yield, for each site, its parameters and the modules of which the statistics are meant."""
    for site in _found(target, draft):
        if not site.is_module:
            raise TargetError(
                f"{site.path!r} is an operation, which has no parameters",
                found=f"a node of {site.owner or 'the root'}",
                write="the module that holds the parameters",
            )
        module = draft.get(site.path)
        own = [p for p in module._parameters.values() if p is not None]
        yield (own, [module]) if site.own else (list(module.parameters()), list(module.modules()))


def _found(target: Selector, draft: Draft) -> list[Site]:
    """Return the sites; all but the head is meant by names of bodies that a model does not have."""
    try:
        return target.find(draft, own=True)
    except TargetError as error:
        if error.wrong in _BODIES and not error.swap[0]:
            ends = [name for name in error.near if name.endswith(f".{error.wrong}")]
            error.swap = (literal(error.wrong), literal(ends[0]) if ends else "~head")
        raise


def _hold(module: nn.Module) -> None:
    held = vars(module)
    held.setdefault(WANTED, module.training)
    held["training"] = False
    held["train"] = functools.partial(_stay_in_evaluation, module)  # a method would not pickle


def _release(module: nn.Module) -> None:
    held = vars(module)
    if WANTED in held:
        held["training"] = held.pop(WANTED)
        del held["train"]


def _stay_in_evaluation(self: nn.Module, mode: bool = True) -> nn.Module:  # noqa: FBT002 - as nn.Module.train
    """Note the mode that was asked for and stay in evaluation mode."""
    vars(self)[WANTED] = mode
    for child in self.children():
        child.train(mode)
    return self

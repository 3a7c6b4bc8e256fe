"""Functions as users write them, which transforms and selectors of the laws are given.

They stand in a module of their own, so that what prints as ``strategies.functions.is_deep``
can be read back.
"""

from __future__ import annotations

from torch import nn

from strategies.net import CLASSES
from strategies.parts import WIDTH
from torchgraft.graph.draft import Draft
from torchgraft.select import Site


class OfTheUserError(Exception):
    """What the code of a user raises, which is passed on as it is."""


def is_convolution(site: Site) -> bool:
    """Tell whether a site is a convolution."""
    return isinstance(site.module, nn.Conv2d)


def is_deep(site: Site) -> bool:
    """Tell whether a site stands deep in the tree."""
    return site.path.count(".") >= 2


def is_called(site: Site) -> bool:
    """Tell whether a forward calls a site."""
    return bool(site.calls)


def same_head(old: nn.Module) -> nn.Module:
    """Make another head of the same kind."""
    return nn.Linear(old.in_features, CLASSES).to(old.weight.dtype)


def patches(old: nn.Module) -> nn.Module:
    """Make a convolution in the place of a stem that cuts patches of two by two."""
    return nn.Conv2d(old.in_channels, old.out_channels, 2, stride=2).to(old.weight.dtype)


def takes_eight(old: nn.Module) -> nn.Module:
    """Make a head for twice as many channels."""
    return nn.Linear(2 * WIDTH, old.out_features).to(old.weight.dtype)


def nothing(draft: Draft) -> None:
    """Leave a draft as it is."""


def writes_then_raises(draft: Draft) -> None:
    """Change everything, then fail."""
    for parameter in draft.root.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(requires_grad=False)
    draft.root.train(not draft.root.training)
    draft.open("")
    draft.get("").config["mean"].append(1.0)
    draft.exchange("head", nn.Identity())
    raise OfTheUserError


def raises(channels: int) -> nn.Module:
    """Fail to make a block."""
    raise OfTheUserError(channels)

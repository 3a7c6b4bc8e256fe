"""Predicates: functions of a site that say whether it is meant."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from torchgraft.select.query import Query
from torchgraft.select.selector import Selector
from torchgraft.select.site import Site
from torchgraft.select.steps import holds
from torchgraft.text import function_name, spelled, wrong


@attrs.frozen(repr=False)
class Predicate(Selector):
    """Point at the modules for which a function is true."""

    predicate: Callable[[Site], bool]

    def answer(self, query: Query) -> list[Site]:
        """Ask the function about every module, a shared one once."""
        first = {id(m): name for name, m in reversed(list(query.draft.modules())) if name}
        sites = [Site(name, query.draft) for name in reversed(first.values())]
        found = [site for site in sites if holds(self.predicate, site)]
        return self._checked(query, found, f"{self!r} is true of no module")

    def __repr__(self) -> str:
        return f"where({function_name(self.predicate)})"


@spelled
def where(predicate: Callable[[Site], bool]) -> Selector:
    """Point at the modules for which a function is true.

    Args:
        predicate: gets a ``Site``: ``path``, ``cls``, ``module``, ``inputs``, ``output``,
            ``layout``, ``calls``.

    Returns:
        The selector; it is equal to itself alone and cannot be written to a file.

    Raises:
        OptionError: it is no function.

    Example:
        >>> from torch import nn
        >>> from torchgraft import at
        >>> from torchvision.models import resnet18
        >>> narrow = where(lambda site: site.output is not None and site.output[-1] == 7)
        >>> (at(nn.MaxPool2d) | narrow.first).on(resnet18()).paths
        ('maxpool', 'layer4')
    """
    if not callable(predicate) or isinstance(predicate, type):
        raise wrong("where takes a function of a site", predicate, 'lambda site: site.path.endswith("conv2")')
    return Predicate(predicate)

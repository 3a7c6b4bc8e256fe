"""What one can point at: selectors, and the sites that they find."""

from torchgraft.select.operation_targets import node as node
from torchgraft.select.operation_targets import op as op
from torchgraft.select.predicate import where as where
from torchgraft.select.region import outermost as outermost
from torchgraft.select.selection import Selection as Selection
from torchgraft.select.selector import Selector as Selector
from torchgraft.select.selector import Target as Target
from torchgraft.select.site import Site as Site
from torchgraft.select.targets import at as at
from torchgraft.select.targets import parse as parse
from torchgraft.select.tier import head as head
from torchgraft.select.tier import stage as stage
from torchgraft.select.tier import stem as stem

__all__ = [
    "Selection",
    "Selector",
    "Site",
    "Target",
    "at",
    "head",
    "node",
    "op",
    "outermost",
    "parse",
    "stage",
    "stem",
    "where",
]

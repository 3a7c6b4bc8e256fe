"""Failing examples print transforms, blocks and selectors as the calls that make them."""

from __future__ import annotations

from torchgraft.blocks.block import Block
from torchgraft.select import Selector
from torchgraft.transform import Transform


def as_written(value: object, printer, cycle: bool) -> None:
    """Print a value by its repr, where hypothesis would list the fields of an attrs class."""
    printer.text(repr(value))


for base in (Block, Selector, Transform):
    base._repr_pretty_ = as_written

"""The row: one way to use a transform that fits every net, and what it promises."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from strategies.net import CHANNELS
from strategies.printing import as_written
from torchgraft.blocks.block import Block
from torchgraft.transform import Transform

ALWAYS, EVALUATION = "in both modes", "in evaluation"


@attrs.frozen(repr=False)
class Row:
    """One way to use a public transform on any net of the grammar.

    Args:
        make: makes the transform.
        neutral: the modes in which it leaves the function of the model as it was.
        idempotent: twice is as good as once, under one seed.
        touches: paths that it may change, with what is in them, and plain attributes, as ``:name``.
        adds: names of modules that it may put in anywhere.
        sets: plain attributes that it may set anywhere.
        wide: it looks at the whole model, so that what another edit puts in matters to it.
        holds: paths of which it may change the modes and what gets a gradient, and no bits.
        takes: channels of the input that the result takes.
        written: Python can read it back from what it prints.
        block: the block that it is the row of.
    """

    make: Callable[[], Transform]
    neutral: str = ""
    idempotent: bool = False
    touches: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    wide: bool = False
    holds: tuple[str, ...] = ()
    takes: int = CHANNELS
    written: bool = True
    block: Block | None = None

    @property
    def parsed(self) -> bool:
        """Whether a recipe can hold it: it can be written, and names no function of a user."""
        return self.written and "strategies.functions." not in repr(self)

    @property
    def stacks(self) -> bool:
        """Whether it is a block behind the body that is neutral in both modes."""
        return self.block is not None and self.neutral == ALWAYS and "body.added" in self.touches

    def touched(self, path: str) -> bool:
        """Tell whether the transform may change what is at a path, or an attribute of it: ``path:name``."""
        where, _, attribute = path.partition(":")
        inside = covered(path, self.touches) or covered(where, self.touches)
        return inside or attribute in self.sets or bool(set(self.adds) & set(where.split(".")))

    def held(self, path: str) -> bool:
        """Tell whether the transform may change the mode and the flags at a path."""
        return self.touched(path) or covered(path, self.holds)

    def __repr__(self) -> str:
        return repr(self.make())

    _repr_pretty_ = as_written


def covered(path: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether a path is one of others, or inside one."""
    return any(not p or path == p or path.startswith(f"{p}.") for p in prefixes)

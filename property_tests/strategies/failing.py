"""Edits that must fail on every net, and where in their work they do."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from hypothesis import strategies as st
from torch import nn

from strategies.functions import OfTheUserError, raises, writes_then_raises
from strategies.printing import as_written
from torchgraft import GraftError, at, compose, edit, freeze, inject, op, remove, replace, swap_head, wrap
from torchgraft.blocks import cbam, se
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Failing:
    """An edit that must fail.

    Args:
        make: makes it.
        raises: an exception of the library, or one of the user's own.
    """

    make: Callable[[], Transform]
    raises: type[Exception] = GraftError

    def __repr__(self) -> str:
        return repr(self.make())

    _repr_pretty_ = as_written


FAILING = {
    "no such path": Failing(lambda: wrap("bdy", se)),
    "no such glob": Failing(lambda: freeze("nothing.*")),
    "no such class": Failing(lambda: freeze(nn.LSTM)),
    "no such operation": Failing(lambda: remove(op("fft"))),
    "half of a union": Failing(lambda: freeze(at("body") | "nothing")),
    "too many": Failing(lambda: freeze(at("*").one())),
    "the last step": Failing(lambda: compose(wrap("body", se, name="added"), swap_head(3), freeze("zzz"))),
    "the last of two targets": Failing(lambda: wrap(at("stem") | "spare", se)),
    "another shape": Failing(lambda: inject("body", nn.Conv2d(7, 7, 1).double())),
    "another width": Failing(lambda: replace("head", nn.Linear(9, 2).double())),
    "at sealing": Failing(lambda: replace("down", nn.Conv2d(4, 5, 1).double(), keep_shape=False)),
    "never called": Failing(lambda: compose(freeze("body"), wrap("spare", se))),
    "a name that is taken": Failing(lambda: wrap("body", se, name="head") >> wrap("head", se, name="body")),
    "no places": Failing(lambda: swap_head(3) >> inject("head", cbam, where="before")),
    "two values": Failing(lambda: inject("body", se) >> remove("add")),
    "a block that raises": Failing(lambda: wrap("stem", se) >> wrap("body", raises)),
    "an edit that raises": Failing(lambda: edit(writes_then_raises, name="writes"), raises=OfTheUserError),
}


def failing() -> st.SearchStrategy[Failing]:
    """Draw an edit that must fail."""
    return st.sampled_from(list(FAILING.values()))

"""What was done to a model, kept on the result."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft

_KEY = "_torchgraft_history"


@attrs.frozen
class History:
    """Tell what was done to a model.

    Args:
        steps: the transforms as written, the first one first.
        opened: paths of the modules whose forward became a graph.
        unfollowed: why the root stayed a clone of its class; empty where it is a graph.
    """

    steps: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    unfollowed: str = ""
    unfollowed_error: TraceError | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def of(cls, draft: Draft, steps: tuple[str, ...], before: History) -> History:
        """Sum up a draft that was sealed."""
        opened = dict.fromkeys((*before.opened, *draft.opened))
        stopped = draft.unfollowed
        return cls(steps, tuple(sorted(opened)), stopped.found if stopped else "", stopped)


def history_of(model: nn.Module) -> History:
    """Return what was done to a model; nothing for one that no transform made."""
    known = vars(model).get(_KEY)
    return known if isinstance(known, History) else History()


def set_history(model: nn.Module, history: History) -> None:
    """Keep what was done on the result."""
    vars(model)[_KEY] = history

"""What was done to a model, kept on the result."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.outline import Outline

_KEY = "_torchgraft_history"


@attrs.frozen
class History:
    """Tell what was done to a model.

    Args:
        steps: the transforms as written, the first one first.
        opened: paths of the modules whose forward became a graph.
        unfollowed: why the root stayed a clone of its class; empty where it is a graph.
        outline: what the model consisted of before the first of them.
    """

    steps: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    unfollowed: str = ""
    outline: Outline | None = attrs.field(default=None, eq=False, repr=False)
    unfollowed_error: TraceError | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def of(cls, draft: Draft, steps: tuple[str, ...], before: History, outline: Outline) -> History:
        """Sum up a draft that was sealed.

        Args:
            draft: the draft.
            steps: all steps that made the result.
            before: the history of the model that was given.
            outline: of the model that was given.
        """
        opened = dict.fromkeys((*before.opened, *draft.opened))
        stopped = draft.unfollowed
        first = before.outline or outline
        first = attrs.evolve(first, nodes={**draft.before, **outline.nodes, **first.nodes})
        return cls(steps, tuple(sorted(opened)), stopped.found if stopped else "", first, stopped)


def history_of(model: nn.Module) -> History:
    """Return what was done to a model; nothing for one that no transform made."""
    known = vars(model).get(_KEY)
    return known if isinstance(known, History) else History()


def set_history(model: nn.Module, history: History) -> None:
    """Keep what was done on the result."""
    vars(model)[_KEY] = history

"""Where a model comes from and what was done to it, kept on the model."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.outline import Outline
from torchgraft.graph.probe import Example, on_meta

_KEY = "_torchgraft_history"


@attrs.frozen
class Origin:
    """Tell where a model comes from.

    Args:
        base: source and name, such as ``"torchvision/resnet50"``.
        weights: what was asked for as its weights: a name, a path, ``True`` for the default of
            the source, ``None`` for random ones.
        options: options of its builder, by name.
        sha256: digest of its tensors as they were loaded; empty where they are random.
    """

    base: str
    weights: str | bool | None = None
    options: tuple[tuple[str, object], ...] = ()
    sha256: str = ""


@attrs.frozen
class History:
    """Tell what was done to a model.

    Args:
        origin: where it comes from, if that is known.
        steps: the transforms as written, the first one first.
        opened: paths of the modules whose forward became a graph.
        unfollowed: why the root stayed a clone of its class; empty where it is a graph.
        outline: what the model consisted of before the first of them.
        example: the input that was given for the first of them; edits may have changed what the
            model takes since.
    """

    origin: Origin | None = None
    steps: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    unfollowed: str = ""
    outline: Outline | None = attrs.field(default=None, eq=False, repr=False)
    unfollowed_error: TraceError | None = attrs.field(default=None, eq=False, repr=False)
    example: Example | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def of(
        cls,
        draft: Draft,
        steps: tuple[str, ...],
        before: History,
        outline: Outline,
        example: Example | None = None,
    ) -> History:
        """Sum up a draft that was sealed.

        Args:
            draft: the draft.
            steps: all steps that made the result.
            before: the history of the model that was given.
            outline: of the model that was given.
            example: what the draft began with.
        """
        opened = dict.fromkeys((*before.opened, *draft.opened))
        stopped = draft.unfollowed
        first = before.outline or outline
        first = attrs.evolve(first, nodes={**draft.before, **outline.nodes, **first.nodes})
        said = stopped.found if stopped else ""
        known = example if before.example is None else before.example
        kept = None if known is None else on_meta(known)
        return cls(before.origin, steps, tuple(sorted(opened)), said, first, stopped, kept)


def history_of(model: nn.Module) -> History:
    """Return what was done to a model; nothing for one that no transform made."""
    known = vars(model).get(_KEY)
    return known if isinstance(known, History) else History()


def set_history(model: nn.Module, history: History) -> None:
    """Keep what was done on the result."""
    vars(model)[_KEY] = history

"""Where a model comes from and what was done to it, kept on the model."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import nn

from torchgraft.errors import TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.outline import Outline, named_tensors
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


@attrs.frozen(eq=False)
class Deferred:
    """What is still to be done to values, of a model that was edited without them.

    It is shared by clones and not pickled: it holds steps as they are, whatever they hold.

    Args:
        base: the model before the first step, without values.
        edits: of each pipe, what does it again; the state of the generator; the example.
    """

    base: nn.Module | None = None
    edits: tuple[tuple[tuple[object, ...], torch.Tensor, Example | None], ...] = ()

    def __deepcopy__(self, memo: object) -> Deferred:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return Deferred, ()


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
        new: names of the tensors that they added, or put in the place of others.
        deferred: what is still to be done to values.
    """

    origin: Origin | None = None
    steps: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    unfollowed: str = ""
    outline: Outline | None = attrs.field(default=None, eq=False, repr=False)
    unfollowed_error: TraceError | None = attrs.field(default=None, eq=False, repr=False)
    example: Example | None = attrs.field(default=None, eq=False, repr=False)
    new: tuple[str, ...] = attrs.field(default=(), eq=False, repr=False)
    deferred: Deferred = attrs.field(factory=Deferred, eq=False, repr=False)

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
        new = new_tensors(draft, before)
        return cls(before.origin, steps, tuple(sorted(opened)), said, first, stopped, kept, new)


def history_of(model: nn.Module) -> History:
    """Return what was done to a model; nothing for one that no transform made."""
    known = vars(model).get(_KEY)
    return known if isinstance(known, History) else History()


def new_tensors(draft: Draft, before: History) -> tuple[str, ...]:
    """Name the tensors that steps added so far, or put in the place of others.

    Args:
        draft: the model under edit.
        before: the history of the model that was given.
    """
    was = {key: name for key, (name, _) in draft.begun.items() if name not in before.new}
    return tuple(name for name, tensor in named_tensors(draft.root) if id(tensor) not in was)


def hung_by_steps(draft: Draft) -> frozenset[str]:
    """Find the modules that steps put beside those that were there, and not in the place of any."""
    before = history_of(draft.root)
    old = {key for key, (name, _) in draft.begun.items() if name not in before.new}
    kept = _above(name for name, tensor in named_tensors(draft.root) if id(tensor) in old)
    stood = before.outline.modules if before.outline else _above(name for name, _ in draft.begun.values())
    paths = (path for path, _ in draft.modules() if path and path.rpartition(".")[0] in kept)
    return frozenset(path for path in paths if path not in kept and path not in stood)


def _above(names: Iterable[str]) -> set[str]:
    """Return the paths of the modules that tensors are in."""
    found = {""}
    for name in names:
        while name := name.rpartition(".")[0]:
            found.add(name)
    return found


def set_history(model: nn.Module, history: History) -> None:
    """Keep what was done on the result."""
    vars(model)[_KEY] = history

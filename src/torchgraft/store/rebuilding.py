"""Rebuild the model of a record without its values: the base, and the steps on it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import nn

from torchgraft.errors import GraftError, ModelError, StoreError
from torchgraft.graph.clone import clone
from torchgraft.graph.following import EXAMPLE
from torchgraft.graph.history import history_of, set_history
from torchgraft.recipe.written import Remark
from torchgraft.sources.get import skeleton_of
from torchgraft.sources.skeleton import bounded_parts, emptied, skeleton
from torchgraft.store.constants import cast, differing
from torchgraft.store.examples import from_plain
from torchgraft.store.record import Record, described, other_versions, unlike, versions_for
from torchgraft.text import kind, plural, write_error
from torchgraft.transform import replayed

Base = nn.Module | Callable[[], nn.Module]


def rebuilt(record: Record, base: Base | None = None, *, limit: int | None = None) -> nn.Module:
    """Build the model that a record tells of, its parameters on the meta device.

    Args:
        record: the record; nothing of it is run, and no path in it is opened.
        base: the base or what builds it, where no source knows it; the edited model, where a step
            was not written. It is only read.
        limit: bytes that the builder of a base may fill, where the record comes from anywhere.

    Returns:
        The model.

    Raises:
        StoreError: it cannot be built.
        ModelError: what is given as the base is no model.
    """
    recipe = record.recipe
    noted = next((step for step in recipe.steps if isinstance(step, Remark)), None)
    if noted is not None and base is None:
        raise StoreError(
            "a step of the file was not written, so it cannot be done again",
            found=repr(noted),
            write=f"load(path, base=<a function that builds the edited {record.base_class}>)",
        )
    start = _known(record, limit) if base is None else _given(base)
    before = history_of(start)
    steps = recipe.steps
    # A base on which the first steps were done already is as good as one without them.
    if before.steps == tuple(map(repr, steps[: len(before.steps)])):
        steps = steps[len(before.steps) :]
    example = None if record.example is None else from_plain(record.example)
    try:
        with bounded_parts():
            model = replayed(start, steps, example) if record.graph and noted is None else start
    except Exception as error:  # the steps may be of anyone
        raise _failed(record, "the steps of the file cannot be done on its base", error) from error
    if noted is None:
        origin = recipe.origin if recipe.base else None
        set_history(model, attrs.evolve(history_of(model), origin=origin))
    if record.takes is not None:
        vars(model)[EXAMPLE] = from_plain(record.takes)
    cast(model, record.constants)
    return model


def check_same(record: Record, model: nn.Module) -> None:
    """Check that a model is what a record tells of, as far as it can be seen without values.

    Raises:
        StoreError: it is another one.
    """
    wrong = differing(model, record.constants, record.tables)
    if wrong:
        raise StoreError(
            f"the base computes other constants than when the file was made: {', '.join(wrong[:3])}",
            found=f"{plural(len(wrong), 'tensor')} that no state dict holds",
            write="register_buffer(...) for them, so that a file holds them",
        )
    if versions_for(record.recipe.base) == record.versions:
        other = unlike(model, record.portrait)
        if other:
            raise StoreError(
                f"the base is not the one that the file was made from: {described(record)}",
                found=f"other parts, settings or forwards in {', '.join(other[:3])}",
                write="load(path, base=<what built the model that was saved>)",
            )


def _known(record: Record, limit: int | None) -> nn.Module:
    if not record.recipe.base:
        raise StoreError(
            f"the file was made from a {record.base_class} that no source knows",
            found=record.differs or "no base in the record",
            write=f"load(path, base=<a function that builds the {record.base_class}>)",
        )
    try:
        with bounded_parts():
            return skeleton_of(record.recipe.origin, limit=limit)
    except Exception as error:  # a builder may do anything with options that it was not made for
        raise _failed(
            record, f"the base of the file, {record.recipe.base!r}, cannot be built", error
        ) from error


def _given(base: Base) -> nn.Module:
    return emptied(clone(base)) if isinstance(base, nn.Module) else skeleton(lambda: _made(base))


def _made(base: Callable[[], nn.Module]) -> nn.Module:
    made = base() if callable(base) else base
    if not isinstance(made, nn.Module):
        raise ModelError(
            "a base is a model, or a function that builds one",
            found=kind(made),
            write="load(path, base=<a function that builds the model>)",
        )
    return made


def _failed(record: Record, summary: str, error: Exception) -> StoreError:
    if isinstance(error, GraftError):
        found, near, write = (
            error.summary + (f": {error.found}" if error.found else ""),
            error.near,
            error.write,
        )
    else:
        found, near, write = write_error(error), (), ""
    other = other_versions(record)
    return StoreError(summary, found=f"{found}; {other}" if other else found, near=near, write=write)

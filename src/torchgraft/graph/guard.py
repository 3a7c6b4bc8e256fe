"""Guards: what a traced forward checks because a decision was taken while it was traced."""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import fx

from torchgraft.errors import SpecialisedError


@fx.wrap
def guard(value: object, expected: object, said: str) -> None:
    """Raise when a decision that was taken at tracing would be taken otherwise now.

    Args:
        value: the value that decided; for a truth, anything that has one.
        expected: the value, or the truth, at tracing.
        said: where the decision stands and what the forward was traced for.

    Raises:
        SpecialisedError: the value is another one.
    """
    if isinstance(expected, bool):
        if bool(value) is not expected:
            raise SpecialisedError(
                f"{said}; this input decides otherwise",
                found=f"the condition was {expected} and is now {not expected}",
                write="the edit with example=<an input of this size>",
            )
    elif value != expected:
        raise SpecialisedError(
            f"{said}; this input has another size",
            found=f"the value was {expected} and is now {value}",
            write="the edit with example=<an input of this size>",
        )


@fx.wrap
def baked(value: object, expected: object, name: str) -> None:
    """Raise when an argument is not the one that the forward was traced with.

    Args:
        value: the argument of this call.
        expected: the argument at tracing.
        name: name of the parameter.

    Raises:
        SpecialisedError: the argument is another one.
    """
    if not is_same(value, expected):
        raise SpecialisedError(
            f"this forward was traced with {name}={expected!r}",
            found=f"{name} is a {type(value).__name__}",
            write=f"the edit with example={{..., {name!r}: <the value>}}",
        )


def is_same(value: object, expected: object) -> bool:
    """Return True if a setting has the value that it had at tracing."""
    return value is expected or (
        not isinstance(value, torch.Tensor) and type(value) is type(expected) and bool(value == expected)
    )


@fx.wrap
def counted(values: Sized, expected: int | tuple[str, ...], name: str) -> None:
    """Raise when a forward gets other variable arguments than it was traced with.

    Args:
        values: the variable arguments of this call.
        expected: how many there were, or the names of those by keyword.
        name: name of the parameter.

    Raises:
        SpecialisedError: there are more, fewer or others.
    """
    if not are_counted(values, expected):
        raise SpecialisedError(
            f"this forward was traced with {expected or 0} of {name!r}",
            found=", ".join(values) if isinstance(values, dict) else f"{len(values)} of them",
            write="the edit with example=<all the arguments>",
        )


def are_counted(values: Sized, expected: int | tuple[str, ...]) -> bool:
    """Return True if variable arguments are as many, or have the same names, as at tracing."""
    if isinstance(expected, int):
        return len(values) == expected
    return isinstance(values, dict) and values.keys() == set(expected)


@fx.wrap
def typed(value: object, expected: str, name: str) -> None:
    """Raise when an argument is of another kind than one that the forward was traced with.

    Args:
        value: the argument of this call.
        expected: the kind of the argument at tracing, as ``kind_name`` tells it.
        name: name of the parameter.

    Raises:
        SpecialisedError: the argument is of another kind.
    """
    if kind_name(value) != expected:
        raise SpecialisedError(
            f"this forward was traced with a {expected.rpartition('.')[2]} for {name!r}",
            found=f"{name} is a {type(value).__name__}",
            write=f"the edit with example={{..., {name!r}: <the value>}}",
        )


def kind_name(value: object) -> str:
    """Name the kind of an argument: all tensors are of one."""
    cls = torch.Tensor if isinstance(value, torch.Tensor) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


@fx.wrap
def passed_on(value: object, name: str) -> None:
    """Raise when an argument is ``None`` where the forward was traced with data.

    Raises:
        SpecialisedError: it is.
    """
    if value is None:
        raise SpecialisedError(
            f"this forward was traced with data for {name!r}",
            found=f"{name}=None",
            write=f"the edit with example=<the arguments, without {name}>",
        )


@fx.wrap
def nothing(value: object, said: str) -> None:
    """Raise when a step gives something where it gave ``None`` at tracing.

    Raises:
        SpecialisedError: it does.
    """
    if value is not None:
        raise SpecialisedError(
            f"{said}; a step that gave None then gives {type(value).__name__} now",
            found="another branch of the forward",
            write="the edit with example=<an input of this kind>",
        )


@fx.wrap
def listed(*items: object) -> list[object]:
    """Make the list that a module is called with."""
    return list(items)

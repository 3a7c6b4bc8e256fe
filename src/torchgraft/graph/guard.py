"""Guards: what a traced forward checks because a decision was taken while it was traced."""

from __future__ import annotations

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
                write="trace(model, example=<an input of this size>)",
            )
    elif value != expected:
        raise SpecialisedError(
            f"{said}; this input has another size",
            found=f"the value was {expected} and is now {value}",
            write="trace(model, example=<an input of this size>)",
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
    same = value is expected or (
        not isinstance(value, torch.Tensor) and type(value) is type(expected) and value == expected
    )
    if not same:
        raise SpecialisedError(
            f"this forward was traced with {name}={expected!r}",
            found=f"{name} is a {type(value).__name__}",
            write=f"trace(model, example={{..., {name!r}: <the value>}})",
        )

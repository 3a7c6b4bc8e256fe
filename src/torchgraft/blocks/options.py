"""What options may be: each kind of value says its rule, and checks it."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import attrs

from torchgraft.errors import OptionError
from torchgraft.text import literal, near


@attrs.frozen
class Rule:
    """Say what a value must be.

    Args:
        says: the rule in words: ``a positive integer``.
        holds: tells whether a value follows it.
        right: gives a value that does, near to one that does not; ``None`` for the default.
    """

    says: str
    holds: Callable[[object], bool]
    right: Callable[[object], object] | None = None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


Positive = Annotated[int, Rule("a positive integer", lambda v: _whole(v) and v > 0)]
Odd = Annotated[
    int,
    Rule(
        "odd",
        lambda v: _whole(v) and v > 0 and v % 2 == 1,
        lambda v: v + 1 if _whole(v) and v > 0 else None,
    ),
]
Probability = Annotated[
    float,
    Rule("a probability below 1", lambda v: _number(v) and 0 <= v < 1),
]
Above = Annotated[float, Rule("a number above 0", lambda v: _number(v) and v > 0)]
Real = Annotated[float, Rule("a number", _number)]
_FLAG = Rule("True or False", lambda v: isinstance(v, bool), bool)


def rules_of(function: Callable[..., object]) -> dict[str, tuple[Rule, ...]]:
    """Read the rules of a function's options off its annotations; any of them may hold."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: tuple(_rules(hint)) for name, hint in hints.items() if name != "return"}


def check_options(
    rules: Mapping[str, tuple[Rule, ...]],
    options: Mapping[str, object],
    defaults: Mapping[str, object],
    write: Callable[[Mapping[str, object]], str],
) -> None:
    """Check options by their rules.

    Args:
        rules: of each option.
        options: the values.
        defaults: values that are right.
        write: writes the call with some options.

    Raises:
        OptionError: a value breaks its rule.
    """
    for name, value in options.items():
        held = rules.get(name, ())
        if not held or any(rule.holds(value) for rule in held):
            continue
        right = held[0].right(value) if held[0].right else None
        right = defaults.get(name) if right is None else right
        fixed = {**options, name: right}
        raise OptionError(
            f"{name} must be {' or '.join(rule.says for rule in held)}",
            asked=write(options),
            found=f"{name}={literal(value)}",
            write=write(fixed) if right is not None else "",
        )


def _rules(hint: object) -> list[Rule]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return [item for item in typing.get_args(hint) if isinstance(item, Rule)]
    if origin in (typing.Union, types.UnionType):
        return [rule for part in typing.get_args(hint) for rule in _rules(part)]
    if origin is Literal:
        words = [word for word in typing.get_args(hint) if isinstance(word, str)]
        choice = " or ".join(map(literal, words))
        return [Rule(choice, lambda v: v in words, lambda v: (near(str(v), words) or (None,))[0])]
    if hint is type(None):
        return [Rule("None", lambda v: v is None)]
    return [_FLAG] if hint is bool else []

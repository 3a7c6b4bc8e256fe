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
        calls_for: gives the options that would have to be otherwise for a value that does.
    """

    says: str
    holds: Callable[[object], bool]
    right: Callable[[object], object] | None = None
    calls_for: Callable[[object, Mapping[str, object]], Mapping[str, object]] = lambda value, options: {}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positions(value: object) -> tuple[int, ...]:
    """Put what may be positions in order."""
    held = value if isinstance(value, (tuple, list, set, frozenset, range)) else (value,)
    return tuple(sorted({item for item in held if _whole(item) and item >= 0}))


def _fused(parts: object, options: Mapping[str, object]) -> dict[str, object]:
    """Return the smallest number of parts that would have these positions, where it has not."""
    fused, last = options.get("fused"), _positions(parts)[-1]
    return {} if isinstance(fused, int) and last < fused else {"fused": last + 1}


Positive = Annotated[int, Rule("a positive integer", lambda v: _whole(v) and v > 0)]
Few = Annotated[
    int,
    Rule(
        "an integer from 1 to 1,000",  # each of them is made, and text from anywhere may ask for it
        lambda v: _whole(v) and 0 < v <= 1_000,
        lambda v: 1_000 if _whole(v) and v > 0 else None,
    ),
]
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
Start = Annotated[
    float,
    Rule(
        "a number above 0 with neutral=False",
        lambda v: _number(v) and v > 0,
        calls_for=lambda v, options: {"neutral": False} if options.get("neutral") else {},
    ),
]
"""What something starts at that is not neutral."""
Real = Annotated[float, Rule("a number", _number)]
Parts = Annotated[
    tuple[int, ...],
    Rule(
        "a tuple of positions in order, each from 0 to fused - 1,",
        lambda v: isinstance(v, tuple) and bool(v) and v == _positions(v),
        lambda v: _positions(v) or None,
        _fused,
    ),
]
"""Some of the equal parts, ``fused`` of them, that a layer's output consists of."""
_PLAIN = (
    (bool, Rule("True or False", lambda v: isinstance(v, bool), bool)),
    (int, Rule("an integer", _whole)),
    (float, Rule("a number", _number)),
    (str, Rule("a text", lambda v: isinstance(v, str))),
    (type(None), Rule("None", lambda v: v is None)),
)


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
        follows = [rule for rule in held if rule.holds(value)]
        changes = follows[0].calls_for(value, options) if follows else {}
        if not held or (follows and not changes):
            continue
        right = held[0].right(value) if held[0].right else None
        right = defaults.get(name) if right is None else right
        if not changes and (right is not None or name in defaults):
            changes = {name: right, **(held[0].calls_for(right, options) if held[0].holds(right) else {})}
        raise OptionError(
            f"{name} must be {' or '.join(rule.says for rule in held)}",
            asked=write(options),
            found=", ".join(f"{key}={literal(options[key])}" for key in {name: value, **changes}),
            write=write({**options, **changes}) if changes else f"{name}=<{held[0].says}>",
        )


def _rules(hint: object) -> list[Rule]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return [item for item in typing.get_args(hint) if isinstance(item, Rule)]
    if origin in (typing.Union, types.UnionType):
        parts = [_rules(part) for part in typing.get_args(hint)]
        return [rule for part in parts for rule in part] if all(parts) else []
    if origin is Literal:
        words = [word for word in typing.get_args(hint) if isinstance(word, str)]
        choice = " or ".join(map(literal, words))
        return [Rule(choice, lambda v: v in words, lambda v: (near(str(v), words) or (None,))[0])]
    return [rule for kind, rule in _PLAIN if hint is kind]

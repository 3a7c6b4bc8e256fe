"""Words for people: near names, plurals, calls as they are written, checked keywords."""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import attrs
import torch

from torchgraft.errors import GraftError, OptionError
from torchgraft.paths import last_of

_HOMES = {torch.nn.functional: "F", torch: "torch", torch.Tensor: "torch.Tensor", operator: "operator"}
_LONGEST = 300
"""Letters of an argument in a message; a state dict has hundreds of thousands."""
P = ParamSpec("P")
R = TypeVar("R")


def near(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return at most three of the names that resemble the one given, best first.

    A name in other letters, one that ends alike, and one that is a word of it come first.
    """
    held = list(dict.fromkeys(names))
    last, words = last_of(name), f"_{name.lower()}_"
    kin = [
        one
        for one in held
        if one.lower() == name.lower()
        or (last_of(one) == last and not last.isdecimal())
        or (len(one) > 1 and f"_{one.lower()}_" in words)
    ]
    kin.sort(key=lambda one: difflib.SequenceMatcher(None, one, name).ratio(), reverse=True)
    close = difflib.get_close_matches(name, held, n=3, cutoff=0.55)
    return tuple(dict.fromkeys((*kin, *close)))[:3]


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: ``1 module``, ``2 modules``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def some(items: Sequence[str], most: int = 4) -> str:
    """Write the first of some items, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


@runtime_checkable
class Written(Protocol):
    """A value that is written shorter inside a call than on its own."""

    def written(self) -> str:
        """Write the value as an argument."""


def write_dims(shape: Iterable[int]) -> str:
    """Write a shape: ``1 3 224 224``."""
    return " ".join(map(str, shape)) or "scalar"


def write_error(error: BaseException) -> str:
    """Write an error that is not ours in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def literal(value: object) -> str:
    """Write a value as source code, classes and functions by their public names."""
    if isinstance(value, (str, PurePath)):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, Written) and callable(value.written):
        return value.written()
    if isinstance(value, type):
        return class_name(value)
    if isinstance(value, (tuple, list, Mapping)):
        items = list(value.values()) if isinstance(value, Mapping) else value
        if any(isinstance(item, torch.Tensor) for item in items):
            return f"<{plural(len(items), 'tensor')}>"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(literal(item) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if inspect.isroutine(value):
        return function_name(value)
    if hasattr(value, "named_parameters") or isinstance(value, torch.Tensor):
        return f"<a {type(value).__name__}>"
    return f"<{kind(value)}>" if type(value).__repr__ is object.__repr__ else repr(value)


def shown(value: object) -> str:
    """Write a value for a message: as source code, on one line, and cut where it is long."""
    said = " ".join(literal(value).split())
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 20]} ... {said[-12:]}"


def kind(value: object) -> str:
    """Write what a value is, with its article: ``an int``."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def class_name(cls: type) -> str:
    """Write a class as users do: ``nn.Conv2d``, ``package.module.Class``."""
    if cls.__module__.startswith("torch.nn.modules"):
        return f"nn.{cls.__qualname__}"
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def function_name(function: Callable[..., object]) -> str:
    """Write a function by its import path; a lambda by the place where it stands."""
    short = getattr(function, "__name__", "")
    for home, said in _HOMES.items():
        if short and getattr(home, short, None) is function:
            return f"{said}.{short}"
    name = getattr(function, "__qualname__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if "<" in name and code is not None:
        return (
            f"<{name.rpartition('.')[2].strip('<>')} at {code.co_filename.strip('<>')}:{code.co_firstlineno}>"
        )
    module = getattr(function, "__module__", None) or "?"
    return name if module.startswith("torchgraft.") else f"{module}.{name}"


def call(name: str, value: attrs.AttrsInstance) -> str:
    """Write a frozen value as the call that made it, without the defaults."""
    words = []
    for field in attrs.fields(type(value)):
        if not field.repr:
            continue
        held = getattr(value, field.name)
        if held == field.default:
            continue
        words.append(f"{field.alias}={literal(held)}" if field.kw_only else literal(held))
    return f"{name}({', '.join(words)})"


def wrong(
    summary: str, value: object, right: str = "", *, name: str = "", known: Iterable[str] = ()
) -> OptionError:
    """Make the error for one argument; ``spelled`` makes it one about the call.

    Args:
        summary: one sentence with the rule.
        value: what was given.
        right: what to write in its place.
        name: its keyword, if it has one.
        known: the texts of which it has to be one.
    """
    close = near(value, known) if isinstance(value, str) else ()
    word = f"{name}=" * bool(name)
    write = word + (right or literal((*close, *known)[0]))
    return OptionError(
        summary, asked="" if name else shown(value), found=word + shown(value), near=close, write=write
    )


def check_flags(**flags: object) -> None:
    """Check that options are ``True`` or ``False``.

    Raises:
        OptionError: one of them is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise wrong(f"{name} is True or False", value, str(bool(value)), name=name)


def spelled(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a misspelt or missing argument into an error with the nearest right name.

    An error about one argument becomes one about the whole call.
    """
    return _spelled(function, function.__name__, 0)


def spelled_class(cls: type[R]) -> type[R]:
    """Turn a misspelt or missing field of a class into such an error."""
    setattr(cls, "__init__", _spelled(cls.__init__, cls.__name__, 1))  # noqa: B010 - mypy knows a method there
    return cls


def _spelled(function: Callable[P, R], name: str, own: int) -> Callable[P, R]:
    from torchgraft.calls import call_text, misspelt, tell  # noqa: PLC0415 - which is written with this file

    whole = inspect.signature(function)
    signature = whole.replace(parameters=list(whole.parameters.values())[own:])

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args[own:], **kwargs)
        except TypeError as error:
            raise misspelt(name, signature, args[own:], kwargs, str(error)) from None
        try:
            return function(*args, **kwargs)
        except GraftError as error:
            tell(error, call_text(name, map(shown, args[own:]), kwargs), signature.parameters)
            raise

    return checked


def signature_text(signature: inspect.Signature) -> str:
    """Write the parameters of a function without their annotations."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def columns(rows: Iterable[tuple[str, ...]]) -> str:
    """Write rows as columns of equal width, two spaces between them."""
    held = list(rows)
    widths = [max(map(len, column)) for column in zip(*held, strict=True)] if held else []
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in held
    )

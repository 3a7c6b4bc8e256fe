"""Words for people: near names, plurals, calls as they are written, checked keywords."""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import json
import operator
from collections.abc import Callable, Iterable
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import attrs
import torch

from torchgraft.errors import OptionError

_HOMES = {torch.nn.functional: "F", torch: "torch", torch.Tensor: "torch.Tensor", operator: "operator"}
P = ParamSpec("P")
R = TypeVar("R")


def near(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return at most three of the names that resemble the one given, best first."""
    return tuple(difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.55))


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: ``1 module``, ``2 modules``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@runtime_checkable
class Written(Protocol):
    """A value that is written shorter inside a call than on its own."""

    def written(self) -> str:
        """Write the value as an argument."""


def literal(value: object) -> str:
    """Write a value as source code, classes and functions by their public names."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Written):
        return value.written()
    if isinstance(value, type):
        return class_name(value)
    if isinstance(value, tuple):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if inspect.isroutine(value):
        return function_name(value)
    if hasattr(value, "named_parameters"):
        return f"<a {type(value).__name__}>"
    return repr(value)


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
        return f"<{name.rpartition('.')[2].strip('<>')} at {code.co_filename}:{code.co_firstlineno}>"
    module = getattr(function, "__module__", None) or "?"
    return name if module.startswith("torchgraft.") else f"{module}.{name}"


def call(name: str, value: attrs.AttrsInstance) -> str:
    """Write a frozen value as the call that made it, without the defaults."""
    words = []
    for field in attrs.fields(type(value)):
        if not field.repr:
            continue
        held = getattr(value, field.name)
        if field.kw_only:
            if held != field.default:
                words.append(f"{field.alias}={literal(held)}")
        else:
            words.append(literal(held))
    return f"{name}({', '.join(words)})"


def check_flags(made: object, **flags: object) -> None:
    """Check that options are ``True`` or ``False``.

    Raises:
        OptionError: one of them is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise OptionError(
                f"{name} is True or False",
                asked=repr(made),
                found=f"{name}={literal(value)}",
                write=f"{name}={bool(value)}",
            )


def spelled(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a misspelt or missing argument into an error with the nearest right name."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            words = [literal(a) for a in args] + [f"{k}={literal(v)}" for k, v in kwargs.items()]
            known = [p.name for p in signature.parameters.values() if p.kind != p.POSITIONAL_ONLY]
            unknown = [name for name in kwargs if name not in signature.parameters]
            close = near(unknown[0], known) if unknown else ()
            fixed = [w.replace(f"{unknown[0]}=", f"{close[0]}=", 1) for w in words] if close else []
            if len(words) == 1 and known and not fixed:  # the one value given under no name or a wrong one
                positional = (
                    next(iter(signature.parameters.values())).kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
                )
                value = words[0].partition("=")[2] if kwargs else words[0]
                fixed = [value if positional else f"{known[0]}={value}"]
            name = function.__name__
            raise OptionError(
                f"{name}: {error}",
                asked=f"{name}({', '.join(words)})",
                found=f"{name}{signature_text(signature)}",
                near=close,
                write=f"{name}({', '.join(fixed)})" if fixed else "",
            ) from None
        return function(*args, **kwargs)

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

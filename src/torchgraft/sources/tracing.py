"""Follow the keyword options of a builder to where they are taken."""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType, FunctionType

import attrs
from torch import nn

from torchgraft.sources.skeleton import skeleton

_MARK = "__an_option_that_nothing_takes__"
_REFUSED = re.compile(r"([\w.<>]+)\(\) got an unexpected keyword argument '" + _MARK)


@attrs.frozen(eq=False)
class _Call:
    """A call of a Python function that was handed the mark.

    Args:
        code: of the function.
        where: the names of its module.
        rest: the variable that takes all other keywords.
    """

    code: CodeType
    where: Mapping[str, object]
    rest: str


def followed(builder: Callable[..., nn.Module], ours: Mapping[str, object]) -> inspect.Signature:
    """Return what a builder takes by keyword, what it hands on to others included.

    A builder that takes any keyword is called once, on the meta device, with one that nothing
    takes; whoever is handed that keyword would be handed every other, too. What some of them
    set themselves is among the options, as that cannot be told from a default of theirs.

    Args:
        builder: returns a model.
        ours: arguments of the builder that are no options.

    Returns:
        The options by name.
    """
    own = inspect.signature(builder).parameters.values()
    taken = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD}
    if len(taken) < len(own):
        given = {key: value for key, value in ours.items() if key in taken}
        for parameter in _handed_on(lambda: builder(**given, **{_MARK: None})):
            taken.setdefault(parameter.name, parameter)
    named = [p for key, p in taken.items() if key not in ours and not key.startswith("_")]
    return inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in named])


def _handed_on(build: Callable[[], nn.Module]) -> Iterator[inspect.Parameter]:
    calls, error = _watched(build)
    for call in calls:
        yield from _with_defaults(_function(call.code, call.where))
        yield from _picked(call)
    if isinstance(error, TypeError):
        yield from _of_refusing(error)


def _watched(build: Callable[[], nn.Module]) -> tuple[list[_Call], Exception | None]:
    """Build without memory; return the calls that were handed the mark, and what stopped it."""
    calls: list[_Call] = []

    def watch(frame: FrameType, event: str, _: object) -> None:  # pragma: no cover - nor is it seen there
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_VARKEYWORDS:
            named = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
            rest = code.co_varnames[named]
            if _MARK in frame.f_locals.get(rest, ()):
                calls.append(_Call(code, frame.f_globals, rest))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        skeleton(build)
    except Exception as error:  # noqa: BLE001 - whatever stopped it, the options were handed on
        return calls, error
    finally:
        sys.setprofile(before)
    return calls, None


def _with_defaults(function: FunctionType | None) -> list[inspect.Parameter]:
    """Return the parameters that need not be given; the others are given by whoever calls it."""
    known = inspect.signature(function).parameters.values() if function else ()
    return [p for p in known if p.default is not p.empty]


def _function(code: CodeType, where: Mapping[str, object]) -> FunctionType | None:
    """Find the function that a code belongs to by its name."""
    first, *others = code.co_qualname.split(".")
    found = where.get(first)
    for name in others:
        found = getattr(found, name, None)
    found = inspect.unwrap(found) if callable(found) else found
    return found if isinstance(found, FunctionType) and found.__code__ is code else None


def _picked(call: _Call) -> Iterator[inspect.Parameter]:
    """Find the keywords that a function takes out by hand: ``kwargs.pop("image_size", 224)``."""
    steps = list(dis.get_instructions(call.code))
    for held, method, key in zip(steps, steps[1:], steps[2:]):
        if held.argval == call.rest and method.argval in ("pop", "get") and key.opname == "LOAD_CONST":
            yield inspect.Parameter(key.argval, inspect.Parameter.KEYWORD_ONLY, default=...)


def _of_refusing(error: TypeError) -> list[inspect.Parameter]:
    """Return the parameters with defaults of the function that refused the mark."""
    said = _REFUSED.search(str(error))
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if said is None or trace is None:
        return []
    frame = trace.tb_frame
    for value in (*frame.f_locals.values(), *frame.f_globals.values()):
        held = value.func if isinstance(value, functools.partial) else value
        classes = inspect.getmro(held if isinstance(held, type) else type(held))
        for function in (held, *(vars(cls).get("__init__") for cls in classes)):
            if isinstance(function, FunctionType) and function.__qualname__ == said[1]:
                return _with_defaults(function)
    return []

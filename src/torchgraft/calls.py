"""Calls as they are written: the one that was meant, and errors about a part told as about the whole."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection, Iterable, Mapping

from torchgraft.errors import GraftError, OptionError, TargetError
from torchgraft.text import literal, near, shown, signature_text

ALSO = {
    "pretrained": "weights",
    **dict.fromkeys(("in_chans", "in_channels", "num_channels"), "in_channels"),
    **dict.fromkeys(("num_classes", "num_labels"), "num_classes"),
}
"""What other libraries call an argument."""
_LONGEST = 1_500
"""Letters of a call in a message; text from anywhere may have thousands of arguments."""


def call_text(name: str, given: Iterable[str], options: Mapping[str, object]) -> str:
    """Write a call from the words of its arguments, and from its options."""
    said = f"{name}({', '.join([*given, *(f'{key}={shown(value)}' for key, value in options.items())])})"
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 5]} ...)"


def misspelt(
    name: str, signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object], said: str
) -> OptionError:
    """Say what is wrong with the arguments of a call, and write the one that was meant."""
    unknown = next((key for key in kwargs if key not in signature.parameters), "")
    free = [key for key in _taken(signature) if key not in kwargs] if unknown else []
    close = near(ALSO.get(unknown, unknown), free)
    return OptionError(
        f"{name}: {said}",
        asked=call_text(name, map(shown, args), kwargs),
        found=f"{name}{signature_text(signature)}",
        near=close,
        write=_meant(name, signature, args, kwargs, unknown, close),
    )


def _taken(signature: inspect.Signature) -> list[str]:
    """Name the parameters that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in signature.parameters.values() if p.kind in kinds]


def _meant(
    name: str,
    signature: inspect.Signature,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    unknown: str,
    close: tuple[str, ...],
) -> str:
    """Write the call that was most likely meant; empty where nothing tells."""
    parameters = signature.parameters
    places = [key for key in _taken(signature) if parameters[key].kind.value == 1]
    given, options = list(map(shown, args)), dict(kwargs)
    lacking = [key for key in _taken(signature) if parameters[key].default is inspect.Parameter.empty]
    lacking = [key for key in lacking if key not in kwargs and key not in places[: len(args)]]
    more, targets = args[len(places) :], args[: len(args) - len(places) + 1]
    if places == ["mapping"] and (len(args) == 2 or (kwargs and not args)):
        return call_text(name, [literal({args[0]: args[1]} if args else kwargs)], {})
    if close:
        options = {close[0] if key == unknown else key: value for key, value in kwargs.items()}
        if unknown == "pretrained":
            options[close[0]] = True if kwargs[unknown] else None
        lacking = [key for key in lacking if key != close[0]]
    elif unknown in ("example", "seed"):  # for the whole of what is done to a model
        del options[unknown]
        return call_text("pipe", ("<a model>", call_text(name, given, options)), {unknown: kwargs[unknown]})
    elif unknown and lacking:  # a value under a wrong name
        key, *lacking = lacking
        given += [shown(kwargs[unknown])] if key in places else []
        options = {**options, key: kwargs[unknown]} if key not in places else options
        del options[unknown]
    elif unknown:
        return ""
    elif len(args) == 1 and isinstance(args[0], Mapping) and len(lacking) == 1:
        return " >> ".join(call_text(name, map(shown, pair), kwargs) for pair in args[0].items())
    elif more and places[:1] == ["target"] and all(isinstance(one, (str, type)) for one in targets):
        given = [" | ".join([f"at({given[0]})", *given[1 : len(targets)]]), *given[len(targets) :]]
    elif more:
        free = [key for key in _taken(signature) if key not in places and key not in kwargs]
        flags = [isinstance(parameters[key].default, bool) for key in free]
        taken = {k: bool(v) if flag else v for k, v, flag in zip(free, more, flags, strict=False)}
        given, options = given[: len(places)], {**taken, **kwargs}
    words = [f"<{key}>" if key in places else f"{key}=<{key}>" for key in lacking]
    whole = call_text(name, [*given, *(word for word in words if word[0] == "<")], options)
    return "".join([whole[:-1], *(f", {word}" for word in words if word[0] != "<"), ")"])


def tell(error: GraftError, asked: str, takes: Collection[str] | None = None) -> None:
    """Tell an error in the words of a call: what was asked, and the same call with what to write in it.

    Args:
        error: what it says of a part of the call, it says of the call from now on.
        asked: the call as written.
        takes: the keywords that it has; any of them where they are not known.
    """
    part, (old, new) = error.asked, error.swap
    same = part.partition("(")[0] == asked.partition("(")[0] and "..." not in part
    asked = part if part and same else asked
    place = _place(part, asked) if part != asked else None
    if error.step or (part and not place and not same and part.partition("(")[0] != asked.partition("(")[0]):
        return  # about the step, or another call, that was written
    if isinstance(error, TargetError) and error.wrong and error.near and not (old or error.write):
        old, new = literal(error.wrong), literal(error.near[0])
    keyword = re.match(r"\w+=(?!=)", error.write)
    if keyword and _is_code(f"f({error.write})"):
        old, new = "", error.write
    if old and _place(old, asked):
        error.write = _exchanged(old, new, asked)
    elif new and not old:
        fits = takes is None or new.partition("=")[0] in takes
        error.write = _amended(asked, new) if fits else error.write
    elif old:
        error.write = error.write or new
    elif place and _is_code(f"f({error.write})"):
        error.write = _exchanged(part, error.write, asked)
    error.asked, error.swap = asked, (old, new)
    if error.write == asked:
        error.write = literal(error.near[0]) if error.near else ""


def _place(part: str, whole: str) -> re.Match[str] | None:
    """Find a part of a call that is no piece of a word."""
    before, after = r"(?<![\w\".])" * (part[:1].isalnum() or part[:1] in '"_'), r"(?![\w\"])"
    return re.search(f"{before}{re.escape(part)}{after}", whole) if part else None


def _exchanged(old: str, new: str, whole: str) -> str:
    found = _place(old, whole)
    return whole[: found.start()] + new + whole[found.end() :] if found else whole


def _is_code(text: str) -> bool:
    """Return True if a text with places to fill in is an expression, and no advice in words."""
    try:
        ast.parse(re.sub(r"<[^<>]*>", "_", text), mode="eval")
    except SyntaxError:
        return False
    return True


def _amended(asked: str, word: str) -> str:
    """Put a keyword into a call, in the place of the one of that name."""
    if not asked.endswith(")"):
        return word
    name = word.partition("=")[0]
    given = re.search(rf"(?<=[( ]){name}=.*?(?=, \w+=|\)$)", asked)
    if given is None:
        return f"{asked[:-1]}{'' if asked.endswith('()') else ', '}{word})"
    return asked[: given.start()] + word + asked[given.end() :]

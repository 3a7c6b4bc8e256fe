"""YAML as recipes use it: read with the line of every value, in bounds; written one step a line.

Anchors, tags, merge keys and several documents are no part of it, and neither are plain words
that YAML 1.1 and 1.2 read differently (``no``, ``0o17``, ``1e5``): those have to be quoted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

import yaml

from torchgraft.recipe.entry import DEEPEST, MOST_VALUES, Entry, NotRead, Scalar, check_whole, number
from torchgraft.recipe.problem import Place

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_OTHER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")
_STR = "tag:yaml.org,2002:str"
_PLAIN = re.compile(r"[A-Za-z_~(./][^\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]*")
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_RESOLVER = yaml.resolver.Resolver()


def read_yaml(text: str, file: str = "") -> Entry:
    """Read a document.

    Args:
        text: the document.
        file: its path, for the places.

    Returns:
        What it holds.

    Raises:
        NotRead: it is no YAML, or more than a recipe may use.

    Example:
        >>> read_yaml("a: 1").value["a"].place.line
        1
    """
    try:
        return _Builder(file, yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        said = ", ".join(word for word in (error.context, error.problem) if word)
        raise NotRead(
            line, "it is no YAML", f"column {column}: {said}"[:200], _as_step(text, line)
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotRead(line, "it is no YAML", f"a character of code {error.character:#x}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # such as an escape that is no character
        raise NotRead(0, "it is no YAML", str(error)[:200]) from error


def _as_step(text: str, line: int) -> str:
    """Write the line as it has to be, where it is a step that holds a colon."""
    lines = text.split("\n", line)[:line]
    step = re.fullmatch(r"\s*- (\w+\(.*: .*)", lines[-1]) if lines else None
    return f"- {_quoted(step[1].strip()[:400])}" if step else ""


class _Builder:
    """Make entries of events, as far as they stay in bounds."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events
        self._left = MOST_VALUES

    def document(self) -> Entry:
        """Take the one document there is."""
        made: Entry | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if made is not None:
                    raise NotRead(
                        event.start_mark.line + 1, "it is more than one document", write="one file each"
                    )
                made = self._entry(next(self._events), 0)
        return made or Entry(None, Place(self._file, 1))

    def _entry(self, event: yaml.Event, depth: int) -> Entry:
        line = event.start_mark.line + 1
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            found = f"more than {MOST_VALUES:,} values" if self._left < 0 else f"more than {DEEPEST} levels"
            raise NotRead(line, "it is larger than any recipe", found)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise NotRead(line, "a recipe has no anchors and no aliases", write="vars: and ${name}")
        if event.tag is not None:
            raise NotRead(line, "a recipe has no tags", found=event.tag[:80], write="the value alone")
        place = Place(self._file, line)
        if isinstance(event, yaml.ScalarEvent):
            return Entry(_scalar(event.value, plain=event.style is None, line=line), place)
        if isinstance(event, yaml.SequenceStartEvent):
            return Entry([self._entry(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)], place)
        held: dict[str, Entry] = {}
        for key in self._until(yaml.MappingEndEvent):
            name, at = self._entry(key, depth + 1), key.start_mark.line + 1
            if not isinstance(name.value, str):
                raise NotRead(at, "the name of a value is text", name.words())
            if name.value in held:
                raise NotRead(
                    at, f"{name.value[:80]!r} stands twice", f"first on line {held[name.value].place.line}"
                )
            held[name.value] = Entry(self._entry(next(self._events), depth + 1).value, name.place)
        return Entry(held, place)

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event


def _scalar(text: str, *, plain: bool, line: int) -> Scalar:
    check_whole(text, line)
    if not plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    for pattern, made in ((_INT, int), (_FLOAT, float)):
        if pattern.fullmatch(text):
            return number(made(text), line) if len(text) < 40 else number(math.inf, line)
    if not _is_text(text):
        raise NotRead(
            line,
            f"{text[:80]!r} is read in different ways",
            "YAML 1.1 and YAML 1.2 do not agree on it",
            f"{json.dumps(text[:80], ensure_ascii=False)}, or true, false, or a number such as 1.0e-5",
        )
    return text


def _is_text(text: str) -> bool:
    """Tell whether a plain word is text by YAML 1.1, as PyYAML has it, and by YAML 1.2."""
    if any(pattern.fullmatch(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT, _OTHER)):
        return False
    return _RESOLVER.resolve(yaml.ScalarNode, text[:400], (True, False)) == _STR  # type: ignore[no-any-return]  # no stubs


def write_yaml(plain: Mapping[str, object]) -> str:
    """Write plain data: each name on its line, and each item of a list of text.

    Example:
        >>> print(write_yaml({"base": "x", "steps": ['freeze("a")'], "example": [1, 3]}), end="")
        base: x
        steps:
          - freeze("a")
        example: [1, 3]
    """
    lines = []
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{name}:", *(f"  {_word(key)}: {_flow(item)}" for key, item in value.items())]
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines += [f"{name}:", *(f"  - {_word(item)}" for item in value)]
        else:
            lines.append(f"{name}: {_flow(value)}")
    return "\n".join([*lines, ""])


def _flow(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_quoted(v) if isinstance(v, str) else _flow(v) for v in value)}]"
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, float):
        digits, e, power = repr(value).partition("e")
        return repr(value) if not e else f"{digits}{'' if '.' in digits else '.0'}e{int(power):+d}"
    return json.dumps(value)


def _word(text: str) -> str:
    """Write text as it is where every reader takes it for that (some read ``y`` as a flag), else quoted."""
    apart = re.search(r": |:$| #|\s$", text) or text in ("y", "Y", "n", "N")
    return text if _PLAIN.fullmatch(text) and not apart and _is_text(text) else _quoted(text)


def _quoted(text: str) -> str:
    if not _UNPRINTED.search(text):
        return "'" + text.replace("'", "''") + "'"
    said = json.dumps(text, ensure_ascii=False)
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", said)

"""An alignment as JSON: one line an entry, to be read and edited by people.

A part is the name of a tensor, or an object with ``key`` and what is done to it, or
``{"zeros": [64]}``. An entry takes ``from`` one part, or is the ``concat`` of several.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torchgraft.alignment.entry import Ambiguity, Entry, Mismatch, Part, Shape
from torchgraft.alignment.files.strict_json import Reader, decoded
from torchgraft.errors import AlignmentError

_VERSION = 1
_NAME = "torchgraft_alignment"
_SECTIONS = ("source", "target", "entries", "mismatched", "ambiguous")
_READ = Reader(AlignmentError, "what Alignment.to_json() writes")

Fields = tuple[
    dict[str, Shape],
    dict[str, Shape],
    tuple[Entry, ...],
    tuple[Mismatch, ...],
    tuple[Ambiguity, ...],
]


def write(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    entries: Iterable[Entry],
    mismatched: Iterable[Mismatch],
    ambiguous: Iterable[Ambiguity],
) -> str:
    """Write an alignment."""
    sections = [
        _braced("{}", [f"{_dump(key)}: {_dump(shape)}" for key, shape in source.items()]),
        _braced("{}", [f"{_dump(key)}: {_dump(shape)}" for key, shape in target.items()]),
        _braced("[]", [_dump(_entry(entry)) for entry in entries]),
        _braced("[]", [_dump({"target": m.target, "source": m.source}) for m in mismatched]),
        _braced("[]", [_dump({"target": a.target, "candidates": a.candidates}) for a in ambiguous]),
    ]
    lines = [f'"{_NAME}": {_VERSION}', *(f'"{n}": {s}' for n, s in zip(_SECTIONS, sections, strict=True))]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(text: str) -> Fields:
    """Read an alignment; its parts are checked to be of the right form, not to fit.

    Raises:
        AlignmentError: the text is no alignment, or of another version.
    """
    try:
        data = decoded(text)
    except (TypeError, ValueError) as error:
        raise AlignmentError(
            "the text is no JSON", found=str(error), write="what Alignment.to_json() writes"
        ) from error
    if not isinstance(data, dict) or _NAME not in data:
        raise _READ.wrong("an alignment", f"an object that begins with {_NAME!r}", data)
    if type(data[_NAME]) is not int or data[_NAME] != _VERSION:
        raise _READ.wrong(_NAME, f"version {_VERSION}", data[_NAME])
    held = _READ.mapping(data, "an alignment", (_NAME, *_SECTIONS), ("source", "target", "entries"))
    source, target = _shapes(held["source"], "source"), _shapes(held["target"], "target")
    return (
        source,
        target,
        tuple(_read_entry(item) for item in _READ.items(held["entries"], "entries")),
        tuple(
            _read_mismatch(item, source, target)
            for item in _READ.items(held.get("mismatched", []), "mismatched")
        ),
        tuple(_read_ambiguity(item) for item in _READ.items(held.get("ambiguous", []), "ambiguous")),
    )


def _entry(entry: Entry) -> dict[str, object]:
    parts = [_part(part) for part in entry.parts]
    line: dict[str, object] = {"target": entry.target}
    line |= {"from": parts[0]} if len(parts) == 1 else {"concat": parts}
    line |= {name: held for name in ("view", "axes") if (held := getattr(entry, name))}
    return line | {"rule": entry.rule, "evidence": entry.evidence}


def _part(part: Part) -> object:
    if not part.key:
        return {"zeros": part.view}
    done = {name: held for name in ("view", "axes", "rows") if (held := getattr(part, name))}
    return {"key": part.key, **done} if done else part.key


def _read_entry(item: object) -> Entry:
    known = ("target", "from", "concat", "view", "axes", "rule", "evidence")
    held = _READ.mapping(item, "an entry", known, ("target",))
    target = _READ.text(held["target"], "the target of an entry")
    where = f"the entry for {target!r}"
    if ("from" in held) == ("concat" in held):
        raise _READ.wrong(where, 'an object with either "from" or "concat"', ", ".join(held))
    parts = [held["from"]] if "from" in held else _READ.items(held["concat"], f"concat of {where}")
    return Entry(
        target,
        tuple(_read_part(part, where) for part in parts),
        _READ.numbers(held.get("view", []), f"view of {where}"),
        _READ.numbers(held.get("axes", []), f"axes of {where}"),
        _READ.text(held.get("rule", ""), f"rule of {where}"),
        _READ.text(held.get("evidence", ""), f"evidence of {where}"),
    )


def _read_part(item: object, where: str) -> Part:
    if isinstance(item, str):
        item = {"key": item}
    if isinstance(item, dict) and "zeros" in item:
        held = _READ.mapping(item, f"zeros of {where}", ("zeros",))
        return Part("", _READ.numbers(held["zeros"], f"zeros of {where}"))
    held = _READ.mapping(item, f"a part of {where}", ("key", "view", "axes", "rows"), ("key",))
    key = _READ.text(held["key"], f"the key of a part of {where}")
    rows = _READ.numbers(held["rows"], f"rows of {where}") if "rows" in held else None
    if not key or (rows is not None and len(rows) != 2):
        raise _READ.wrong(f"a part of {where}", "a name, with rows as [first, after the last]", item)
    view = _READ.numbers(held.get("view", []), f"view of {where}")
    return Part(key, view, _READ.numbers(held.get("axes", []), f"axes of {where}"), cast("None", rows))


def _read_mismatch(item: object, source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Mismatch:
    held = _READ.mapping(item, "a mismatch", ("target", "source"), ("target", "source"))
    name, key = (_READ.text(held[side], f"the {side} of a mismatch") for side in ("target", "source"))
    return Mismatch(name, key, target.get(name, ()), source.get(key, ()))


def _read_ambiguity(item: object) -> Ambiguity:
    held = _READ.mapping(item, "an ambiguity", ("target", "candidates"), ("target", "candidates"))
    names = _READ.items(held["candidates"], "the candidates of an ambiguity")
    target = _READ.text(held["target"], "the target of an ambiguity")
    return Ambiguity(target, tuple(_READ.text(name, f"a candidate for {target!r}") for name in names))


def _shapes(value: object, side: str) -> dict[str, Shape]:
    held = _READ.mapping(value, side)
    return {
        _READ.text(key, f"a name of the {side}"): _READ.numbers(shape, f"the shape of {key!r}")
        for key, shape in held.items()
    }


def _braced(brackets: str, lines: Sequence[str]) -> str:
    return (
        brackets
        if not lines
        else brackets[0] + "\n" + ",\n".join(f"  {line}" for line in lines) + "\n" + brackets[1]
    )


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

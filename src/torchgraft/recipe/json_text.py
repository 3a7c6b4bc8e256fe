"""JSON as recipes use it: read strictly, with the line of every value."""

from __future__ import annotations

import json
from collections.abc import Callable
from json import decoder, scanner

from torchgraft.recipe.entry import DEEPEST, MOST_VALUES, Entry, NotRead, check_whole, number
from torchgraft.recipe.problem import Place

Scan = Callable[[str, int], tuple[object, int]]


def read_json(text: str, file: str = "") -> Entry:
    """Read a document.

    Args:
        text: the document.
        file: its path, for the places.

    Returns:
        What it holds.

    Raises:
        NotRead: it is no JSON, has a name twice, or is larger than any recipe.

    Example:
        >>> read_json('{"a": 1}').value["a"].place.line
        1
    """
    try:
        made = _Decoder(file).decode(text)
    except json.JSONDecodeError as error:
        raise NotRead(error.lineno, "it is no JSON", f"column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
        raise NotRead(0, "it is no JSON", str(error)[:200]) from error
    return made if isinstance(made, Entry) else Entry(None)


class _Decoder(json.JSONDecoder):
    """Make entries: the decoder of the library in its Python form, asked value by value."""

    def __init__(self, file: str) -> None:
        super().__init__(object_pairs_hook=lambda pairs: pairs)
        self._place = Place(file, 1)
        self._seen = 0
        self._depth = 0
        self._left = MOST_VALUES
        self.parse_array = lambda at, _: decoder.JSONArray(at, self._entry)  # type: ignore[attr-defined]  # no stubs
        self.parse_object = lambda at, strict, _, hook, pairs, memo: decoder.JSONObject(  # type: ignore[attr-defined]  # no stubs
            at, strict, self._entry, hook, pairs, memo
        )
        self._scan: Scan = scanner.py_make_scanner(self)  # type: ignore[attr-defined]  # no stubs
        self.scan_once = self._entry

    def _entry(self, text: str, start: int) -> tuple[Entry, int]:
        place = self._at(text, start)
        self._left -= 1
        self._depth += 1
        if self._left < 0 or self._depth > DEEPEST:
            raise NotRead(place.line, "it is larger than any recipe")
        value, end = self._scan(text, start)
        self._depth -= 1
        if isinstance(value, str):
            check_whole(value, place.line)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number(value, place.line)
        elif text[start] == "{":
            value = self._named(value)
        return Entry(value, place), end  # type: ignore[arg-type]  # a scalar, a list of entries, or a mapping

    def _named(self, pairs: object) -> dict[str, Entry]:
        held: dict[str, Entry] = {}
        for name, entry in pairs:  # type: ignore[attr-defined]  # the pairs of an object
            check_whole(name, entry.place.line)
            if name in held:
                first = held[name].place.line
                raise NotRead(entry.place.line, f"{name[:80]!r} stands twice", f"first on line {first}")
            held[name] = entry
        return held

    def _at(self, text: str, start: int) -> Place:
        """Return the place of a character behind all those asked for before."""
        self._place = Place(self._place.file, self._place.line + text.count("\n", self._seen, start))
        self._seen = start
        return self._place

"""JSON of unknown origin: read it as plain data, and say what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NoReturn

from torchgraft.errors import GraftError
from torchgraft.text import kind, near


def decoded(text: str | bytes) -> object:
    """Read JSON in which no name stands twice in one object.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands twice in one object")
    return held


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


class Reader:
    """Take plain data apart, with the error that fits where it is of another form.

    Args:
        error: class of the errors.
        write: what to write instead.
    """

    def __init__(self, error: type[GraftError], write: str = "") -> None:
        self._error = error
        self._write = write

    def wrong(self, where: str, wanted: str, found: object, close: Sequence[str] = ()) -> GraftError:
        """Make the error for one place."""
        said = kind(found) if isinstance(found, (dict, list)) else repr(found)[:80]
        return self._error(f"{where} must be {wanted}", found=said, near=close, write=self._write)

    def mapping(
        self, value: object, where: str, known: Sequence[str] | None = None, needed: Sequence[str] = ()
    ) -> dict[str, object]:
        """Take an object, with no names but those known and all that are needed."""
        if not isinstance(value, dict):
            raise self.wrong(where, "an object", value)
        for name in value if known is not None else ():
            if name not in known:  # type: ignore[operator]  # it is not None here
                raise self.wrong(where, f"without {name!r}", name, near(name, known or ()))
        for name in needed:
            if name not in value:
                raise self.wrong(where, f"an object with {name!r}", ", ".join(value) or "{}")
        return value

    def items(self, value: object, where: str) -> list[object]:
        """Take a list."""
        if not isinstance(value, list):
            raise self.wrong(where, "a list", value)
        return value

    def text(self, value: object, where: str) -> str:
        """Take a string that can be written to a file."""
        if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.wrong(where, "text", value)
        return value

    def number(self, value: object, where: str) -> int:
        """Take an integer from 0."""
        if type(value) is not int or not 0 <= value < 2**63:
            raise self.wrong(
                where, "an integer from 0", value if not isinstance(value, int) else _brief(value)
            )
        return value

    def numbers(self, value: object, where: str) -> tuple[int, ...]:
        """Take a list of integers from 0."""
        return tuple(self.number(item, where) for item in self.items(value, where))


def _brief(number: int) -> object:
    return number if abs(number) < 2**63 else f"a number of {number.bit_length()} bits"

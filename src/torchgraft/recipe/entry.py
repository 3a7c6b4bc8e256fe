"""Plain data of which every value knows its place: what YAML and JSON are read into."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from torchgraft.recipe.problem import NOWHERE, Place, Problems
from torchgraft.text import near

LARGEST_FILE = 1_000_000
MOST_VALUES = 20_000
DEEPEST = 20
Scalar = str | int | float | bool | None


class NotRead(Exception):  # noqa: N818 - a signal from a reader to its caller, which notes what is wrong
    """Stop the reading of a document."""

    def __init__(self, line: int, summary: str, found: str = "", write: str = "") -> None:
        super().__init__(summary)
        self.line = line
        self.found = found
        self.write = write


@attrs.frozen
class Entry:
    """A value and its place.

    Args:
        value: a scalar, a list of entries, or entries by name.
        place: where it stands; of a value with a name, where the name stands.
    """

    value: Scalar | list[Entry] | dict[str, Entry]
    place: Place = NOWHERE

    def words(self) -> str:
        """Say what it is, for a message."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        if isinstance(self.value, str):
            return f"the text {self.value[:80]!r}"
        if self.value is None:
            return "nothing"
        return repr(self.value).lower() if isinstance(self.value, bool) else repr(self.value)

    def frozen(self) -> object:
        """Return the value without the places: tuples for lists.

        Raises:
            ValueError: there is a mapping in it.
        """
        if isinstance(self.value, dict):
            raise ValueError("a mapping")  # noqa: TRY004 - nobody called with a wrong type; a file says so
        return tuple(item.frozen() for item in self.value) if isinstance(self.value, list) else self.value


def number(value: float, line: int) -> int | float:
    """Take a number that every reader can hold.

    Raises:
        NotRead: it is none.
    """
    if not abs(value) < 2**63:  # nor NaN
        raise NotRead(line, "a number is out of range", write="a number below 2**63")
    return value


def check_whole(text: str, line: int) -> str:
    """Check that a text can be written to a file.

    Raises:
        NotRead: there is half a character in it.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise NotRead(line, "a text holds half a character", write="the character itself")
    return text


def entered(value: object, place: Place = NOWHERE, depth: int = 0) -> Entry:
    """Turn plain data into entries of one place.

    Raises:
        NotRead: it is too deep, or no plain data.
    """
    if depth > DEEPEST:
        raise NotRead(place.line, f"it is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key in value:
            check_whole(key, place.line)
        return Entry({key: entered(item, place, depth + 1) for key, item in value.items()}, place)
    if isinstance(value, (list, tuple)):
        return Entry([entered(item, place, depth + 1) for item in value], place)
    if isinstance(value, str):
        return Entry(check_whole(value, place.line), place)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Entry(number(value, place.line), place)
    if value is None or isinstance(value, bool):
        return Entry(value, place)
    raise NotRead(place.line, "it is no plain data", found=type(value).__name__)


def check_keys(
    held: Mapping[str, Entry], known: tuple[str, ...], what: str, problems: Problems
) -> dict[str, Entry]:
    """Return what stands under names that are known; the others are noted."""
    for name, item in held.items():
        if name not in known:
            close = near(name, known)
            problems.add(
                item.place,
                f"{what} has no {name[:80]!r}",
                found=f"known are {', '.join(known)}",
                near=close,
                write=f"{close[0]}: ..." if close else "",
            )
    return {name: item for name, item in held.items() if name in known}

"""Variables: ``${name}`` in a recipe stands for a value; ``$$`` for a dollar."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from torchgraft.recipe.bounds import LONGEST, excerpt
from torchgraft.recipe.entry import Entry, NotRead, Scalar, entered
from torchgraft.recipe.problem import Problems
from torchgraft.recipe.sheet import Sheet
from torchgraft.text import near

_USE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\}|)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def filled(sheet: Sheet, given: Mapping[str, object], problems: Problems) -> Sheet:
    """Put values in the place of variables; what cannot be filled is noted and left out.

    A text that is nothing but one variable becomes its value, also a number or a flag. Values
    are taken as they are: a variable in one is text.

    Args:
        sheet: what the files say.
        given: values that win over those of the files.
        problems: gets what is wrong.

    Returns:
        The sheet without variables.
    """
    filler = _Filler(sheet.variables, given, problems)
    base, weights = filler.maybe(sheet.base), filler.maybe(sheet.weights)
    options = {name: filler.maybe(entry) for name, entry in sheet.options.items()}
    steps = [filler.maybe(entry) for entry in sheet.steps]
    filler.check_used()
    return attrs.evolve(
        sheet,
        base=base,
        weights=weights,
        options={name: entry for name, entry in options.items() if entry is not None},
        steps=tuple(entry for entry in steps if entry is not None),
        variables={},
    )


def escaped(plain: Mapping[str, object]) -> dict[str, object]:
    """Write plain data of a recipe so that no dollar in it begins a variable."""
    return {name: _escaped(value) for name, value in plain.items()}


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, dict) else value


class _Filler:
    """Fill in values, and keep account of the names that are used."""

    def __init__(self, known: Mapping[str, Entry], given: Mapping[str, object], problems: Problems) -> None:
        self._problems = problems
        self._given = given
        self._used: set[str] = set(known)
        self._known: dict[str, Scalar] = {}
        for name, value in {**known, **given}.items():
            try:
                entry = value if isinstance(value, Entry) else entered(value)
            except NotRead:
                entry = Entry({})
            right = _NAME.fullmatch(name) is not None
            if right and not isinstance(entry.value, (dict, list)):
                self._known[name] = entry.value
                continue
            problems.add(
                entry.place,
                f"variable {excerpt(name)!r} is a name with text, a number or a flag",
                found=entry.words(),
                write="vars:\n  name: value",
            )

    def maybe(self, entry: Entry | None) -> Entry | None:
        """Fill one value, with all that is in it; ``None`` where that cannot be done."""
        if entry is None or not isinstance(entry.value, (str, list)):
            return entry
        if isinstance(entry.value, list):
            items = [self.maybe(item) for item in entry.value]
            kept = [item for item in items if item is not None]
            return Entry(kept, entry.place) if len(kept) == len(items) else None
        whole = _USE.fullmatch(entry.value)
        names = dict.fromkeys(found[1] for found in _USE.finditer(entry.value) if found[0] != "$$")
        self._used |= {name for name in names if name}
        wrong = [name for name in names if name not in self._known]
        for name in wrong:
            self._undefined(entry, name)
        if wrong:
            return None
        if whole and whole[1]:
            return attrs.evolve(entry, value=self._known[whole[1]])
        return self._text(entry, entry.value)

    def check_used(self) -> None:
        """Note what was given and stands for nothing: most likely it is misspelt."""
        for name in self._given:
            if name not in self._used:
                close = near(name, self._used)
                self._problems.add(
                    Entry(None).place,
                    f"no ${{{name}}} is in the recipe",
                    asked=f"{name}={self._given[name]}"[:200],
                    found=", ".join(sorted(self._used))[:200] or "no variables",
                    near=close,
                    write=f"{close[0]}=..." if close else "",
                )

    def _text(self, entry: Entry, text: str) -> Entry | None:
        size = 0
        parts: list[str] = []
        end = 0
        for found in _USE.finditer(text):
            part = text[end : found.start()] + ("$" if found[0] == "$$" else str(self._known[found[1]]))
            size, end = size + len(part), found.end()
            parts.append(part)
            if size > LONGEST:
                self._problems.add(
                    entry.place,
                    f"with its variables it is longer than {LONGEST:,} characters",
                    asked=excerpt(text),
                    write="shorter values",
                )
                return None
        return attrs.evolve(entry, value="".join(parts) + text[end:])

    def _undefined(self, entry: Entry, name: str | None) -> None:
        text = str(entry.value)
        if name is None:
            self._problems.add(
                entry.place,
                "a dollar begins a variable",
                asked=excerpt(text),
                write="${name}; $$ for a dollar",
            )
            return
        close = near(name, self._known)
        self._problems.add(
            entry.place,
            f"variable {name!r} is not defined",
            asked=excerpt(text),
            found=", ".join(self._known)[:200] or "no vars",
            near=close,
            write=excerpt(text.replace(f"${{{name}}}", f"${{{close[0]}}}"))
            if close
            else f"vars:\n  {name}: ...",
        )

"""What a command answers, and how it is shown: to people on a terminal, to machines, to a pipe."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import TextIO

import attrs
import typer
from rich.console import Console
from rich.text import Text

_CLOSED = 141  # what a shell reports for a program that its reader left
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLES = (
    (r"^error:", "bold red"),
    (r"^warning:", "yellow"),
    (r"(?m)^ *> .*$", "bold cyan"),  # what a selector means
    (r"(?m)^  (asked|found|near|write|note) ", "dim"),
)


@attrs.frozen
class Answer:
    """What a command found: for people, and for machines; ``names`` may stand side by side."""

    text: str
    data: Mapping[str, object]
    code: int = 0
    note: str = ""
    names: bool = False


def give(answer: Answer, *, as_json: bool) -> None:
    """Write an answer to the standard output."""
    if as_json:
        write(json.dumps(answer.data, indent=2, allow_nan=False, default=str), exact=True)
    else:
        write(set_columns(answer.text.split("\n")) if answer.names else answer.text)
        if answer.note:
            write(answer.note, sys.stderr)
    if answer.code:
        raise typer.Exit(answer.code)


@contextlib.contextmanager
def quiet(*, silent: bool) -> Iterator[None]:
    """Keep what libraries print out of the answer, and off the standard error where that is for JSON."""
    if not silent:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    nowhere, logged = io.StringIO(), logging.root.manager.disable
    logging.disable()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logged)


def write(text: str, stream: TextIO | None = None, *, exact: bool = False) -> None:
    """Write text: for a terminal in colours and not wider, for machines exactly as it is."""
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    plain = _escape(text, stream.encoding or "utf-8")
    try:
        if exact:
            stream.write(f"{text}\n")
        elif console.is_terminal:
            said = Text(fit_lines(plain, console.width))
            for pattern, style in _STYLES:
                said.highlight_regex(pattern, style)
            console.print(said, soft_wrap=True)
        elif text:
            stream.write(f"{plain}\n")
        stream.flush()
    except BrokenPipeError:
        _let_go(stream)
        raise typer.Exit(_CLOSED) from None


def fit_lines(text: str, width: int) -> str:
    """Break lines that are too wide: between columns, then between words; no word is cut.

    Args:
        text: any number of lines; two spaces or more stand between columns.
        width: number of columns of the terminal.

    Example:
        >>> print(fit_lines("  conv1  3 224 224  1,792", 20))
          conv1  3 224 224
              1,792
    """
    return "\n".join(_fold_line(line, width) if len(line) > width else line for line in text.split("\n"))


def _fold_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    deeper = indent + " " * 4
    first, *others = re.split(r"( {2,})", line.strip())
    rows = [indent + first]
    for gap, cell in zip(others[::2], others[1::2], strict=True):
        alone = len(deeper) + len(cell)
        if len(rows[-1]) + len(gap) + len(cell) <= width or (alone > width and len(rows[-1]) < width // 2):
            rows[-1] += gap + cell
        else:
            rows.append(deeper + cell)
    fit = textwrap.TextWrapper(
        width,
        subsequent_indent=deeper,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(part for row in rows for part in fit.wrap(row))


def set_columns(names: list[str]) -> str:
    """Write names side by side on a terminal, and one a line for whatever else reads them."""
    console = Console()
    if not console.is_terminal:
        return "\n".join(names)
    wide = max(map(len, names)) + 2
    count = max(1, console.width // wide)
    deep = -(-len(names) // count)
    return "\n".join("".join(name.ljust(wide) for name in names[row::deep]).rstrip() for row in range(deep))


def _escape(text: str, encoding: str) -> str:
    """Write out what a terminal would obey, and what the stream cannot hold: names come from files."""
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _let_go(stream: TextIO) -> None:
    """Send what is still in the buffer to nowhere: it would be complained about at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

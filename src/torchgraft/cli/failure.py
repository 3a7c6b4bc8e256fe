"""What went wrong, in the same four parts whoever says it, as text and as JSON."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Sequence

import attrs
import typer

from torchgraft.errors import GraftError

WRONG, USAGE, INTERRUPTED = 1, 2, 130


@attrs.frozen
class Failure:
    """Say why a command has no answer.

    Args:
        kind: name of the error's class.
        error: one sentence with the fact.
        asked: the call, or the command, as written.
        found: what there is instead.
        near: names that resemble the one asked for.
        write: what to write instead.
        notes: where it happened.
        code: how the program ends.
    """

    kind: str
    error: str
    asked: str = ""
    found: str = ""
    near: tuple[str, ...] = ()
    write: str = ""
    notes: tuple[str, ...] = ()
    code: int = WRONG

    @classmethod
    def of(cls, error: BaseException, words: Sequence[str]) -> Failure:
        """Describe an error.

        Args:
            error: of the library, of the reader of the command line, or one that nobody expects.
            words: the command line.
        """
        name, typed = type(error).__name__, shlex.join(["torchgraft", *words])
        notes = tuple(getattr(error, "__notes__", ()))
        if isinstance(error, GraftError):
            return cls(name, error.summary, error.asked, error.found, error.near, error.write, notes)
        if isinstance(error, (typer.Abort, KeyboardInterrupt)):
            return cls("Interrupted", "interrupted", code=INTERRUPTED)
        if hasattr(error, "format_message"):  # the error classes of typer moved more than once
            command = getattr(getattr(error, "ctx", None), "command_path", "") or "torchgraft"
            names = list(getattr(error, "possibilities", None) or ())
            near = tuple(difflib.get_close_matches(getattr(error, "option_name", ""), names, n=3, cutoff=0.7))
            said = getattr(error, "message", "") if names else error.format_message()
            code = getattr(error, "exit_code", USAGE)
            return cls(name, said, typed, near=near, write=f"{command} --help", code=code)
        if isinstance(error, OSError) and error.strerror:
            return cls(name, error.strerror, typed, str(error.filename or ""), notes=notes)
        lines = str(error).strip().splitlines() or [""]
        return cls(
            name,
            f"{name}: {lines[0]}"[:300],
            typed,
            "an error that torchgraft does not expect",
            write=f"{typed} --debug",
            notes=notes,
        )

    def text(self) -> str:
        """Write it for people."""
        parts = (
            ("asked", self.asked),
            ("found", self.found),
            ("near", ", ".join(self.near)),
            ("write", self.write),
            *(("note", note) for note in self.notes),
        )
        return "\n".join([f"error: {self.error}", *(f"  {label:<6} {text}" for label, text in parts if text)])

    def json(self) -> str:
        """Write it for machines."""
        held = attrs.asdict(self)
        return json.dumps(held, indent=2)

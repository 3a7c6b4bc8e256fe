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
    """Why a command has no answer: the parts of every error, and how the program ends."""

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
        """Describe an error: of the library, of what reads the command line, or an unexpected one."""
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
        said = f"{name}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
        unexpected = "an error that torchgraft does not expect"
        return cls(name, said, typed, unexpected, write=f"{typed} --debug", notes=notes)

    def text(self) -> str:
        """Write it for people."""
        said = GraftError(self.error, asked=self.asked, found=self.found, near=self.near, write=self.write)
        return "\n".join([f"error: {said}", *(f"  note   {note}" for note in self.notes)])

    def json(self) -> str:
        """Write it for machines."""
        return json.dumps(attrs.asdict(self), indent=2)

"""The command line as a whole: where commands become answers, and errors words and an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from torchgraft.cli import output, work
from torchgraft.cli.failure import Failure
from torchgraft.cli.progress import show_progress


class Command(TyperCommand):
    """Run the function of its name in ``torchgraft.cli.work``, and show what that answers."""

    def invoke(self, ctx: Any) -> None:
        """Run the command.

        Args:
            ctx: what was typed, read and checked.
        """
        asked = dict(ctx.params)
        as_json, debug = asked.pop("as_json"), asked.pop("debug")
        asked.pop("force", None)
        with show_progress(shown=not as_json) as stage, output.quiet(silent=as_json and not debug):
            answer: output.Answer = getattr(work, str(self.name))(stage, **asked)
        output.give(answer, as_json=as_json)


class Commands(TyperGroup):
    """Run a command; end with 0, with 1 where what was asked is wrong, with 2 where it cannot be read."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command that some words ask for.

        Args:
            args: the words; those that the program was called with if missing.
            rest: as for every group.
            options: as for every group.
        """
        words = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        as_json, debug = "--json" in words, "--debug" in words
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _ignore_warning if as_json else _tell_warning
            try:
                code = super().main(words, *rest, **options)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - this is where they all end
                code = _tell_error(error, words, as_json=as_json, debug=debug)
        sys.exit(code if isinstance(code, int) else 0)


def _tell_error(error: BaseException, words: Sequence[str], *, as_json: bool, debug: bool) -> int:
    failure = Failure.of(error, words)
    if debug:
        traceback.print_exception(error)
    with contextlib.suppress(typer.Exit):  # nobody reads it
        output.write(failure.json() if as_json else failure.text(), sys.stderr, exact=as_json)
    return failure.code


def _tell_warning(message: Warning | str, *_: object, **__: object) -> None:
    first = str(message).strip().partition("\n")[0]
    output.write(f"warning: {first}", sys.stderr)


def _ignore_warning(*_: object, **__: object) -> None:
    """Keep the standard error for one JSON document."""

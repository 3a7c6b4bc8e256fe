"""The command line as a whole: where errors become words and an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from torchgraft.cli import output
from torchgraft.cli.failure import Failure


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
                warnings.showwarning = _silent if as_json else _told
            try:
                code = super().main(words, *rest, **options)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - this is where they all end
                code = _failed(error, words, as_json=as_json, debug=debug)
        sys.exit(code if isinstance(code, int) else 0)


def _failed(error: BaseException, words: Sequence[str], *, as_json: bool, debug: bool) -> int:
    failure = Failure.of(error, words)
    if debug:
        traceback.print_exception(error)
    with contextlib.suppress(typer.Exit):  # nobody reads it
        output.write(failure.json() if as_json else failure.text(), sys.stderr, exact=as_json)
    return failure.code


def _told(message: Warning | str, *_: object, **__: object) -> None:
    first = str(message).strip().partition("\n")[0]
    output.write(f"warning: {first}", sys.stderr)


def _silent(*_: object, **__: object) -> None:
    """Keep the standard error for one JSON document."""

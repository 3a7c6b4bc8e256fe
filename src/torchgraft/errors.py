"""Every exception of the library: what was asked, what was found, what is near, what to write."""

from __future__ import annotations

from collections.abc import Sequence


class GraftError(Exception):
    """Say what went wrong in four parts, each of them also a field.

    Args:
        summary: one sentence with the fact.
        asked: the call as written.
        found: what the model or the call holds instead.
        near: at most three names that resemble the one asked for.
        write: the line to write.
        swap: words of the call that are wrong, and those to write there.

    A failing step of a pipe also sets ``step``, its number from 1.
    """

    def __init__(
        self,
        summary: str,
        *,
        asked: str = "",
        found: str = "",
        near: Sequence[str] = (),
        write: str = "",
        swap: tuple[str, str] = ("", ""),
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.asked = asked
        self.found = found
        self.near = tuple(near)[:3]
        self.write = write
        self.swap = swap
        self.step = 0

    def __str__(self) -> str:
        lines = [self.summary]
        parts = (
            ("asked", self.asked),
            ("found", self.found),
            ("near", ", ".join(self.near)),
            ("write", self.write),
        )
        lines += [f"  {label:<6} {text}" for label, text in parts if text]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles its positional args alone; the fields travel as state.
        return type(self), (self.summary,), self.__dict__


class TargetError(GraftError, LookupError):
    """Report a target that matches nothing, or something that the edit cannot be done on.

    Args:
        summary: one sentence with the fact.
        wrong: the literal that matches nothing.
        found: what the model holds instead.
        near: names that resemble it.
        write: the line to write.
        swap: words of the call that are wrong, and those to write there.
        outside: what to take out of the target, where that is wider.
    """

    def __init__(
        self,
        summary: str,
        *,
        wrong: str = "",
        outside: object = None,
        found: str = "",
        near: Sequence[str] = (),
        write: str = "",
        swap: tuple[str, str] = ("", ""),
    ) -> None:
        super().__init__(summary, found=found, near=near, write=write, swap=swap)
        self.wrong = wrong
        self.outside = outside


class HeadError(GraftError, LookupError):
    """Report a model whose classifier cannot be told from its structure."""


class NameClashError(GraftError, ValueError):
    """Report a new name that the model already uses."""


class ShapeError(GraftError, ValueError):
    """Report two shapes that do not fit, with the consumer of the value."""


class LayoutError(GraftError, ValueError):
    """Report a block that has no meaning for the layout of its target."""


class OptionError(GraftError, TypeError, ValueError):
    """Report an option that is unknown, of a wrong type or out of range."""


class ModelError(GraftError, TypeError):
    """Report something that is not a model that can be edited."""


class TraceError(GraftError, RuntimeError):
    """Report a forward that cannot be followed, with module, file and line.

    Args:
        summary: one sentence with the fact.
        module: path of the module whose forward was followed; empty for the root.
        filename: file of the line that stopped the trace.
        lineno: number of that line.
        found: the line itself, or the reason.
        write: the line to write.

    ``enumerated`` names the modules, from that one, whose children it had gone through by then;
    ``called`` tells whether it had called any.
    """

    def __init__(
        self,
        summary: str,
        *,
        module: str = "",
        filename: str = "",
        lineno: int = 0,
        found: str = "",
        write: str = "",
    ) -> None:
        super().__init__(summary, found=found, write=write)
        self.module = module
        self.filename = filename
        self.lineno = lineno
        self.enumerated: frozenset[str] = frozenset()
        self.called = False


class RecipeError(GraftError, ValueError):
    """Report a text that is no step, or a step that cannot be written as text."""


class AlignmentError(GraftError, ValueError):
    """Report an alignment that does not hold together, or tensors that it is not for."""


class CheckpointError(GraftError, ValueError):
    """Report a file that is no checkpoint, or weights that cannot be loaded."""


class SourceError(GraftError, ValueError):
    """Report a base model that no source knows, or weights that a source cannot give."""


class StoreError(CheckpointError):
    """Report a model that cannot be saved as it is, or a file that no model can be made from."""


class CoverageError(GraftError, ValueError):
    """Report weights that fill less of a model than was asked for."""


class AnalysisError(GraftError, RuntimeError):
    """Report that the shapes of a model could not be found out."""


class SpecialisedError(GraftError, ValueError):
    """Report an input for which a traced forward would have decided otherwise."""

"""What is wrong with a recipe, and where it stands: collected, so that all of it is told at once."""

from __future__ import annotations

import attrs

from torchgraft.errors import GraftError, RecipeError
from torchgraft.text import plural, write_error


@attrs.frozen
class Place:
    """Say where something stands.

    Args:
        file: path of the file; empty for what is no file.
        line: line in it, from 1; 0 where there is none.
        step: number of the step, from 1; 0 for what is no step.

    Example:
        >>> str(Place("recipe.yaml", 6))
        'recipe.yaml:6'
    """

    file: str = ""
    line: int = 0
    step: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file or (f"step {self.step}" if self.step else "recipe")
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"


NOWHERE = Place()


@attrs.frozen
class Problem:
    """Say one thing that is wrong, in the four parts of an error, and where.

    Args:
        place: where it stands.
        summary: one sentence with the fact.
        asked: what is written there.
        found: what is there instead.
        near: at most three names that resemble the one asked for.
        write: what to write.
        after: what else went wrong before, and may be its only reason.
    """

    place: Place
    summary: str
    asked: str = ""
    found: str = ""
    near: tuple[str, ...] = ()
    write: str = ""
    after: str = ""

    @classmethod
    def of(cls, error: Exception, place: Place, after: str = "") -> Problem:
        """Turn an error into a problem at a place."""
        if not isinstance(error, GraftError):
            return cls(place, "it cannot be done", found=write_error(error), after=after)
        near = tuple(error.near)
        return cls(place, error.summary, error.asked, error.found, near, error.write, after)

    @property
    def file(self) -> str:
        """Path of the file; empty for what is no file."""
        return self.place.file

    @property
    def line(self) -> int:
        """Line in the file, from 1; 0 where there is none."""
        return self.place.line

    @property
    def step(self) -> int:
        """Number of the step, from 1; 0 for what is no step."""
        return self.place.step

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        held = attrs.asdict(self, recurse=False, filter=attrs.filters.exclude("place"))
        return {**attrs.asdict(self.place), **held, "near": list(self.near)}

    def __str__(self) -> str:
        said = RecipeError(
            f"{self.place}: {self.summary}",
            asked=self.asked,
            found=self.found,
            near=self.near,
            write=self.write,
        )
        return f"{said}\n  after  {self.after}" if self.after else str(said)


class Problems:
    """Collect what is wrong while the rest is still read."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(
        self,
        place: Place,
        summary: str,
        *,
        asked: str = "",
        found: str = "",
        near: tuple[str, ...] = (),
        write: str = "",
    ) -> None:
        """Note one thing."""
        self.found.append(Problem(place, summary, asked, found, near, write))

    def of(self, error: Exception, place: Place, after: str = "") -> None:
        """Note what an error says."""
        self.found.append(Problem.of(error, place, after))

    def check(self) -> None:
        """Check that nothing was noted.

        Raises:
            RecipeError: something was; it tells the first of them, and how many more there are.
        """
        if self.found:
            raise self.error()

    def error(self) -> RecipeError:
        """Make the error that tells the first of them."""
        first, rest = self.found[0], len(self.found) - 1
        at = "" if first.place == Place() else f"{first.place}: "
        error = RecipeError(
            f"{at}{first.summary}",
            asked=first.asked,
            found=first.found,
            near=first.near,
            write=first.write,
        )
        if rest:
            error.add_note(f"and {plural(rest, 'problem')} more; check(...) tells all of them")
        return error

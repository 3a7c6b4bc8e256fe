"""Check a recipe against the real model, on the meta device: everything that is wrong, at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft.edits.load_weights import LoadWeights
from torchgraft.errors import GraftError
from torchgraft.graph.history import Origin
from torchgraft.recipe.contents import Contents, Step
from torchgraft.recipe.files import beside, is_there
from torchgraft.recipe.problem import NOWHERE, Place, Problem, Problems
from torchgraft.recipe.reader import parse
from torchgraft.recipe.reading import contents_at
from torchgraft.recipe.recipe import Recipe
from torchgraft.sources.find import resolve
from torchgraft.sources.get import skeleton_of
from torchgraft.sources.weights import chosen
from torchgraft.text import literal, near, plural, spelled
from torchgraft.transform import Transform, replayed

_MOST = 20


@attrs.frozen(repr=False)
class CheckReport:
    """Tell what is wrong with a recipe.

    Args:
        name: the path of the recipe, or the name of its base.
        steps: how many steps it has.
        problems: what is wrong, in the order of the lines.
    """

    name: str
    steps: int
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "ok": self.ok,
            "steps": self.steps,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def __str__(self) -> str:
        if self.ok:
            return f"{self.name}: {plural(self.steps, 'step')}, no problems"
        count = plural(len(self.problems), "problem")
        return "\n".join([*map(str, self.problems), f"{self.name}: {count}"])

    __repr__ = __str__


@spelled
def check(
    recipe: Recipe | str | Path, *, variables: Mapping[str, object] | None = None, outside: bool = False
) -> CheckReport:
    """Find everything that is wrong with a recipe, without weights and without the network.

    The steps are done to the model on the meta device. One that fails is taken as it was most
    likely meant, or left out, and those behind it are tried all the same.

    Args:
        recipe: a recipe, or the path of one.
        variables: as for ``read_recipe``.
        outside: as for ``read_recipe``.

    Returns:
        The report; it is ``ok``, or has ``problems`` with file and line.

    Example:
        >>> print(check(Recipe("torchvision/resnet18", steps=['freeze("layr1")', "swap_head(10)"])))
        step 1: "layr1" is no module and no node of this model
          asked  freeze("layr1")
          found  67 modules, no node of that name in the root
          near   layer1, layer4.1, layer3.1
          write  freeze("layer1")
        torchvision/resnet18: 1 problem
    """
    problems = Problems()
    if isinstance(recipe, Recipe):
        contents, name = _contents(recipe), recipe.base or "the recipe"
    else:
        contents = contents_at(Path(recipe), problems, variables or {}, outside=outside)
        name = str(recipe)
    _Checker(contents, problems).check()
    order = {problem.file: -number for number, problem in enumerate(reversed(problems.found))}
    found = sorted(problems.found, key=lambda problem: (order[problem.file], problem.line, problem.step))
    return CheckReport(name, len(contents.steps), tuple(dict.fromkeys(found)))


def _contents(recipe: Recipe) -> Contents:
    steps = [Step(step, Place(step=number), repr(step)) for number, step in enumerate(recipe.steps, 1)]
    return Contents(
        recipe.base,
        recipe.weights,
        recipe.options,
        tuple(steps),
        recipe.example,
        places={"base": NOWHERE},
    )


class _Checker:
    """Try what a recipe says."""

    def __init__(self, contents: Contents, problems: Problems) -> None:
        self._contents = contents
        self._problems = problems
        self._options = dict(contents.options)

    def check(self) -> None:
        """Note what cannot be done."""
        for step in self._contents.steps:
            self._check_file(step)
        if not self._contents.base:
            place = self._contents.places.get("base")
            if place and all(problem.place != place for problem in self._problems.found):
                self._problems.add(place, "the base of the recipe is not known", write="torchvision/resnet50")
            return
        base = self._base()
        if base is not None:
            self._steps(base)

    def _place(self, name: str) -> Place:
        places = self._contents.places
        return places.get(name, places.get("base", Place()))

    def _check_file(self, step: Step) -> None:
        transform = step.transform
        if not isinstance(transform, LoadWeights) or not isinstance(transform.source, str):
            return
        path = Path(transform.source)
        if not is_there(path):
            close = near(path.name[:200], beside(path))
            write = step.said.replace(path.name, close[0]) if close else ""
            self._problems.add(
                step.place,
                f"there is no file {path.name[:200]!r}",
                asked=step.said,
                found=f"in {path.parent}"[:200],
                near=close,
                write=write,
            )

    def _base(self) -> nn.Module | None:
        """Build the model without values, leaving out what it does not take."""
        said = self._contents
        try:
            found = resolve(said.base)
        except Exception as error:  # noqa: BLE001 - a source looks into files and libraries
            self._problems.of(error, self._place("base"))
            return None
        weights: str | None = None
        try:
            weights = chosen(found, said.weights, self._options)
        except Exception as error:  # noqa: BLE001 - the same
            if isinstance(error, GraftError) and error.near:
                error.write = f"weights: {error.near[0]}"
            self._problems.of(error, self._place("weights"))
        while True:
            origin = Origin(said.base, weights, tuple(self._options.items()))
            try:
                return skeleton_of(origin, files=True)
            except GraftError as error:
                names = [name for name in self._options if re.search(rf"\b{name}\b", error.summary)]
                if names:
                    error.write = self._instead(names[0], error)
                self._problems.of(error, self._place((names or [*self._options, "base"])[0]))
                if not names:
                    return None
                del self._options[names[0]]
            except Exception as error:  # noqa: BLE001 - the same
                self._problems.of(error, self._place("base"))
                return None

    def _instead(self, name: str, error: GraftError) -> str:
        """Write the line of the recipe that says what an option was to say."""
        step = re.fullmatch(r"pipe\(get_model\(.*?\), (.*)\)", error.write)
        if step:
            return f"- {step[1]}"
        return f"{error.near[0]}: {literal(self._options[name])}" if error.near else f"no {name}"

    def _steps(self, base: nn.Module) -> None:
        """Do the steps, and find out which of them fail."""
        left = [(step, _made(step)) for step in self._contents.steps]
        dropped = [step for step, made in left if made is None]
        doing = [(step, made) for step, made in left if made is not None]
        sizes = self._contents.example
        example = torch.empty(sizes, device="meta") if sizes else None
        told = {step for step, _ in doing if step.transform is None}  # what is wrong with them is noted
        guessed = set(told)
        for _ in range(_MOST):
            error = _failure(base, [made for _, made in doing], example) if doing else None
            if error is None:
                return
            number = _number(error) or _shortest(base, [made for _, made in doing], example)
            step = doing[number - 1][0]
            again = None
            if step not in told:
                if isinstance(error, GraftError) and "example=" in error.write:
                    error.write = "example: [<sizes of an input that the model takes>]"
                self._problems.of(error, step.place, _after(step, dropped, guessed))
                again = _read(error.write) if isinstance(error, GraftError) else None
            told.add(step)
            if again is None:
                dropped.append(step)
                del doing[number - 1]
            else:
                guessed.add(step)
                doing[number - 1] = (step, again)
        self._problems.add(
            doing[-1][0].place if doing else NOWHERE,
            f"{_MOST} steps fail, so no more of them were tried",
            write="these first",
        )


def _made(step: Step) -> Transform | None:
    return step.transform or _read(step.meant)


def _read(text: str) -> Transform | None:
    """Read what an error tells to write, where that is one step."""
    try:
        made = parse(text)
    except GraftError:
        return None
    return made if made.steps() == (made,) else None


def _failure(base: nn.Module, steps: Sequence[Transform], example: torch.Tensor | None) -> Exception | None:
    try:
        replayed(base, steps, example)
    except Exception as error:  # noqa: BLE001 - a block of the user may raise anything
        return error
    return None


def _number(error: Exception) -> int:
    """Return the number of the step that failed, where the error tells."""
    return error.step if isinstance(error, GraftError) else 0


def _shortest(base: nn.Module, steps: Sequence[Transform], example: torch.Tensor | None) -> int:
    """Return how many of the first steps it takes to fail, where doing all of them does."""
    low, high = 0, len(steps)
    while low + 1 < high:
        middle = (low + high) // 2
        if _failure(base, steps[:middle], example) is None:
            low = middle
        else:
            high = middle
    return high


def _after(step: Step, dropped: Iterable[Step], guessed: Iterable[Step]) -> str:
    """Say what was done otherwise before a step, and may be the only reason for its failure."""
    words = []
    for others, one, many in (
        (dropped, "was left out", "were left out"),
        (guessed, "was taken as it was most likely meant", "were taken as they were most likely meant"),
    ):
        numbers = sorted({s.place.step for s in others if s.place.step < step.place.step})
        if numbers:
            said = ", ".join(map(str, numbers))
            words.append(f"step {said} {one}" if len(numbers) == 1 else f"steps {said} {many}")
    return "; ".join(words)

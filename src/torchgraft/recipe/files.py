"""Files of recipes: read in bounds, one extending another, none leading out of its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from torchgraft.edits.load_weights import LoadWeights
from torchgraft.recipe.entry import LARGEST_FILE, Entry, NotRead
from torchgraft.recipe.json_text import read_json
from torchgraft.recipe.problem import Place, Problems
from torchgraft.recipe.sheet import Sheet, joined, sheet_of
from torchgraft.recipe.yaml_text import read_yaml
from torchgraft.text import near
from torchgraft.transform import Transform

_DEEPEST = 8
_WEIGHTS = re.compile(r".*[/\\].*|.*\.(safetensors|json|pth|pt|bin|ckpt|pkl|tar)", re.DOTALL)
_FOLDER = re.compile(r"[./~\\].*|.*\.\..*", re.DOTALL)


def document(text: str, problems: Problems, file: str = "", *, json: bool = False) -> Entry | None:
    """Read the text of a recipe; what cannot be read is noted.

    Args:
        text: the text.
        problems: gets what is wrong.
        file: its path, for the places.
        json: it is JSON and not YAML.
    """
    if len(text) > LARGEST_FILE:
        summary = f"a recipe has at most {LARGEST_FILE:,} characters"
        problems.add(Place(file), summary, found=f"{len(text):,}", write="a smaller file")
        return None
    try:
        return read_json(text, file) if json else read_yaml(text, file)
    except NotRead as error:
        problems.add(Place(file, error.line), str(error), found=error.found, write=error.write)
        return None


@attrs.frozen
class Folder:
    """The folder of a recipe, which its paths do not lead out of.

    Args:
        root: the folder, without symbolic links; ``None`` for a recipe that is in no file.
        outside: paths may lead out of it.
    """

    root: Path | None = None
    outside: bool = False

    @classmethod
    def of(cls, path: Path, *, outside: bool) -> Folder:
        """Take the folder of a file."""
        try:
            return cls(path.parent.resolve(), outside)
        except (OSError, RuntimeError, ValueError):
            return cls(path.parent.absolute(), outside)

    def path(self, text: str, place: Place, problems: Problems) -> Path | None:
        """Return the path that a recipe means; ``None``, with a note, if it leads outside.

        Args:
            text: as it is written: relative to the file in which it stands.
            place: where.
            problems: gets what is wrong.
        """
        try:
            path = Path(place.file).parent / Path(text).expanduser()
            within = self.root is not None and path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a null byte
            problems.add(
                place, "it is no path", asked=text[:200], found=str(error)[:200], write="./weights.pth"
            )
            return None
        if not within and not self.outside:
            problems.add(
                place,
                "the path leads out of the folder of the recipe",
                asked=text[:200],
                found="../" if ".." in Path(text).parts else "a path or a link to elsewhere",
                write="a path inside of it; outside=True to allow it for this recipe",
            )
            return None
        return path

    def sheet(self, sheet: Sheet, problems: Problems) -> Sheet:
        """Turn paths that are relative to their recipe into paths that can be opened."""
        if self.root is None:
            return sheet
        base, weights = sheet.base, sheet.weights
        if base and isinstance(base.value, str) and base.value.startswith("hf/"):
            name = base.value.removeprefix("hf/")
            if _FOLDER.fullmatch(name) or is_there(Path(base.place.file).parent / name, folder=True):
                base = self._found(name, base.place, "hf/", problems)
        if weights and isinstance(weights.value, str) and _WEIGHTS.fullmatch(weights.value):
            weights = self._found(weights.value, weights.place, "", problems)
        return attrs.evolve(sheet, base=base, weights=weights)

    def step(self, step: Transform, place: Place, problems: Problems) -> Transform | None:
        """Do the same with the file that a step reads; ``None`` if it leads outside."""
        if self.root is None or not isinstance(step, LoadWeights) or not isinstance(step.source, str):
            return step
        path = self.path(step.source, place, problems)
        return None if path is None else attrs.evolve(step, source=str(path))

    def _found(self, text: str, place: Place, before: str, problems: Problems) -> Entry | None:
        path = self.path(text, place, problems)
        return None if path is None else Entry(f"{before}{path}", place)


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Tell whether there is a file, or a folder; a name that no system takes is none."""
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):
        return False


def beside(path: Path) -> list[str]:
    """List the names in the folder of a path."""
    try:
        return sorted(other.name for other in path.parent.iterdir())
    except (OSError, ValueError):
        return []


def gathered(path: Path, folder: Folder, problems: Problems) -> Sheet | None:
    """Read a file and those that it extends, as one sheet.

    Args:
        path: of the file.
        folder: which no path may lead out of.
        problems: gets what is wrong.

    Returns:
        What they say together; ``None`` where the first of them cannot be read.
    """
    sheets: list[Sheet] = []
    seen: dict[Path, str] = {}
    place = Place(str(path))
    while True:
        entry = _read(path, place, problems)
        if entry is None:
            break
        seen[path.resolve()] = path.name
        sheet = sheet_of(entry, problems)
        if sheet is None:
            break
        sheets.append(sheet)
        extends = sheet.extends
        if extends is None:
            break
        place = extends.place
        below = folder.path(str(extends.value), place, problems) if _is_text(extends, problems) else None
        if below is None or not _may_follow(below, seen, extends, problems):
            break
        path = below
    if not sheets:
        return None
    whole = sheets[-1]
    for above in reversed(sheets[:-1]):
        whole = joined(whole, above)
    return whole


def _read(path: Path, place: Place, problems: Problems) -> Entry | None:
    file = str(path)
    if path.suffix == ".safetensors":
        problems.add(
            place, "it is a file of weights", asked=file, write="load(path), or read_record(path).recipe"
        )
        return None
    try:
        if not is_there(path):  # a pipe or a device may have no end
            raise FileNotFoundError(2, "there is no such file")
        with path.open("rb") as opened:
            held = opened.read(4 * LARGEST_FILE + 1)
        text = held.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        found = (error.strerror or "") if isinstance(error, OSError) else f"no UTF-8 text: {error}"
        close = near(path.name[:200], beside(path))
        problems.add(
            place,
            "the recipe cannot be read",
            asked=file[-400:],
            found=found[:200],
            near=close,
            write=str(path.with_name(close[0])) if close else "",
        )
        return None
    return document(text, problems, file, json=path.suffix == ".json")


def _is_text(entry: Entry, problems: Problems) -> bool:
    if isinstance(entry.value, str):
        return True
    problems.add(
        entry.place, "extends is the path of a recipe", found=entry.words(), write="extends: base.yaml"
    )
    return False


def _may_follow(path: Path, seen: Mapping[Path, str], extends: Entry, problems: Problems) -> bool:
    """Check that a chain of recipes has an end, and that not too far away."""
    circle = path.resolve() in seen
    if circle or len(seen) > _DEEPEST:
        problems.add(
            extends.place,
            "recipes extend each other in a circle"
            if circle
            else f"more than {_DEEPEST} recipes extend each other",
            asked=f"extends: {extends.value}",
            found=" -> ".join([*seen.values(), path.name])[:400],
            write="a recipe that extends nothing",
        )
        return False
    return True

"""The record: what stands in a file beside the tensors, so that the model can be made again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs
from torch import nn

from torchgraft.alignment.files.container import BYTES
from torchgraft.alignment.files.strict_json import Reader, decoded
from torchgraft.errors import StoreError
from torchgraft.graph.portrait import portrait
from torchgraft.recipe import Recipe
from torchgraft.recipe.plain import from_plain, to_plain
from torchgraft.store.constants import Measure
from torchgraft.text import near, plural

VERSION = 1
LONGEST = 4_000_000
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
_READ = Reader(StoreError, "a fresh copy of the file")
Covers = Mapping[str, Sequence[str]]
Read = Callable[[object, str], Any]


@attrs.frozen
class Record:
    """Tell what a file was made from and how its model stands.

    Paths in covers and lists stand for all that is below them.

    Args:
        recipe: base, options and steps; a base that no source knows is empty.
        base_class: class of the model before the steps.
        graph: it is the result of a pipe, and not the base as it was built.
        versions: of the libraries that made the model.
        portrait: digests of what the model is made of, by child.
        modes: whether a module is in training, where it differs from the module above.
        waiting: held layers that go into training when they are thawed.
        frozen: parameters that get no gradient.
        ties: the name under which a tensor stands, by its further names.
        dtypes: tensors of another dtype than in the model that is built.
        axes: tensors whose axes lie in memory in another order than the usual one.
        constants: what tensors measure that the builder computes.
        example: what the input of the base looks like, as plain data; ``None`` where it is guessed.
        takes: what the input of the model looks like, where edits changed that.
        tables: buffers that no state dict holds and that are not as the base computes them; they
            stand in the file.
        differs: why a base that a source knows was not named: what it does not give.
    """

    recipe: Recipe
    base_class: str
    graph: bool
    versions: Mapping[str, str]
    portrait: Mapping[str, str]
    modes: Mapping[str, bool]
    waiting: Sequence[str] = ()
    frozen: Sequence[str] = ()
    ties: Mapping[str, str] = attrs.field(factory=dict)
    dtypes: Covers = attrs.field(factory=dict)
    axes: Covers = attrs.field(factory=dict)
    constants: Mapping[str, Measure] = attrs.field(factory=dict)
    example: object = None
    takes: object = None
    tables: Sequence[str] = ()
    differs: str = ""

    def to_text(self) -> str:
        """Write it as JSON; what is empty is left out.

        Raises:
            StoreError: it is too long for a file.
        """
        held = {field.name: getattr(self, field.name) for field in attrs.fields(Record)}
        held |= {"recipe": to_plain(self.recipe)}
        kept = {name: value for name, value in held.items() if value not in (None, (), [], {}, "")}
        text = json.dumps({"version": VERSION, **kept}, ensure_ascii=False, separators=(",", ":"))
        _check_length(text, "the record of the model")
        return text

    @classmethod
    def from_text(cls, text: str, where: str) -> Record:
        """Read it back.

        Args:
            text: what ``to_text`` wrote.
            where: what it stands in, for errors.

        Raises:
            GraftError: it is something else.
        """
        _check_length(text, where)
        try:
            data = decoded(text)
        except ValueError as error:
            raise _READ.wrong(where, "JSON", str(error)[:80]) from error
        version = _READ.mapping(data, where, needed=("version",))["version"]
        if type(version) is not int or version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            raise StoreError(
                f"{where} is of a version that is not known here",
                found=f"version {str(version)[:40]}, known is {VERSION}",
                write="a newer torchgraft" if newer else "a fresh copy of the file",
            )
        names = [field.name for field in attrs.fields(cls)]
        needed = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
        held = _READ.mapping(data, where, ("version", *names), needed)
        return _read(held, where)


def _check_length(text: str, where: str) -> None:
    if len(text) > LONGEST:
        raise StoreError(
            f"{where} is longer than a file may hold",
            found=f"{len(text):,} characters, {LONGEST:,} at most",
        )


def _read(held: Mapping[str, object], where: str) -> Record:
    known = {name: read(held[name], f"{name} of {where}") for name, read in _READERS.items() if name in held}
    for name in cast("Covers", known.get("dtypes", {})):
        if name not in BYTES:
            raise _READ.wrong(f"dtypes of {where}", "of known names", name, near(name, BYTES))
    return Record(**known)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _READ.wrong(where, "true or false", value)
    return value


def _by_path(read: Read, needed: Sequence[str] = ()) -> Read:
    return lambda value, where: {
        path: read(item, where) for path, item in _READ.mapping(value, where, needed=needed).items()
    }


def _listed(value: object, where: str) -> list[str]:
    return [_READ.text(item, where) for item in _READ.items(value, where)]


def _measure(value: object, where: str) -> tuple[object, ...]:
    items = _READ.items(value, where)
    if len(items) != 4 or not all(type(item) is float for item in items[2:]):
        raise _READ.wrong(where, "dtype, shape and two sums", value)
    return _READ.text(items[0], where), _READ.numbers(items[1], where), *items[2:]


def _as_it_is(value: object, where: str) -> object:  # noqa: ARG001 - whoever needs it reads it
    return value


_READERS: Mapping[str, Read] = {
    "recipe": from_plain,
    **dict.fromkeys(("base_class", "differs"), _READ.text),
    "graph": _flag,
    **dict.fromkeys(("versions", "portrait", "ties"), _by_path(_READ.text)),
    "modes": _by_path(_flag, needed=("",)),
    **dict.fromkeys(("waiting", "frozen", "tables"), _listed),
    **dict.fromkeys(("dtypes", "axes"), _by_path(_listed)),
    "constants": _by_path(_measure),
    **dict.fromkeys(("example", "takes"), _as_it_is),
}


def digests(model: nn.Module) -> dict[str, str]:
    """Sum up what a model is made of, part by part; values, modes and gradients do not count.

    Args:
        model: the model; it is only read.

    Returns:
        A digest for each child with all that is in it, and for the root itself under its empty name.

    Example:
        >>> list(digests(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
        ['', '0', '1']
    """
    told: dict[str, list[str]] = {"": [], **{name: [] for name, _ in model.named_children()}}
    for path, said in sorted(portrait(model).items()):
        child = path.partition(".")[0]
        told[child if child in told else ""].append(f"{path}: {said}")
    held = {name: "\n".join(lines).encode(errors="backslashreplace") for name, lines in told.items()}
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in held.items()}


def versions_for(base: str) -> dict[str, str]:
    """Return the versions of the libraries that a model comes from."""
    library = _LIBRARIES.get(base.partition("/")[0])
    names = ("torchgraft", "torch", *((library,) if library else ()))
    return {name: importlib.metadata.version(name) for name in names}


def other_versions(record: Record) -> str:
    """Say which libraries are of another version here than those that made a file; nothing where none is."""
    here = versions_for(record.recipe.base)
    other = [f"{n} {v}, here {here[n]}" for n, v in record.versions.items() if here.get(n, v) != v]
    return f"made with {'; '.join(other)}" if other else ""


def unlike(model: nn.Module, told: Mapping[str, str]) -> list[str]:
    """Name the children that a model does not have in common with what digests tell of."""
    here = digests(model)
    names = [*here, *(name for name in told if name not in here)]
    return [name or "its root" for name in names if here.get(name) != told.get(name)]


def described(record: Record) -> str:
    """Name what a file was made from: the base, or its class, and the number of steps."""
    steps = plural(len(record.recipe.steps), "step")
    return f"{record.recipe.base or f'a {record.base_class} that no source knows'}, {steps}"

"""Tell what a file says of itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work import given
from torchgraft.cli.work.files import Held, held, size_text
from torchgraft.errors import OptionError
from torchgraft.recipe.plain import to_plain
from torchgraft.text import plural

_LONGEST = 60


def run(stage: Stage, *, file: Path) -> Answer:
    """Tell base, weights, steps, versions and sizes."""
    if given.is_recipe(str(file)):
        raise OptionError(
            f"{file.name!r} is a recipe, and explain is for files of weights",
            asked=f"torchgraft explain {file}",
            write=f"torchgraft check {file}, or torchgraft show {file}",
        )
    stage(f"reading {file.name}")
    return described(held(file))


def described(file: Held) -> Answer:
    """Tell what is known of a file."""
    kinds = Counter(dtype for dtype, _ in file.tensors.values())
    sizes = ", ".join(f"{dtype} {count}" if len(kinds) > 1 else dtype for dtype, count in kinds.most_common())
    lines = [
        f"{file.path}: {plural(len(file.tensors), 'tensor')}, {size_text(file.size)}, {sizes or 'empty'}"
    ]
    data = {
        "file": str(file.path),
        "tensors": len(file.tensors),
        "bytes": file.size,
        "dtypes": dict(kinds),
    }
    record = file.record
    if record is None:
        lines.append("  no record of a model: weights alone")
        lines += [f"  {name:<9} {text}" for name, text in file.metadata.items()]
        return Answer("\n".join(lines), {**data, "recipe": None, "metadata": dict(file.metadata)})
    recipe = record.recipe
    weights = "random ones" if recipe.weights in (None, False) else str(recipe.weights)
    said = [
        ("base", recipe.base or f"a {record.base_class} that no source knows"),
        ("differs", record.differs),
        ("weights", f"began as {weights}" + (f", sha256 {recipe.sha256[:12]}" if recipe.sha256 else "")),
        *(("option", f"{name}={_brief(value)}") for name, value in recipe.options),
        *((f"step {number}", repr(step)) for number, step in enumerate(recipe.steps, 1)),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("frozen", ", ".join(record.frozen)),
        ("ties", ", ".join(f"{name} = {first}" for name, first in record.ties.items())),
    ]
    lines += [f"  {label:<9} {text}" for label, text in said if text]
    return Answer(
        "\n".join(lines),
        {
            **data,
            "recipe": to_plain(recipe),
            "versions": dict(record.versions),
            "frozen": list(record.frozen),
            "ties": dict(record.ties),
        },
    )


def _brief(value: object) -> str:
    """Write the value of an option; the config of a model may be long."""
    said = repr(value)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."

"""Commands that show a model without its weights, and what a file says of itself."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import attrs

from torchgraft.cli.output import Answer
from torchgraft.cli.progress import Stage
from torchgraft.cli.work.given import Held, Sizes, is_file, is_recipe, make_example, make_skeleton, read_file
from torchgraft.cli.work.selecting import read_target
from torchgraft.cli.work.trees import module_tree, name_tree
from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.history import history_of
from torchgraft.graph.tiers.tiers import Tiers
from torchgraft.recipe.plain import to_plain
from torchgraft.recipe.written import Remark
from torchgraft.select.selection import Selection
from torchgraft.show.explain import explain as explain_model
from torchgraft.sizing import Shapes, shapes
from torchgraft.text import plural

_LONGEST = 60


def show(
    stage: Stage, *, model: str, select: str | None, every: bool, sizes: Sizes, options: dict[str, object]
) -> Answer:
    """Show its tiers and its modules, or their shapes, or what a selector means in it."""
    target = None if select is None else read_target(select)
    if is_file(model) and (bare := read_file(Path(model))).record is None:
        return _show_names(bare, every=every, asked=target is not None or bool(sizes or options))
    net = make_skeleton(stage, model, options)
    if target is not None:
        stage("looking for the target")
        try:
            found = target.on(net, example=make_example(sizes, device="meta"))
        except TargetError as error:
            if error.near:
                error.write = f"--select {shlex.quote(str(select).replace(error.wrong, error.near[0]))}"
            raise
        return _show_selection(found, every=every)
    if sizes:
        stage("following the shapes")
        return _show_shapes(shapes(net, *sizes), every=every)
    stage("looking for stem, stages and head")
    told = explain_model(net)
    modules = [
        {"path": path, "kind": type(part).__name__, "parameters": sum(p.numel() for p in part.parameters())}
        for path, part in net.named_modules(remove_duplicate=False)
    ]
    origin = history_of(net).origin
    data = attrs.asdict(told, filter=attrs.filters.exclude("tiers"), recurse=False)
    tiers = _tiers_of(told.tiers) if told.tiers else None
    more = {"base": origin.base if origin else "", "tiers": tiers, "modules": modules}
    return Answer(f"{told}\n\n{module_tree(net, every=every)}", {**data, **more})


def _show_names(bare: Held, *, every: bool, asked: bool) -> Answer:
    """Show the names in a file that holds weights alone."""
    count = plural(len(bare.tensors), "tensor")
    if asked:
        raise OptionError(
            f"{bare.path.name!r} has weights alone and no record of a model",
            found=count,
            write=f"torchgraft show {bare.path}, or the name of the model",
        )
    head = f"{bare.path.name}: {count}, {size_text(bare.size)}, no record of a model"
    tensors = [
        {"name": n, "dtype": dtype, "shape": list(shape)} for n, (dtype, shape) in bare.tensors.items()
    ]
    return Answer(f"{head}\n\n{name_tree(bare.tensors, every=every)}", {"model": None, "tensors": tensors})


def _name_option(drawing: str) -> str:
    """Name the option where a drawing names what to call."""
    return drawing.replace(".table() lists", "--all lists").replace(".paths lists", "--all lists")


def _show_selection(found: Selection, *, every: bool) -> Answer:
    sites = [
        {**_read(site, "path", "kind"), "shapes": site.shapes(), **_read(site, "layout", "calls")}
        for site in found
    ]
    text = found.table() if every else _name_option(repr(found))
    return Answer(text, {"asked": found.asked, "sites": sites})


def _show_shapes(found: Shapes, *, every: bool) -> Answer:
    text = found.table() if every else _name_option(repr(found))
    return Answer(text, {"model": found.model, "modules": [attrs.asdict(m) for m in found.modules]})


def _tiers_of(tiers: Tiers) -> dict[str, object]:
    stages = [
        {
            **_read(stage, "paths", "channels", "stride", "layout"),
            "blocks": len(stage.blocks),
            "parameters": stage.parameters,
        }
        for stage in tiers.stages
    ]
    return {**_read(tiers, "stem"), "stages": stages, **_read(tiers, "head", "num_features")}


def _read(value: object, *names: str) -> dict[str, object]:
    return {name: getattr(value, name) for name in names}


def explain(stage: Stage, *, file: Path) -> Answer:
    """Tell base, weights, steps, versions and sizes."""
    if is_recipe(str(file)):
        raise OptionError(
            f"{file.name!r} is a recipe, and explain is for files of weights",
            asked=f"torchgraft explain {file}",
            write=f"torchgraft check {file}, or torchgraft show {file}",
        )
    stage(f"reading {file.name}")
    return describe_file(read_file(file))


def describe_file(file: Held) -> Answer:
    """Tell what is known of a file."""
    kinds = Counter(dtype for dtype, _ in file.tensors.values())
    sizes = ", ".join(f"{dtype} {count}" if len(kinds) > 1 else dtype for dtype, count in kinds.most_common())
    lines = [
        f"{file.path}: {plural(len(file.tensors), 'tensor')}, {size_text(file.size)}, {sizes or 'empty'}"
    ]
    data = {"file": str(file.path), "tensors": len(file.tensors), "bytes": file.size, "dtypes": dict(kinds)}
    record = file.record
    if record is None:
        lines.append("  no record of a model: weights alone")
        lines += [f"  {name:<9} {text}" for name, text in file.metadata.items()]
        return Answer("\n".join(lines), {**data, "recipe": None, "metadata": dict(file.metadata)})
    recipe = record.recipe
    weights = f"began as {recipe.weights}" * bool(recipe.weights)
    said = [
        ("base", recipe.base or f"a {record.base_class}{'' if record.differs else ' that no source knows'}"),
        ("differs", record.differs),
        ("weights", weights + (f", sha256 {recipe.sha256[:12]}" if recipe.sha256 else "")),
        *(("option", f"{name}={_shorten(value)}") for name, value in recipe.options),
        *(
            (f"step {number}", repr(step) + ", which is not written" * isinstance(step, Remark))
            for number, step in enumerate(recipe.steps, 1)
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("frozen", ", ".join(record.frozen)),
        ("ties", ", ".join(f"{name} = {first}" for name, first in record.ties.items())),
    ]
    lines += [f"  {label:<9} {text}" for label, text in said if text]
    return Answer(
        "\n".join(lines), {**data, "recipe": to_plain(recipe), **_read(record, "versions", "frozen", "ties")}
    )


def _shorten(value: object) -> str:
    """Write the value of an option; the config of a model may be long."""
    said = repr(value)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def size_text(count: int) -> str:
    """Write a number of bytes for people.

    Example:
        >>> size_text(46_827_520)
        '46.8 MB'
    """
    if count < 1000:
        return f"{count} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"

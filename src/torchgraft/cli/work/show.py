"""Show what a model consists of, without its weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from torchgraft.cli.output import Answer
from torchgraft.cli.stage import Stage
from torchgraft.cli.work import given
from torchgraft.cli.work.files import Held, held, size_text
from torchgraft.cli.work.selecting import read_target
from torchgraft.cli.work.tree import module_tree, name_tree
from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.history import history_of
from torchgraft.graph.tiers.tiers import Tiers
from torchgraft.select.selection import Selection
from torchgraft.show.explain import explain
from torchgraft.sizing import Shapes, shapes
from torchgraft.text import plural


def run(
    stage: Stage,
    *,
    model: str,
    select: str | None,
    every: bool,
    sizes: tuple[tuple[int, ...], ...],
    options: dict[str, object],
) -> Answer:
    """Show its tiers and its modules, or their shapes, or what a selector means in it."""
    target = None if select is None else read_target(select)
    if given.is_file(model) and (bare := held(Path(model))).record is None:
        return _names(bare, every=every, asked=target is not None or bool(sizes or options))
    net = given.structure(stage, model, options)
    if target is not None:
        stage("looking for the target")
        try:
            found = target.on(net, example=given.example(sizes, device="meta"))
        except TargetError as error:
            if error.near:
                error.write = f"--select {shlex.quote(str(select).replace(error.wrong, error.near[0]))}"
            raise
        return _selected(found, every=every)
    if sizes:
        stage("following the shapes")
        return _sized(shapes(net, *sizes), every=every)
    stage("looking for stem, stages and head")
    told = explain(net)
    modules = [
        {"path": path, "kind": type(part).__name__, "parameters": sum(p.numel() for p in part.parameters())}
        for path, part in net.named_modules(remove_duplicate=False)
    ]
    origin = history_of(net).origin
    data = attrs.asdict(told, filter=attrs.filters.exclude("tiers"), recurse=False)
    return Answer(
        f"{told}\n\n{module_tree(net, every=every)}",
        {
            **data,
            "base": origin.base if origin else "",
            "tiers": _tiers(told.tiers) if told.tiers else None,
            "modules": modules,
        },
    )


def _names(bare: Held, *, every: bool, asked: bool) -> Answer:
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


def _said(drawing: str) -> str:
    """Name the option where a drawing names what to call."""
    return drawing.replace(".table() lists", "--all lists").replace(".paths lists", "--all lists")


def _selected(found: Selection, *, every: bool) -> Answer:
    sites = [
        {
            "path": site.path,
            "kind": site.kind,
            "shapes": site.shapes(),
            "layout": site.layout,
            "calls": list(site.calls),
        }
        for site in found
    ]
    return Answer(found.table() if every else _said(repr(found)), {"asked": found.asked, "sites": sites})


def _sized(found: Shapes, *, every: bool) -> Answer:
    modules = [attrs.asdict(module) for module in found.modules]
    return Answer(found.table() if every else _said(repr(found)), {"model": found.model, "modules": modules})


def _tiers(tiers: Tiers) -> dict[str, object]:
    stages = [
        {
            "paths": list(stage.paths),
            "channels": stage.channels,
            "stride": stage.stride,
            "layout": stage.layout,
            "blocks": len(stage.blocks),
            "parameters": stage.parameters,
        }
        for stage in tiers.stages
    ]
    return {
        "stem": list(tiers.stem),
        "stages": stages,
        "head": list(tiers.head),
        "num_features": tiers.num_features,
    }

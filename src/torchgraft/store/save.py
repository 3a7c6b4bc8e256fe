"""Save a model: its tensors under their names, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
import torch
from torch import nn

from torchgraft.alignment.load.added import KEY as BASE
from torchgraft.alignment.load.added import tell_base
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.edits.freeze import WANTED
from torchgraft.errors import GraftError, OptionError, StoreError
from torchgraft.graph.checks import check_model
from torchgraft.graph.following import EXAMPLE
from torchgraft.graph.history import Origin, history_of
from torchgraft.recipe import Recipe, steps_of
from torchgraft.sources.recognise import recognised
from torchgraft.store.constants import buffers, measured, others
from torchgraft.store.cover import cover, turns
from torchgraft.store.examples import to_plain
from torchgraft.store.reading import KEY, SUFFIX
from torchgraft.store.rebuilding import rebuilt
from torchgraft.store.record import Record, digests, unlike, versions_for
from torchgraft.store.stock import DTYPES, Stock, axes_of, stock_of
from torchgraft.store.writing import byte_count, write
from torchgraft.text import literal, near, plural, spelled
from torchgraft.transform import replayed


@spelled
def save(
    model: nn.Module,
    path: str | Path,
    *,
    only: Literal["new"] | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Save a model as one file of safetensors that ``load`` makes it from again.

    Tensors stand under the names of the state dict, so that any reader of the format can use
    them; base, steps, modes and ties stand in the metadata. The file takes the place of an old one
    in one moment, and one model gives the same bytes always. Of a step that no text holds there is
    a remark in the file, and ``load`` then asks for a function that builds the edited model.

    Args:
        model: the model; it is only read.
        path: where to, ``<name>.safetensors``.
        only: ``"new"`` for the tensors that steps added or put in the place of others, such as
            adapters and a head. ``load_weights`` fills them into a model of the same steps, if
            its other tensors are as they are here.
        max_shard_size: bytes of tensors in one file, as a number or as text; a larger model
            becomes several files and an index beside them.

    Returns:
        The file, or the index.

    Raises:
        StoreError: it has tensors that a file cannot hold, there is no such folder, or no step
            added a tensor.
        ModelError: it is a wrapper or no model.
        OptionError: the size is none, or ``only`` something else.

    Example:
        >>> import tempfile
        >>> from torchgraft import load, pipe, swap_head
        >>> from torchvision.models import squeezenet1_1
        >>> model = pipe(squeezenet1_1(), swap_head(5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(model, f"{folder}/five.safetensors"))
        >>> all(again.state_dict()[key].equal(value) for key, value in model.state_dict().items())
        True
    """
    largest = byte_count(max_shard_size)
    check_model(model, "save")
    try:
        target = _target(Path(path))
        stock = stock_of(model)
        if only is not None:
            return write(target, *_added(model, stock, only), largest)
        record = _recorded(model, stock)
        tables = {path: buffers(model)[path].tensor.detach().contiguous() for path in record.tables}
        return write(target, {**stock.tensors, **tables}, {KEY: record.to_text()}, largest)
    except GraftError as error:
        said = "" if only is None else f", only={literal(only)}"
        error.asked = error.asked or f"save(model, {literal(str(path))}{said})"
        raise


def _added(model: nn.Module, stock: Stock, only: str) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
    """Take the tensors that steps added, and tell of the others."""
    if only != "new":
        raise OptionError('only is "new"', found=f"only={literal(only)}", write='only="new"')
    history = history_of(model)
    names = {stock.ties.get(name, name) for name in history.new}
    tensors = {name: tensor for name, tensor in stock.tensors.items() if name in names}
    if not tensors:
        raise StoreError(
            "no step added a tensor to this model",
            found=plural(len(history.steps), "step"),
            write="save(model, path), which holds all of it",
        )
    return tensors, {BASE: tell_base(model, tensors, history.steps)}


def _target(path: Path) -> Path:
    if path.suffix != SUFFIX or path.is_dir():
        raise StoreError(
            f"a model is saved as a file of safetensors, and {path.name!r} is "
            + ("a folder" if path.is_dir() else "named as something else"),
            write=literal(str(path / f"model{SUFFIX}" if path.is_dir() else path.with_suffix(SUFFIX))),
        )
    if not path.parent.is_dir():
        above = path.parent.parent
        names = [other.name for other in above.iterdir()] if above.is_dir() else []
        raise StoreError(
            f"there is no folder {str(path.parent)!r}",
            near=near(path.parent.name, names),
            write=f"Path({literal(str(path.parent))}).mkdir(parents=True)",
        )
    return path


def _recorded(model: nn.Module, stock: Stock) -> Record:
    """Write down how a model stands, with its base only where the base gives this model again."""
    history = history_of(model)
    graph = history.outline is not None
    example, takes = (None if e is None else to_plain(e) for e in (history.example, vars(model).get(EXAMPLE)))
    modules = dict(model.named_modules(remove_duplicate=False))
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in stock.tensors.items()}
    held = {path: vars(module)[WANTED] for path, module in modules.items() if WANTED in vars(module)}
    frozen = {
        name: not tensor.requires_grad
        for name, tensor in stock.tensors.items()
        if isinstance(tensor, nn.Parameter)
    }
    steps = steps_of(model)
    record = Record(
        recipe=Recipe("", steps=steps),
        base_class=history.outline.modules[""] if history.outline else type(model).__name__,
        graph=graph,
        versions=versions_for(""),
        portrait=digests(model),
        modes=turns({path: module.training for path, module in modules.items()}),
        waiting=_named(held),
        frozen=_named(frozen),
        ties=stock.ties,
        dtypes=cover(dtypes),
        axes=cover({name: " ".join(map(str, axes_of(t))) for name, t in stock.tensors.items()}),
        constants=measured(model),
        example=example,
        takes=takes if takes != example else None,
    )
    origin = history.origin or recognised(
        model, lambda base: replayed(base, steps, history.example) if graph else base
    )
    named = _with_base(record, origin, dtypes, model) if origin is not None else record
    return named if named.recipe.base else _with_tables(named, sorted(_storable(model)))


def _with_tables(record: Record, tables: Sequence[str]) -> Record:
    """Let buffers that no state dict holds stand in the file."""
    measures = {path: told for path, told in record.constants.items() if path not in tables}
    return attrs.evolve(record, tables=tables, constants=measures)


def _with_base(record: Record, origin: Origin, dtypes: Mapping[str, str], model: nn.Module) -> Record:
    """Name the base in a record, if it gives the model again; else whoever loads it has to know it."""
    recipe = Recipe(
        origin.base,
        weights=origin.weights,
        options=origin.options,
        steps=record.recipe.steps,
        sha256=origin.sha256,
    )
    known = attrs.evolve(record, recipe=recipe, versions=versions_for(origin.base))
    try:
        made = rebuilt(known)
    except StoreError as error:
        return attrs.evolve(record, differs=f"{origin.base}: {error.summary}, {error.found}")
    parts = unlike(made, record.portrait)
    if parts:
        what = f"differ in {', '.join(parts[:3])}, which the recipe does not tell of"
        return attrs.evolve(record, differs=f"{origin.base} and its steps {what}")
    tables = others(made, model)
    storable = _storable(model)
    lost = [path for path in tables if path not in storable]
    if lost:
        raise StoreError(
            f"{origin.base!r} gives other constants than the model has: {', '.join(lost[:3])}",
            found=f"{plural(len(lost), 'tensor')} that no state dict holds",
            write="register_buffer(...) for them, so that a file holds them",
        )
    built = {name: DTYPES.get(place.tensor.dtype) for name, place in tensors_of(made).items()}
    other = {name: "" if built.get(name) == dtype else dtype for name, dtype in dtypes.items()}
    return _with_tables(attrs.evolve(known, dtypes=cover(other)), tables)


def _storable(model: nn.Module) -> set[str]:
    """Find the buffers that no state dict holds and that a file could."""
    beside = {path: held.tensor for path, held in buffers(model).items()}
    return {p for p, t in beside.items() if t.dtype in DTYPES and t.layout is torch.strided and not t.is_meta}


def _named(flags: Mapping[str, bool]) -> list[str]:
    return cover({path: "yes" if flag else "" for path, flag in flags.items()}).get("yes", [])

"""Load: write what an alignment finds for the tensors of a model under edit, and give account."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchgraft.alignment.alignment import Alignment, Entry, Part
from torchgraft.alignment.load.accounts import LoadReport
from torchgraft.alignment.load.checkpoints import Checkpoint
from torchgraft.alignment.load.initialise import initialise
from torchgraft.alignment.load.tensors import Held, excluded, tensors_of, ties, write
from torchgraft.alignment.maps.apply import check_sources, made
from torchgraft.errors import AlignmentError, CheckpointError, CoverageError
from torchgraft.graph.draft import Draft
from torchgraft.graph.history import history_of, new_tensors
from torchgraft.select import Selector
from torchgraft.text import kind, literal, plural


@attrs.frozen
class Terms:
    """Say on which terms weights are loaded.

    Args:
        exclude: what stays as it is.
        strict: every tensor of both sides has to be loaded, but what is excluded.
        min_coverage: share of the model's tensors that has to be loaded.
        init: initialiser for what is not loaded; ``None`` to leave it as it is.
        allow_nan: load values that are not finite.
        decided: refuse where the source does not decide which tensor is which.
        allow_contradicted: load what structure says where behaviour contradicts it.
    """

    exclude: tuple[Selector, ...] = ()
    strict: bool = False
    min_coverage: float = 0.5
    init: str | None = None
    allow_nan: bool = False
    decided: bool = False
    allow_contradicted: bool = False


def load(
    draft: Draft,
    checkpoint: Checkpoint,
    alignment: Alignment,
    terms: Terms,
    out: frozenset[str] = frozenset(),
    into: str = "",
) -> LoadReport:
    """Load tensors into a model under edit; all is checked before anything is written.

    Args:
        draft: the model under edit.
        checkpoint: the tensors, and where they come from.
        alignment: which of them the tensors of the model are made from.
        terms: on which terms.
        out: names of tensors that stay as they are, besides those that the terms exclude.
        into: path of the part that is filled; the account is of that alone.

    Raises:
        CheckpointError: a tensor cannot be loaded.
        CoverageError: less is filled than the terms ask for.
        TargetError: what is to be excluded is not there.
    """
    out |= excluded(draft, tensors_of(draft.root), terms.exclude)
    new = frozenset(new_tensors(draft, history_of(draft.root)))
    return put(draft.root, checkpoint, alignment, terms, out, new, into)


def put(
    root: nn.Module,
    checkpoint: Checkpoint,
    alignment: Alignment,
    terms: Terms,
    out: frozenset[str] = frozenset(),
    new: frozenset[str] = frozenset(),
    into: str = "",
) -> LoadReport:
    """Load tensors into a model itself; all is checked before anything is written.

    Args:
        root: the model; its tensors get other values.
        checkpoint: the tensors, and where they come from.
        alignment: which of them the tensors of the model are made from.
        terms: on which terms.
        out: names of the tensors that stay as they are.
        new: names of the tensors that steps added or put in the place of others.
        into: path of the part that is filled; the account is of that alone.

    Raises:
        AlignmentError: behaviour contradicts where tensors come from.
        CheckpointError: a tensor cannot be loaded.
        CoverageError: less is filled than the terms ask for.
    """
    whole = tensors_of(root)
    held = {key: place for key, place in whole.items() if not into or key.startswith(f"{into}.")}
    values = {
        entry.target: _value(entry, alignment, checkpoint.tensors, held[entry.target].tensor)
        for entry in alignment.entries
        if entry.target not in out
    }
    against = [e.target for e in alignment.entries if e.evidence == "contradicted" and e.target in values]
    if against and not terms.allow_contradicted:
        raise AlignmentError(
            f"behaviour contradicts where {len(against)} of {plural(len(values), 'tensor')} come from",
            found=f"other values than in the source, first at {against[0]}",
            write="allow_contradicted=True",
        )
    report = _account(held, out, alignment, checkpoint, values, new)
    _check(report, terms, [key for entry in alignment.entries for key in entry.keys])
    left = [key for key in held if key not in {*report.loaded, *out, *report.counters}]
    with _as_in_training(root), torch.no_grad():
        write(whole, values)
        started = [key for key in left if terms.init is not None and _start(held[key], terms.init)]
    return attrs.evolve(report, initialised=tuple(started))


def _value(
    entry: Entry, alignment: Alignment, tensors: Mapping[str, torch.Tensor], place: torch.Tensor
) -> torch.Tensor:
    """Make the value for one tensor of the model, in its dtype.

    Raises:
        CheckpointError: there is no such value.
    """
    for key in entry.keys:
        found = tensors[key]
        quantised = found.is_quantized or is_traceable_wrapper_subclass(found)
        if found.is_meta or quantised or found.layout != torch.strided:
            what = "no values (it is on the meta device)" if found.is_meta else f"the layout {found.layout}"
            said = f"quantised values, {kind(found)}"
            raise CheckpointError(
                f"{key!r} cannot be loaded into {entry.target!r}",
                found=said if quantised else what,
                write="load_weights({name: t.dequantize() for name, t in <the tensors>.items()})"
                if quantised
                else "a checkpoint of dense tensors",
            )
    if place.is_meta:
        raise CheckpointError(
            "the model is on the meta device, where it has no values",
            found=entry.target,
            write='model.to_empty(device="cpu") before',
        )
    check_sources(entry, alignment.source, tensors)
    if entry.keys and entry.parts == (Part(entry.keys[0]),) and not entry.axes:
        value = tensors[entry.keys[0]].detach().reshape(place.shape)
    else:
        value = made(entry, alignment.source, tuple(place.shape), tensors)
    return value if value.dtype == place.dtype else _converted(value, place.dtype, entry)


def _converted(value: torch.Tensor, dtype: torch.dtype, entry: Entry) -> torch.Tensor:
    """Convert a value, where that loses no more than precision.

    Raises:
        CheckpointError: it would lose more.
    """
    converted = value if value.is_complex() and not dtype.is_complex else value.to(dtype)
    rounds = dtype.is_floating_point or dtype.is_complex
    if converted.dtype != dtype or not (rounds or converted.to(value.dtype).equal(value)):
        raise CheckpointError(
            f"{entry.target!r} is {_name(dtype)}, which cannot hold the values of {', '.join(entry.keys)}",
            found=_name(value.dtype),
            write=f"exclude=({literal(entry.target)},)",
        )
    return converted


def _account(
    held: Mapping[str, Held],
    out: frozenset[str],
    alignment: Alignment,
    checkpoint: Checkpoint,
    values: Mapping[str, torch.Tensor],
    new: frozenset[str],
) -> LoadReport:
    loaded = set(values)
    for names in ties(held):
        given = [key for key in names if key in values]
        loaded.update(names if given else ())
        for key in given[1:]:
            if not _equal(values[key], values[given[0]]):
                raise CheckpointError(
                    f"{given[0]!r} and {key!r} are one tensor in the model and two in the checkpoint",
                    found="different values",
                    write=f"exclude=({literal(key)},)",
                )
    apart = tuple(key for key in held if key in new and key not in {*loaded, *out})
    mismatched = tuple(m for m in alignment.mismatched if m.target not in {*loaded, *out, *apart})
    ambiguous = tuple(a for a in alignment.ambiguous if a.target not in {*loaded, *out, *apart})
    known = {*loaded, *out, *apart, *(m.target for m in mismatched), *(a.target for a in ambiguous)}
    lacking = [key for key in held if key not in known]
    used = {key for entry in alignment.entries for key in entry.keys}
    used |= {m.source for m in alignment.mismatched} | {k for a in alignment.ambiguous for k in a.candidates}
    first = {entry.target: entry.keys[0] for entry in alignment.entries if entry.keys}
    dtypes = {t: (checkpoint.tensors[key].dtype, values[t].dtype) for t, key in first.items() if t in values}
    return LoadReport(
        tuple(key for key in held if key in loaded),
        mismatched,
        tuple(key for key in lacking if not held[key].counts),
        ambiguous,
        tuple(key for key in held if key in out),
        tuple(key for key in lacking if held[key].counts),
        tuple(key for key in checkpoint.tensors if key not in used),
        converted=tuple((key, _name(was), _name(now)) for key, (was, now) in dtypes.items() if was != now),
        evidence=tuple(Counter(e.evidence for e in alignment.entries if e.target in values).items()),
        nan=tuple(key for key, value in values.items() if not _finite(value)),
        unwrapped=checkpoint.unwrapped,
        left=checkpoint.left,
        prefix=checkpoint.prefix,
        added=checkpoint.added,
        inside=checkpoint.inside,
        apart=apart,
    )


def _check(report: LoadReport, terms: Terms, used: Sequence[str]) -> None:
    """Hold a loading against its terms; the checkpoint's tensors that were used tell which part is meant.

    Raises:
        AlignmentError: it is not decided which tensor is which.
        CheckpointError: values are not finite.
        CoverageError: less is filled than was asked for.
    """
    if terms.decided and report.ambiguous:
        keys = [one.target for one in report.ambiguous]
        part = "".join(os.path.commonprefix(used).rpartition(".")[:2])  # noqa: RUF071 - these are no paths
        apart = part and any(not key.startswith(part) for key in report.unexpected)
        raise AlignmentError(
            f"names and shapes do not decide what {plural(len(keys), 'tensor')} of the model stand for",
            found=", ".join(keys[:4]) + ", ..." * (len(keys) > 4),
            write=f"prefix={literal(part)}"
            if apart
            else "transfer(<a model with these weights>, <this model>), or exclude=[...] to leave them",
        )
    if report.nan and not terms.allow_nan:
        raise CheckpointError(
            f"{plural(len(report.nan), 'tensor')} would hold values that are not finite",
            found=", ".join(report.nan[:4]),
            write="allow_nan=True",
        )
    short = report.ratio < terms.min_coverage
    loose = report.mismatched or report.missing or report.ambiguous or report.unexpected or report.apart
    if short or (terms.strict and loose):
        asked = f"min_coverage asks for {100 * terms.min_coverage:.0f} %" if short else "strict asks for all"
        lines = str(report).splitlines()
        raise CoverageError(
            f"{lines[0]}, and {asked}",
            found="\n         ".join(" ".join(line.split()) for line in lines[1:]),
            write=("transfer(<a model with these weights>, <a model>)" if terms.decided else 'by="structure"')
            if short and report.unexpected and report.missing
            else f"min_coverage={int(100 * report.ratio) / 100}" * short or "strict=False",
        )


def _start(place: Held, initialiser: str) -> bool:
    return initialise(place.module, place.name, place.tensor, initialiser)


@contextlib.contextmanager
def _as_in_training(root: nn.Module) -> Iterator[None]:
    """Let modules that prepare something for evaluation forget it, and prepare it anew."""
    modes = [(module, module.training) for module in root.modules()]
    prepared = [m for m, training in modes if not training and type(m).train is not nn.Module.train]
    for module in prepared:
        type(module).train(module, True)
    yield
    for module in prepared:
        type(module).train(module, False)
    for module, training in modes:
        module.training = training


def _finite(value: torch.Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    wide = value.float() if value.dtype.itemsize == 1 else value
    # A sum is quick and needs no memory; it may also overflow.
    return bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 - NaN is not itself


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

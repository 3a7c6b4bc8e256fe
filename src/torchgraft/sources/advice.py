"""Advice for a file of weights that does not go into a model: which call it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from torchgraft.alignment.load.accounts import LoadReport
from torchgraft.alignment.load.tensors import tensors_of
from torchgraft.sources.options import written
from torchgraft.sources.registry import REGISTERED
from torchgraft.sources.skeleton import skeleton
from torchgraft.sources.source import Found
from torchgraft.text import literal

CLASSES = ("num_classes", "num_labels")
"""What builders call the number of classes."""
_STEM = re.compile(r"[a-z]*")
_TRIED = 8
"""Models of one family that are tried."""
Shapes = Mapping[str, tuple[int, ...]]


def advice(
    found: Found, weights: str | bool, options: Mapping[str, object], held: Shapes, report: LoadReport
) -> str:
    """Write the line with which a file goes in; what is written was tried on shapes.

    Args:
        found: which model of which source was asked for.
        weights: the file.
        options: options of the builder.
        held: shapes of the tensors of the file.
        report: the account of loading it by names.

    Returns:
        A call with the number of classes of the file, one of a model of the same family, or one
        that takes what fits.
    """
    for other, tried in (*_classes(found, options, report), *_family(found, options, report)):
        if _fits(other, tried, held):
            return written(other, {"weights": weights, **tried})
    plain = written(found, options)
    names = set(report.loaded) | {one.target for one in report.mismatched}
    if len(names) < max(len(held), report.wanted) / 2:
        return f'load_weights({literal(weights)}, by="structure")({plain}), which goes by what tensors do'
    if report.missing or report.unexpected:
        return f"partial_load({plain}, {literal(weights)}), which takes what fits"
    said = literal(found.said or found.base)
    return f"get_model({said}, weights={literal(weights)}, <the options of the file>)"


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a state dict."""
    return {key: tuple(held.tensor.shape) for key, held in tensors_of(model).items()}


def computed(model: nn.Module) -> frozenset[str]:
    """Name the buffers that a builder computes and nobody learns: tables of indices, masks, counts."""
    return frozenset(
        key
        for key, held in tensors_of(model).items()
        if not isinstance(held.tensor, nn.Parameter)
        and not (held.tensor.is_floating_point() or held.tensor.is_complex() or held.tensor.is_quantized)
    )


Tried = tuple[Found, Mapping[str, object]]


def _classes(found: Found, options: Mapping[str, object], report: LoadReport) -> Iterator[Tried]:
    """Find numbers of classes that a file may have: a width that differs where all names agree."""
    if report.missing or report.unexpected:
        return
    known = found.source.signature(found.name, options).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in known.values())
    counts = {
        was
        for one in report.mismatched
        for was, now in zip(one.found, one.asked, strict=False)
        if was != now and len(one.found) == len(one.asked)
    }
    for option in CLASSES:
        if option in known or (takes_any and option == CLASSES[0]):
            yield from ((found, {**options, option: count}) for count in sorted(counts)[:4])


def _family(found: Found, options: Mapping[str, object], report: LoadReport) -> Iterator[Tried]:
    """Find models that are called alike, where some names agree."""
    stem = _STEM.match(found.name)
    if not report.loaded or stem is None or not stem[0] or found.source is REGISTERED:
        return  # builders of the user may do anything, and are run for what they are asked for alone
    alike = [name for name in found.source.names() if name.startswith(stem[0]) and name != found.name]
    for name in sorted(alike, key=lambda one: (abs(len(one) - len(found.name)), one))[:_TRIED]:
        said = f"{found.source.name}/{name}" if "/" in found.said else name
        yield Found(found.source, name, said), options


def _fits(found: Found, options: Mapping[str, object], held: Shapes) -> bool:
    """Tell whether a model has the shapes of a file, and takes these options at all."""
    try:
        model = skeleton(lambda: found.source.build(found.name, options))
    except Exception:  # noqa: BLE001 - a builder may raise anything at options that it was never given
        return False
    shapes, left_out = shapes_of(model), computed(model)
    return held.keys() <= shapes.keys() and all(
        held.get(key, shape if key in left_out else None) == shape for key, shape in shapes.items()
    )

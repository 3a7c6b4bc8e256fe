"""Read an operation as people say it: its name, its settings, and where it stands."""

from __future__ import annotations

from torchgraft.alignment.check.divergence import Site
from torchgraft.alignment.check.trail import Trail
from torchgraft.alignment.match.kinds import kind_of
from torchgraft.alignment.match.operations import MOVES
from torchgraft.graph.deep.record import Op

# What a signal is seen as, and how it lies in memory, is no part of what is computed.
_TELLING = (
    "slice select split split_with_sizes chunk unbind index index_select gather cat stack flip roll unfold"
)
_VIEWS = MOVES - frozenset(_TELLING.split())
# Settings that change nothing in evaluation mode, or nothing but where and how numbers are held.
_UNHEEDED = (
    "momentum output_mask cudnn_enabled cudnn_enable benchmark benchmark_enabled deterministic allow_tf32 "
    "dtype layout device scales scales_h scales_w pin_memory memory_format non_blocking implicit "
    "half_to_float return_debug_mask compute_log_sumexp"
)
_IDLE = frozenset(_UNHEEDED.split())
_BARE = ("other", "exponent")
_KINDS = ("linear", "conv", "norm")


def name_of(op: Op) -> str:
    """Name an operation: ``layer_norm``."""
    if is_draw(op):
        return "dropout"
    name = op.name.strip("_").removeprefix("native_").removesuffix("_with_indices")
    if "batch_norm" in name:
        return "batch_norm"
    return "attention" if name.startswith("scaled_dot_product") else name


def family(op: Op, trail: Trail) -> str:
    """Say what an operation is, whichever of several ways to call it was taken."""
    kind = kind_of(op, trail.record.shapes, trail.maker)
    return kind.name if kind is not None and kind.name in _KINDS else name_of(op)


def is_view(op: Op) -> bool:
    """Return True if an operation gives what it was given, seen anew."""
    return op.func is None or op.name.rstrip("_") in _VIEWS


def is_draw(op: Op) -> bool:
    """Return True if an operation draws what is dropped out."""
    return op.name.startswith("bernoulli")


def settings(op: Op, trail: Trail) -> dict[str, object]:
    """Return what an operation was told besides its tensors, with the defaults filled in."""
    if op.func is None:
        return {}
    found: dict[str, object] = {}
    for place, argument in enumerate(op.func._schema.arguments):
        value = (
            op.args[place] if place < len(op.args) else op.kwargs.get(argument.name, argument.default_value)
        )
        number = isinstance(value, (int, float))
        if argument.name not in _IDLE and (number or "Tensor" not in str(argument.type)):
            found[argument.name] = _plain(argument.name, value, op, trail)
    return found


def site_of(number: int, trail: Trail) -> Site:
    """Say where an operation stands."""
    op = trail.record.ops[number]
    keys = dict.fromkeys(key for value in op.inputs for key in keys_of(value, trail))
    kinds = [place.kind for place in trail.used.get(number, ()) if place.kind in _KINDS]
    kind = kinds[0] if kinds else family(op, trail)
    return Site(trail.record.scopes[op.scope].path, tuple(keys), kind)


def keys_of(value: int, trail: Trail) -> tuple[str, ...]:
    """Name the tensors of the model that a value is made of, and nothing else."""
    given = trail.record.given.get(value)
    return (given,) if given else trail.places.operands.leaves(value)


def said(op: Op, trail: Trail) -> str:
    """Write an operation with its numbers: ``leaky_relu(negative_slope=0.2)``, ``mul(0.5)``."""
    told = {k: v for k, v in settings(op, trail).items() if v and (isinstance(v, float) or k in _BARE)}
    if is_draw(op):
        return f"dropout(p={1 - float(str(told['p'])):g})"
    words = [f"{v:g}" if k in _BARE else f"{k}={v:g}" for k, v in told.items()]
    return f"{name_of(op)}({', '.join(words)})" if words else name_of(op)


def _plain(name: str, value: object, op: Op, trail: Trail) -> object:
    """Return a setting that can be compared: sequences as tuples, axes counted from the front."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(name, item, op, trail) for item in value)
    if name in ("dim", "dims", "dim0", "dim1") and isinstance(value, int) and op.inputs:
        return value % max(len(trail.record.shapes[op.inputs[0]]), 1)
    return value

"""Wrappers: find the one mapping of tensors in what a training wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np
import torch

from torchgraft.alignment.load.stored import Numbers
from torchgraft.errors import CheckpointError
from torchgraft.text import kind, literal, near

Way = tuple[str, ...]

_USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_AVERAGED = frozenset(("ema", "swa", "averaged", "shadow"))
_DEEPEST = 8


@attrs.frozen(eq=False)
class Found:
    """A mapping of tensors, and the way to it.

    Args:
        tensors: the tensors by name.
        entered: keys of the wrappers that were entered, the outer one first.
        left: ways to the other weights that stand beside it, written with dots.
    """

    tensors: dict[str, torch.Tensor] = attrs.field(repr=False)
    entered: Way = ()
    left: tuple[str, ...] = ()


def unwrap(value: object, *, ema: bool = False, key: str = "") -> Found:
    """Find the weights in what a checkpoint holds.

    Args:
        value: what the checkpoint holds.
        ema: take the running average of the weights, as which a teacher counts, and not the weights.
        key: name of a wrapper to enter, where several hold weights.

    Raises:
        CheckpointError: there are no weights, or several and nothing tells which are meant.
    """
    sets: dict[Way, dict[str, torch.Tensor]] = {}
    _collect(value, (), sets, set(), _tensor)
    if not sets:
        _collect(value, (), sets, set(), _array)
    if not sets:
        raise _none(value)
    way = _choose(list(sets), ema=ema, key=key)
    return Found(sets[way], way, tuple(".".join(other) for other in sets if other != way))


def _collect(
    value: object,
    way: Way,
    sets: dict[Way, dict[str, torch.Tensor]],
    seen: set[int],
    read: Callable[[object], torch.Tensor | None],
) -> None:
    """Collect the mappings of tensors that hold no others; what is held twice is looked at once."""
    if not isinstance(value, Mapping) or _is_optimizer(value) or id(value) in seen or len(way) > _DEEPEST:
        return
    seen.add(id(value))
    known = len(sets)
    for name, inner in value.items():
        if isinstance(name, str):
            _collect(inner, (*way, name), sets, seen, read)
    named = {k: read(held) for k, held in value.items() if isinstance(k, str)}
    tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
    # Numbers alone are an epoch, a loss, the state of a scaler, unless there is nothing else.
    weighs = any(t.ndim for t in tensors.values()) or (not way and len(tensors) == len(value))
    if tensors and weighs and len(sets) == known:
        sets[way] = tensors


def _tensor(value: object) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) else None


def _array(value: object) -> torch.Tensor | None:
    """Return what an array of numpy holds as a tensor."""
    array = value.array if isinstance(value, Numbers) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        return None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _choose(ways: list[Way], *, ema: bool, key: str) -> Way:
    """Choose the weights asked for, the only ones, or those under a usual name."""
    if key:
        kept = [way for way in ways if key in way]
        if not kept:
            names = list(dict.fromkeys(name for way in ways for name in way))
            close = near(key, names) or tuple(names)
            raise CheckpointError(
                f"this checkpoint holds no weights under {key!r}",
                found=", ".join(names[:6]) or "the weights alone",
                near=close,
                write=f"key={literal(close[0])}" if close else "no key",
            )
        ways = kept
    averaged = [way for way in ways if _is_averaged(way)]
    taught = [way for way in ways if "teacher" in way]
    averaged = taught if ema and not averaged else averaged
    if ema and not averaged:
        raise CheckpointError(
            "this checkpoint holds no average of the weights",
            found=_said(ways),
            write="ema=False",
        )
    ways = averaged if ema else [way for way in ways if way not in averaged] or ways
    if len(ways) > 1:
        ways = next(
            ([w for w in ways if usual in w] for usual in _USUAL if any(usual in w for w in ways)), ways
        )
    if len(ways) > 1:
        raise CheckpointError(
            "this checkpoint holds several sets of weights",
            found=_said(ways),
            write="ema=True" if taught else f"key={literal(ways[0][-1])}",
        )
    return ways[0]


def _is_averaged(way: Way) -> bool:
    """Tell whether the keys say that the weights are a running average."""
    return any(_AVERAGED & set(name.lower().replace("-", "_").split("_")) for name in way)


def _is_optimizer(value: Mapping[object, object]) -> bool:
    return "param_groups" in value and "state" in value


def _said(ways: list[Way]) -> str:
    return ", ".join(".".join(way) or "the weights alone" for way in ways[:6])


def _none(value: object) -> CheckpointError:
    if isinstance(value, Mapping) and _is_optimizer(value):
        return CheckpointError(
            "this is the state of an optimizer, which has no weights",
            found="state, param_groups",
            write="the file with the weights of the model",
        )
    names = [str(name) for name in value][:6] if isinstance(value, Mapping) else []
    return CheckpointError(
        "this holds no weights",
        found=", ".join(names) or ("an empty mapping" if isinstance(value, Mapping) else kind(value)),
        write="a mapping of names to tensors, as model.state_dict() gives it",
    )

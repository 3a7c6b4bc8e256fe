"""Modules that are alike: what was followed once need not be followed again.

Following a forward sees classes, modes, plain attributes and the shapes of tensors, never
their values. Two modules that agree in all that a forward read of these have the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import nn

from torchgraft.graph.clone import copy_graph
from torchgraft.graph.hooking import HOOKS
from torchgraft.graph.settings import UNPLAIN, is_plain, settings_hold, snapshot
from torchgraft.graph.trace import Traced
from torchgraft.graph.watched import STORES

Signature = tuple[object, nn.Module]


class Alike:
    """Keep the graphs of what was followed, for modules that are alike."""

    def __init__(self) -> None:
        self._known: dict[object, list[Traced]] = {}

    def signature(self, module: nn.Module, hints: Mapping[str, object]) -> Signature | None:
        """Sum up what a module is made of; ``None`` where it is followed faster than compared."""
        if type(module).forward is nn.Sequential.forward:
            return None
        passed = [(name, repr(value)) for name, value in hints.items()]
        return (_module(module, {}), tuple(passed)), module

    def get(self, signature: Signature | None) -> Traced | None:
        """Return graphs of its own for a module that has what a known one was seen to read."""
        key, module = signature or (None, nn.Module())
        for known in self._known.get(key, ()):
            if settings_hold(module, known.settings) is None:
                return _copied(known)
        return None

    def keep(self, signature: Signature | None, traced: Traced) -> None:
        """Keep the graphs of a module that was followed without example values."""
        if signature is not None and not traced.by_values and not traced.constants:
            self._known.setdefault(signature[0], []).append(_copied(traced))


def _copied(traced: Traced) -> Traced:
    evaluate = copy_graph(traced.evaluate)
    train = evaluate if traced.train is traced.evaluate else copy_graph(traced.train)
    return attrs.evolve(traced, train=train, evaluate=evaluate)


def _module(module: nn.Module, seen: dict[int, int]) -> object:
    """Sum up a module and those in it; what is met again is a number."""
    if id(module) in seen:
        return seen[id(module)]
    seen[id(module)] = len(seen)
    held = vars(module)
    tensors = [(n, _tensor(t, seen)) for s in STORES[:2] for n, t in held[s].items()]
    children = [(n, None if c is None else _module(c, seen)) for n, c in held["_modules"].items()]
    # Plain attributes count where a forward reads them; of others it may read anything.
    others = [
        (name, _tensor(value, seen) if isinstance(value, torch.Tensor) else seen.get(id(value), id(value)))
        for name, value in held.items()
        if name not in (*STORES, "reset_parameters")
        and (not _is_compared(value) or (name in HOOKS and value))
    ]
    return type(module), module.training, tuple(tensors), tuple(children), tuple(others)


def _is_compared(value: object) -> bool:
    """Return True if a value is compared as a whole wherever a forward reads it."""
    copied = snapshot(value)
    return copied is not UNPLAIN and is_plain(copied)


def _tensor(tensor: torch.Tensor | None, seen: dict[int, int]) -> object:
    if tensor is None:
        return None
    number = seen.setdefault(id(tensor), len(seen))
    return number, type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad

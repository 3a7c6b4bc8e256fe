"""Ways to align that people use: by names, by position, by the order of calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn


def equal_names(source: nn.Module, target: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Take the tensor of the same name, if the shapes agree."""
    held = source.state_dict()
    wanted = target.state_dict()
    return {k: held[k] for k, v in wanted.items() if k in held and held[k].shape == v.shape}


def longest_suffix(source: nn.Module, target: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Take the tensor of the same shape whose name ends in the most equal words.

    Of several the one whose name is of the most alike length; if there are several such, none.
    """
    held = source.state_dict()
    found = {}
    for key, wanted in target.state_dict().items():
        fitting = [other for other, value in held.items() if value.shape == wanted.shape]
        ranks = {other: (_common(key, other), -abs(key.count(".") - other.count("."))) for other in fitting}
        best = max(ranks.values(), default=(0, 0))
        nearest = [other for other, rank in ranks.items() if rank == best]
        if best[0] and len(nearest) == 1:
            found[key] = held[nearest[0]]
    return found


def _common(one: str, other: str) -> int:
    """Count the words that two names end in."""
    length = 0
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        length += 1
    return length


def position_and_shape(source: nn.Module, target: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Give the k-th tensor of a shape the k-th of that shape, in the order of registration."""
    held, wanted = source.state_dict(), target.state_dict()
    return {
        key: held[other]
        for key, other in _kth_of_kind(
            ((k, tuple(v.shape)) for k, v in held.items()), ((k, tuple(v.shape)) for k, v in wanted.items())
        )
    }


def call_order(source: nn.Module, target: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Give the k-th leaf module called, of a type and shapes, the tensors of the k-th such."""
    found = {}
    for path, other in _kth_of_kind(_called(source, x), _called(target, x)):
        values = source.get_submodule(other).state_dict()
        found |= {f"{path}.{name}": value for name, value in values.items()}
    return found


def _called(model: nn.Module, x: Tensor) -> list[tuple[str, Hashable]]:
    """List the leaf modules that hold tensors, in the order of their first calls."""
    calls: dict[str, Hashable] = {}

    def note(path: str, module: nn.Module) -> None:
        shapes = tuple((name, tuple(value.shape)) for name, value in module.state_dict().items())
        calls.setdefault(path, (type(module).__name__, shapes))

    hooks = [
        module.register_forward_pre_hook(lambda module, _, path=path: note(path, module))
        for path, module in model.named_modules()
        if not any(module.children()) and module.state_dict()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return list(calls.items())


def _kth_of_kind(
    held: Iterable[tuple[str, Hashable]], wanted: Iterable[tuple[str, Hashable]]
) -> list[tuple[str, str]]:
    """Pair the k-th wanted of a kind with the k-th held of it, where there are enough."""
    of_kind = defaultdict(list)
    for name, kind in held:
        of_kind[kind].append(name)
    queues = {kind: iter(names) for kind, names in of_kind.items()}
    paired = ((name, next(queues.get(kind, iter(())), None)) for name, kind in wanted)
    return [(name, other) for name, other in paired if other is not None]

"""Watch which operations the own forward of a module runs, where it cannot be followed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from torch.overrides import TorchFunctionMode

from torchgraft.graph.constant_values import Constants
from torchgraft.graph.deep.record import Scopes, record_with
from torchgraft.graph.draft import Draft
from torchgraft.graph.nodes import operation_name, plain_name


class _Names(TorchFunctionMode):
    """Note the operations of the outermost module."""

    def __init__(self, scopes: Scopes, names: set[str]) -> None:
        super().__init__()
        self._scopes, self._names = scopes, names

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if self._scopes.current == 0:
            self._names.add(operation_name(plain_name(func)))
        return func(*args, **(kwargs or {}))


def own_operations(draft: Draft, path: str) -> frozenset[str] | None:
    """Name the operations that the forward of a module runs itself, in both modes.

    Args:
        draft: the draft.
        path: where the module stands.

    Returns:
        The names; ``None`` where the module does not run on meta tensors.
    """
    found: set[str] = set()
    try:
        calls = draft.record(path)
        for call, training in itertools.product(calls, (False, True)):
            scopes = Scopes(training, Constants())
            with _Names(scopes, found):
                record_with(scopes, draft.get(path), (call.args, call.kwargs))
    except Exception:  # noqa: BLE001 - any forward may fail in any way
        return None
    return frozenset(found) if calls else None

"""Watch which operations the own forward of a module runs, where it cannot be followed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.overrides import TorchFunctionMode

from torchgraft.graph.draft import Draft
from torchgraft.graph.nodes import operation_name, plain_name
from torchgraft.graph.run import Recorder, run_on_meta


class _Names(TorchFunctionMode, Recorder):
    """Note the operations of the outermost module."""

    def __init__(self, training: bool) -> None:
        TorchFunctionMode.__init__(self)
        Recorder.__init__(self, training)
        self.depth, self.names = 0, set[str]()

    def call(self, shadow: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Answer a call one level deeper."""
        self.depth += 1
        try:
            return super().call(shadow, args, kwargs)
        finally:
            self.depth -= 1

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if self.depth == 1:
            self.names.add(operation_name(plain_name(func)))
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
            with _Names(training) as watch:
                run_on_meta(draft.get(path), call.args, call.kwargs, training=training, recorder=watch)
            found |= watch.names
    except Exception:  # noqa: BLE001 - any forward may fail in any way
        return None
    return frozenset(found) if calls else None

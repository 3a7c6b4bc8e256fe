"""Record a run on real values, and look into it or alter it while it runs.

The parameters are lazy clones, so a forward that writes into them leaves the model alone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from torchgraft.graph.cow import cow
from torchgraft.graph.deep.record import Record, Scopes, Step, Values, record_with
from torchgraft.graph.run import Arguments


def record_live(
    model: nn.Module,
    arguments: Arguments,
    step: Step | None = None,
    *,
    state: Mapping[str, torch.Tensor] | None = None,
    double: bool = False,
) -> Record:
    """Run a model in evaluation mode on real values, and record what it does.

    Args:
        model: the model; it is only read.
        arguments: positional and keyword arguments that it takes.
        step: runs an operation, or does something else in its place; the usual way if there is none.
        state: tensors to use in the place of some of the model's, by name.
        double: hand out the model's floating-point tensors in double precision.

    Returns:
        The record, numbered as that of any other run of the same model.
    """
    scopes = _Live(double=double)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if state and name in state:
            scopes.put(tensor, state[name].detach().to(device=tensor.device, dtype=tensor.dtype))
    return record_with(scopes, model, arguments, step)


class _Passing(Values):
    """Number tensors without keeping them: a run on real values needs its memory back."""

    def hold(self, tensor: torch.Tensor) -> object:
        identity = id(tensor)
        return weakref.ref(tensor, lambda _: self.forget(identity))


class _Live(Scopes):
    """Hand out lazy clones in the place of the model's tensors."""

    is_live = True

    def __init__(self, *, double: bool) -> None:
        super().__init__(training=False, values=_Passing())
        self._double = double
        self._clones: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        yield

    def given(self, value: object) -> object:
        return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), value)

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._clones.get(id(tensor))
        return self.put(tensor, cow(tensor)) if known is None else known

    def put(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Hand out a value in the place of a tensor of the model."""
        value = value.double() if self._double and value.is_floating_point() else value
        if isinstance(tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=tensor.requires_grad)
        self._clones[id(tensor)] = value
        return value

    def noted(self, value: object) -> object:  # noqa: ARG002 - nothing is kept of real values
        return None

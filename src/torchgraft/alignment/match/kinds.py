"""One name for operations that do the same: which parameters they use, and in which form.

A 1x1 convolution and a convolution over the whole map are linear; scaling and shifting
channels is affine, whichever normalisation comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import cast

import attrs
import torch

from torchgraft.graph.deep.record import Op, Ref

Form = Callable[[torch.Tensor], torch.Tensor]


@attrs.frozen(eq=False)
class Slot:
    """One parameter operand of a use.

    Args:
        op: the operation that it enters.
        value: the value that enters.
        form: brings it to the form in which operands are compared: a view of it.
        rows: which rows of that form are meant; ``None`` for all.
    """

    op: int
    value: int
    form: Form
    rows: torch.Tensor | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring a tensor that enters to the form in which operands are compared."""
        formed, rows = self.form(tensor), self.rows
        if rows is None:
            return formed
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows) and bool((rows[1:] > rows[:-1]).all()):
            return formed[first:last]  # a view: it can be laid over the parameter
        return formed[rows.to(formed.device)]

    def put(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Write values, in the form in which operands are compared, into a tensor that enters."""
        formed = self.form(tensor)
        if self.rows is None:
            formed.copy_(values.reshape(formed.shape))
        else:
            formed[self.rows.to(formed.device)] = values.to(formed.dtype)
        if formed.numel() < tensor.numel():  # a batch of one matrix
            tensor[1:] = tensor[:1].clone()


@attrs.frozen
class Kind:
    """What an operation with parameters is.

    Args:
        name: ``linear``, ``conv``, ``norm``, ``affine``, or the name of the operation.
        hyper: what else has to agree: kernel, stride, groups.
        slots: the parameters it may use: name, place among the arguments, form to compare.
        signal: the place of the activation.
    """

    name: str
    hyper: tuple[object, ...]
    slots: tuple[tuple[str, int, Form], ...]
    signal: int


def _same(t: torch.Tensor) -> torch.Tensor:
    return t


def flatten(t: torch.Tensor) -> torch.Tensor:
    """Return all numbers of a tensor in a row."""
    return t.reshape(-1)


def _turned(t: torch.Tensor) -> torch.Tensor:
    return t.t()


def flatten_rows(t: torch.Tensor) -> torch.Tensor:
    """See each output's elements in a row."""
    return t.flatten(1)


def squeeze(t: torch.Tensor) -> torch.Tensor:
    """Leave out axes of one."""
    return t.squeeze()


def kind_of(op: Op, shapes: Sequence[torch.Size], signals: Container[int]) -> Kind | None:
    """Say what an operation is that has its parameters in fixed places.

    Args:
        op: the operation.
        shapes: shapes of all values.
        signals: the values that come from the inputs.

    Returns:
        What it is; ``None`` for sums, products and whatever else takes parameters anywhere.
    """
    name = op.name.rstrip("_")
    if name in ("convolution", "_convolution"):
        return _convolution(op, shapes)
    if name == "addmm":
        return Kind("linear", (), (("b", 0, flatten), ("w", 2, _turned)), 1)
    if name in ("mm", "matmul"):
        return Kind("linear", (), (("w", 1, _turned),), 0)
    if name == "linear":
        return Kind("linear", (), (("w", 1, _same), ("b", 2, flatten)), 0)
    if name == "bmm":
        return Kind("linear", (), (("w", 1, _first_turned),), 0)
    if "batch_norm" in name:
        slots = tuple((slot, place, flatten) for place, slot in enumerate("wbmv", 1))
        return Kind("norm", (), slots, 0)
    if name == "native_layer_norm":
        return Kind("affine", (), (("w", 2, flatten), ("b", 3, flatten)), 0)
    if name == "native_group_norm":
        return Kind("affine", (), (("w", 1, flatten), ("b", 2, flatten)), 0)
    if name == "_fused_rms_norm":
        return Kind("affine", (), (("w", 2, flatten),), 0)
    if name == "addcmul":
        signal = next((at for at in (1, 2) if getattr(op.args[at], "value", None) in signals), 1)
        return Kind("affine", (), (("b", 0, flatten), ("w", 3 - signal, flatten)), signal)
    return None


def _first_turned(t: torch.Tensor) -> torch.Tensor:
    """Take the one matrix of a batch whose matrices are all the same one."""
    return t[0].t()


def _convolution(op: Op, shapes: Sequence[torch.Size]) -> Kind:
    signal, weight = (cast("Ref", item).value for item in op.args[:2])
    stride, padding, dilation, transposed, _, groups = op.args[3:9]
    kernel, size = tuple(shapes[weight][2:]), tuple(shapes[signal][2:])
    steps = tuple(cast("Sequence[int]", stride))
    dense = groups == 1 and not transposed
    bias = ("b", 2, flatten)
    if dense and all(k == 1 for k in kernel):
        hyper = steps if any(s > 1 for s in steps) else ()
        return Kind("linear", hyper, (("w", 1, flatten_rows), bias), 0)
    if dense and kernel == size and not any(cast("Sequence[int]", padding)):
        return Kind("linear", (), (("w", 1, flatten_rows), bias), 0)
    whole = (kernel, steps, tuple(cast("Sequence[int]", dilation)), bool(transposed), groups)
    return Kind("conv", whole, (("w", 1, _same), bias), 0)

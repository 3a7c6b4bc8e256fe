"""Run tensor code for its shapes: tensors are on the meta device, and small constants keep their values.

Much code that only moves shapes reads a few numbers on the way: a preset checks that no
standard deviation is zero, a random crop draws its corner. What follows from constants alone is
computed, so such numbers can be read; what follows from an input cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

Operation = Callable[..., object]

_LARGEST = 1024
_META, _CPU = torch.device("meta"), torch.device("cpu")
_MADE: tuple[Operation, ...] = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
_READ: tuple[Operation, ...] = (torch.Tensor.tolist, torch.Tensor.numpy)


class Constants:
    """The values of small tensors that follow from constants alone.

    What is real is never written to: values are copied when they are first used.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def learn(self, twin: torch.Tensor, source: torch.Tensor) -> None:
        """Note that a meta tensor stands for another tensor."""
        self._values.pop(id(twin), None)
        if not source.is_meta and source.numel() <= _LARGEST:
            with _disable_current_modes():
                self._values[id(twin)] = twin, source.detach().to(_CPU, copy=True)

    def twin(self, value: object) -> object:
        """Return the meta tensor of a tensor, always the same; anything else is returned as it is."""
        if not isinstance(value, torch.Tensor) or value.is_meta:
            return value
        if id(value) not in self._twins:
            twin = torch.empty_like(value, device=_META)
            self._twins[id(value)] = value, twin
            self.learn(twin, value)
        return self._twins[id(value)][1]

    def knows(self, twin: torch.Tensor) -> bool:
        """Return True if the values of a meta tensor are known."""
        return id(twin) in self._values

    def value(self, twin: object) -> object:
        """Return what a meta tensor stands for; anything else is returned as it is."""
        if not isinstance(twin, torch.Tensor):
            return _CPU if isinstance(twin, torch.device) else twin
        return self._values[id(twin)][1]

    def are_apart(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return True if there is real data alone, such as an image that was read, and no weights.

        Data stays real until it meets a tensor of the run: some code asks for its legacy type.
        """
        return bool(tensors) and not any(
            t.is_meta or isinstance(t, nn.Parameter) or id(t) in self._twins for t in tensors
        )

    def run(self, func: torch._ops.OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run an operation on meta tensors, and on the values where all are known."""
        known = all(map(self.knows, _tensors((args, kwargs))))
        named = {**kwargs, "device": _META} if kwargs.get("device") is not None else kwargs
        if known and func is torch.ops.aten._local_scalar_dense.default:
            return self._compute(func, args, kwargs)
        try:
            result: object = func(*args, **named)
        except (NotImplementedError, RuntimeError):
            if not known:
                raise
            return tree_map(self.twin, self._compute(func, args, kwargs))  # its size depends on the values
        if known and all(tensor.numel() <= _LARGEST for tensor in _tensors(result)):
            values = self._compute(func, args, kwargs)
            for twin, value in zip(_tensors(result), _tensors(values), strict=True):
                self._values[id(twin)] = twin, value
        elif func._schema.is_mutable:
            self._forget(args if result is None else result)
        return result

    def _compute(self, func: Operation, args: object, kwargs: object) -> object:
        with _disable_current_modes():  # what is computed beside the run is no part of it
            values, named = cast(
                "tuple[tuple[object, ...], dict[str, object]]", tree_map(self.value, (args, kwargs))
            )
            return func(*values, **named)

    def _forget(self, twins: object) -> None:
        """Drop what is known of tensors that were written to, and of those that share their memory."""
        for twin in _tensors(twins):
            _, held = self._values.pop(id(twin), (None, None))
            if held is not None:
                place = held.untyped_storage().data_ptr()
                self._values = {
                    key: (other, value)
                    for key, (other, value) in self._values.items()
                    if value.untyped_storage().data_ptr() != place
                }


def reads_values(error: Exception) -> bool:
    """Return True if a run failed because meta tensors hold no values."""
    said = str(error).lower()
    return isinstance(error, (NotImplementedError, RuntimeError)) and ("meta" in said or "data-dep" in said)


class ReadConstants(TorchFunctionMode):
    """Make tensors of plain data on the CPU, where their values are not lost, and read them back."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self._constants = constants

    def __torch_function__(
        self,
        func: Operation,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func in _READ and self._constants.knows(cast("torch.Tensor", args[0])):
            with _disable_current_modes():  # a real tensor is made, and read for good
                return func(self._constants.value(args[0]), *args[1:], **named)
        data = args[1:] if func is torch.Tensor.new_tensor else args
        if func not in _MADE or any(tensor.is_meta for tensor in _tensors((data, named))):
            return func(*args, **named)
        return self._constants.twin(func(*args, **{**named, "device": _CPU}))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))

"""Run tensor code for its shapes: tensors are on the meta device, and small constants keep their values.

Much code that only moves shapes reads a few numbers on the way: a preset checks that no
standard deviation is zero, a random crop draws its corner. What follows from constants alone is
computed, so such numbers can be read; what follows from an input cannot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

Operation = Callable[..., object]

_LARGEST = 1024
_META, _CPU = torch.device("meta"), torch.device("cpu")
_MADE: tuple[Operation, ...] = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
_ALIKE = tuple(
    getattr(torch.ops.aten, name).default
    for name in ("convolution", "linear", "mm", "bmm", "addmm", "baddbmm")
)
_READ: tuple[Operation, ...] = (torch.Tensor.tolist, torch.Tensor.numpy)


class Constants:
    """The values of small tensors that follow from constants alone.

    What is real is never written to: values are copied when they are first used.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._sources: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def learn(self, twin: torch.Tensor, source: torch.Tensor) -> None:
        """Note that a meta tensor stands for another tensor."""
        self._values.pop(id(twin), None)
        if not source.is_meta and source.numel() <= _LARGEST:
            self._sources[id(twin)] = twin, source

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
        """Tell whether the values of a meta tensor are known."""
        return id(twin) in self._values or id(twin) in self._sources

    def has_twin(self, value: torch.Tensor) -> bool:
        """Tell whether a meta tensor stands for this one."""
        return id(value) in self._twins

    def value(self, twin: object) -> object:
        """Return what a meta tensor stands for; anything else is returned as it is."""
        if not isinstance(twin, torch.Tensor):
            return _CPU if isinstance(twin, torch.device) else twin
        if id(twin) in self._sources:
            source = self._sources.pop(id(twin))[1]
            self._values[id(twin)] = twin, source.detach().to(_CPU, copy=True)
        return self._values[id(twin)][1]

    def keep(self, twins: object, values: object) -> None:
        """Note the values of what an operation gave."""
        for twin, value in zip(_tensors(twins), _tensors(values), strict=True):
            self._values[id(twin)] = twin, value

    def forget(self, twins: object) -> None:
        """Drop what is known of tensors that were written to, and of those that share their memory."""
        for twin in _tensors(twins):
            self._sources.pop(id(twin), None)
            held = self._values.pop(id(twin), None)
            if held is not None:
                place = held[1].untyped_storage().data_ptr()
                self._values = {
                    key: (other, value)
                    for key, (other, value) in self._values.items()
                    if value.untyped_storage().data_ptr() != place
                }


def reads_values(error: Exception) -> bool:
    """Return True if a run failed because meta tensors hold no values."""
    said = str(error).lower()
    return isinstance(error, (NotImplementedError, RuntimeError)) and ("meta" in said or "data-dep" in said)


@contextlib.contextmanager
def shapes_only(constants: Constants) -> Iterator[None]:
    """Run what is inside on meta tensors.

    Args:
        constants: what is known of small tensors.
    """
    with _Operations(constants), _Functions(constants):
        yield


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """Run every operation on meta tensors, and on the values where all are known."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no types
        self._constants = constants

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        held = self._constants
        if _made_on_the_way(_tensors((args, kwargs)), held) and not func._schema.is_mutable:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(held.twin, (args, dict(kwargs or {})))
        if func in _ALIKE:
            _check_dtypes(_tensors(args))
        known = all(held.knows(tensor) for tensor in _tensors((args, kwargs)))
        named = {**kwargs, "device": _META} if kwargs.get("device") is not None else kwargs
        if known and func is torch.ops.aten._local_scalar_dense.default:
            return self._compute(func, args, kwargs)
        try:
            result = func(*args, **named)
        except (NotImplementedError, RuntimeError):
            if not known:
                raise
            values = self._compute(func, args, kwargs)  # its size depends on the values
            result = tree_map(held.twin, values)
        else:
            if known and all(tensor.numel() <= _LARGEST for tensor in _tensors(result)):
                held.keep(result, self._compute(func, args, kwargs))
            elif func._schema.is_mutable:
                held.forget(args if result is None else result)
        return result

    def _compute(self, func: Operation, args: object, kwargs: object) -> object:
        with _disable_current_modes():  # what is computed beside the run is no part of it
            values, named = cast(
                "tuple[tuple[object, ...], dict[str, object]]",
                tree_map(self._constants.value, (args, kwargs)),
            )
            return func(*values, **named)


class _Functions(TorchFunctionMode):
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


def _check_dtypes(tensors: Iterable[torch.Tensor]) -> None:
    """Refuse what only the meta device takes.

    Raises:
        RuntimeError: an operation gets an input and weights of different dtypes.
    """
    dtypes = list(dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors))
    if len(dtypes) > 1:
        raise RuntimeError(f"input and weights should have one dtype, but have {' and '.join(dtypes)}")


def _made_on_the_way(tensors: Iterable[torch.Tensor], constants: Constants) -> bool:
    """Tell whether an operation takes real data alone, such as an image that was read, and no weights.

    Data stays real until it meets a tensor of the run: some code asks for its legacy type.
    """
    found = list(tensors)
    return bool(found) and not any(
        t.is_meta or isinstance(t, nn.Parameter) or constants.has_twin(t) for t in found
    )

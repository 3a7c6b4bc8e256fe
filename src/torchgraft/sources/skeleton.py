"""Skeletons: models without values, whose constants are there all the same."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from torchgraft.errors import SourceError

_MAKERS: frozenset[object] = frozenset((
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm,
    torch.arange, torch.linspace, torch.eye,
))  # fmt: skip

_FILLED_LATER: object = torch.empty
_MOST_PARTS = 50_000
_LARGE = 1_000
"""Elements from which on a function of a tensor is tried on the meta device first."""


class _Making(TorchFunctionMode):
    """Watch over the tensors that a constructor makes.

    Layers get their parameters from ``torch.empty``, which can be on the meta device; tables
    that a constructor computes come from other functions, and a model needs their values, as no
    file holds them.

    Args:
        limit: bytes that all tensors with values may take together.
        meta: make what is going to be filled with parameters on the meta device.
        real: numbers of those that are no parameters, and get values all the same.
    """

    def __init__(self, limit: int | None, *, meta: bool, real: Collection[int] = ()) -> None:
        super().__init__()
        self._left = limit
        self._meta = meta
        self._real = real
        self._later: list[torch.Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        if func in _MAKERS:
            on_meta = {**options, "device": "meta"}
            chosen = options.get("device") is None and _floating(options.get("dtype"))
            if self._meta and func is _FILLED_LATER and chosen:
                empty = cast("torch.Tensor", func(*args, **on_meta))
                self._later.append(empty)
                if len(self._later) - 1 not in self._real:
                    return empty
            if self._left is not None and str(options.get("device")) != "meta":
                self._left -= self._checked(func(*args, **on_meta))
        elif self._left is not None and any(map(_grows, args)):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                self._checked(func(*map(_shadow, args), **options))
        return func(*args, **options)

    def no_parameters(self, model: nn.Module) -> set[int]:
        """Number those made on the meta device that became no parameters of the model."""
        used = {p.untyped_storage()._cdata for p in model.parameters() if p.is_meta}
        return {i for i, empty in enumerate(self._later) if empty.untyped_storage()._cdata not in used}

    def _checked(self, made: object) -> int:
        """Return the bytes of what is going to be made, if there is room."""
        size = made.nbytes if isinstance(made, torch.Tensor) else 0
        if self._left is not None and size > self._left:
            raise _TooLargeError(size)
        return size


class _TooLargeError(Exception):
    """A constructor asks for more memory than it may have."""


def skeleton(build: Callable[[], nn.Module], *, limit: int | None = None) -> nn.Module:
    """Build a model without the values of its parameters and without their memory.

    Tensors that a state dict does not hold have their values. The global generator is left
    where it was.

    Args:
        build: builds the model.
        limit: bytes that a constructor may fill, where what it is told comes from anywhere.

    Returns:
        The model, its parameters and buffers on the meta device but for small ones.

    Raises:
        SourceError: the constructor asks for more than the limit.

    Example:
        >>> skeleton(lambda: nn.Linear(3, 2)).weight.device
        device(type='meta')
    """
    with torch.random.fork_rng(devices=[]):
        try:
            model = _built(build, limit)
        except _TooLargeError as error:
            raise SourceError(
                "the model is larger than there is reason for",
                found=f"a table of {error.args[0]:,} bytes, with {limit:,} at most for all",
                write="other options for its builder",
            ) from error
    return emptied(model)


def _built(build: Callable[[], nn.Module], limit: int | None) -> nn.Module:
    real: Collection[int] = ()
    for _ in range(2):  # the second time with values for tables that are filled like parameters
        making = _Making(limit, meta=True, real=real)
        try:
            with making:
                model = build()
        except _TooLargeError:
            raise
        except Exception:  # noqa: BLE001 - a constructor may do anything with values that are not there
            break
        if not any(constant.is_meta for _, constant in constants(model)):
            return model
        real = making.no_parameters(model)
    with _Making(limit, meta=False):
        return build()


@contextlib.contextmanager
def bounded_parts() -> Iterator[None]:
    """Let a builder make as many parts as models have, whatever it is asked for."""
    thread, counted = threading.get_ident(), itertools.count(1)

    def count(*_: object) -> None:
        if threading.get_ident() == thread and next(counted) > _MOST_PARTS:
            raise SourceError(
                "what is asked for has more parts than any model",
                found=f"{_MOST_PARTS:,} modules and parameters, and no end",
                write="other options for its builder",
            )

    hooks = (register_module_module_registration_hook, register_module_parameter_registration_hook)
    handles = [hook(count) for hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def emptied(model: nn.Module) -> nn.Module:
    """Let go of the values that a state dict holds; the others stay.

    Args:
        model: the model; it is changed.
    """
    known: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None or tensor.is_meta or name in module._non_persistent_buffers_set:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = _without_values(tensor)
                store[name] = known[id(tensor)]  # type: ignore[assignment]  # of the same kind
    return model


def constants(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Find the tensors that belong to a model and that its state dict does not hold.

    Args:
        model: the model; it is only read.

    Yields:
        Path and tensor: buffers that are not persistent, and tensors that are attributes, alone
        or in lists and mappings.

    Example:
        >>> module = nn.Module()
        >>> module.scale = torch.ones(2)
        >>> [path for path, _ in constants(module)]
        ['scale']
    """
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        held = {name for store in (module._parameters, module._buffers) for name in store}
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and name not in held:
                yield from _tensors(prefix + name, value)
        for name in sorted(module._non_persistent_buffers_set):
            tensor = module._buffers.get(name)
            if tensor is not None:
                yield prefix + name, tensor


def _tensors(path: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, nn.Parameter):
        return  # a second way to a parameter, as recurrent layers keep one
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _tensors(f"{path}.{number}", item)


def _grows(value: object) -> bool:
    """Tell whether a function of a value may take memory to speak of."""
    return isinstance(value, torch.Tensor) and not value.is_meta and value.numel() >= _LARGE


def _shadow(value: object) -> object:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _floating(dtype: object) -> bool:
    chosen = dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()
    return chosen.is_floating_point

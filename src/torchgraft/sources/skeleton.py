"""Skeletons: models without values, whose constants are there all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _EmptyOnMeta(TorchFunctionMode):
    """Make what is going to be filled with parameters on the meta device, and all else as asked.

    Layers get their parameters from ``torch.empty``; tables that a constructor computes come
    from other functions, and a model needs their values, as no file holds them.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None and _floating(options.get("dtype")):
            options["device"] = "meta"
        return func(*args, **options)


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without the values of its parameters and without their memory.

    Tensors that a state dict does not hold have their values. The global generator is left
    where it was.

    Args:
        build: builds the model.

    Returns:
        The model, its parameters and buffers on the meta device but for small ones.

    Example:
        >>> skeleton(lambda: nn.Linear(3, 2)).weight.device
        device(type='meta')
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with _EmptyOnMeta():
                model = build()
        except Exception:  # noqa: BLE001 - a constructor may do anything with values that are not there
            model = None
        if model is None or any(constant.is_meta for _, constant in constants(model)):
            model = build()
    return emptied(model)


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


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _floating(dtype: object) -> bool:
    chosen = dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()
    return chosen.is_floating_point

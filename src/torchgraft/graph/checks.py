"""Refuse what is not a model that can be edited, with the line to write instead."""

from __future__ import annotations

import contextlib
import types
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from torchgraft.errors import ModelError
from torchgraft.graph.clone import parts_of
from torchgraft.text import function_name, kind, literal, shown


def check_model(model: object, call: str = "pipe") -> None:
    """Check that a value is a module and no wrapper around one.

    Args:
        model: the value.
        call: the function that it was handed to.

    Raises:
        ModelError: it is something else; says what to pass.
    """
    if not isinstance(model, nn.Module):
        made = _made(model)
        raise ModelError(
            "a model must be an instance of nn.Module",
            asked=f"{call}({shown(model)}, ...)",
            found=kind(model),
            write=f"{call}({made}, ...)" if made else "",
            swap=(literal(model), made) if made else ("", ""),
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.jit._trace.TopLevelTracedModule)):
        _refuse(model, "has no Python forward any more", "pipe(<the module that was scripted>, ...)")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        _refuse(model, "is a wrapper", "pipe(model.module, ...), and wrap the result again")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module) or type(model).__name__ == "OptimizedModule":
        _refuse(model, "is a compiled wrapper", "torch.compile(pipe(model._orig_mod, ...))")
    if any(
        base.__name__.startswith("FSDP") or base.__name__ == "FullyShardedDataParallel"
        for base in type(model).__mro__
    ):
        _refuse(model, "is sharded over processes", "pipe(<the module before sharding>, ...)")
    parts = list(parts_of(model))
    for module in parts:
        for name, function in _functions(module):
            if any(_is_bound(value, set(map(id, parts))) for value in _held_by(function)):
                raise ModelError(
                    f"{name} of {_path(model, module)} is a function that holds the model, "
                    "and a copy would use it",
                    found=function_name(function),
                    write=f"model.{name} = types.MethodType(<a function of self and the inputs>, model)",
                )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if type(tensor) in _UNINITIALISED:
                raise ModelError(
                    "the model has a parameter whose shape is not known yet",
                    found=f"{_path(model, module)}.{name}".removeprefix("the root."),
                    write="model(<an input>) once, then pipe(model, ...)",
                )


def _made(model: object) -> str:
    """Write what makes a model of a class, a builder or a name."""
    if isinstance(model, str):
        return f"get_model({literal(model)})"
    if isinstance(model, type):
        return f"{literal(model)}(<arguments>)"
    return f"{literal(model)}()" if callable(model) else ""


_UNINITIALISED = (nn.UninitializedParameter, nn.UninitializedBuffer)


def _path(model: nn.Module, part: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is part) or "the root"


def _functions(module: nn.Module) -> Iterator[tuple[str, types.FunctionType]]:
    """Yield the plain functions that hang on a module: attributes and hooks."""
    for name, value in vars(module).items():
        held = type(value)  # looked at for every attribute of every module: no isinstance
        if held is types.FunctionType and name != "_compiled_call_impl":
            yield name, value
        elif held is OrderedDict and value and "hooks" in name:
            yield from ((name, hook) for hook in value.values() if isinstance(hook, types.FunctionType))


def _held_by(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            yield cell.cell_contents


def _is_bound(value: object, own: set[int]) -> bool:
    return id(value) in own or id(getattr(value, "__self__", None)) in own


def _refuse(model: nn.Module, why: str, write: str) -> None:
    raise ModelError(
        f"{type(model).__name__} {why} and cannot be edited", found=literal(type(model)), write=write
    )

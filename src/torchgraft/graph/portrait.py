"""Portraits: what a model is made of, put into words that can be compared."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from torchgraft.graph.level import Level, runs_graph
from torchgraft.text import write_dims

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType)
_DEEPEST = 6
_OF_LEVELS = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
_OF_MODULES = frozenset((*vars(nn.Module()), "_is_hf_initialized", "reset_parameters"))
_ABOUT = frozenset(("pretrained_cfg", "default_cfg", "name_or_path", "_name_or_path", "transformers_version"))
"""What libraries keep about weights and files, and no forward reads."""

_OF_CONFIGS = _ABOUT | {"architectures", "dtype", "torch_dtype"}


def portrait(model: nn.Module) -> dict[str, str]:
    """Put into words what a model is made of, but for values, modes and what gets a gradient.

    Two models with one portrait have the same forwards, as far as these can be told from
    classes, attributes, shapes, numbers of hooks and the graphs of levels.

    Args:
        model: the model; it is only read.

    Returns:
        By path: the class of each module, each of its attributes, the shape of each tensor, and
        the operations of each level.

    Example:
        >>> portrait(nn.Flatten())
        {'': 'torch.nn.modules.flatten.Flatten', 'start_dim': '1', 'end_dim': '-1'}
    """
    told: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        told[path] = _class(module._origin if isinstance(module, Level) else type(module))
        told.update((prefix + name, text) for name, text in _parts(module))
    return told


def _parts(module: nn.Module) -> Iterator[tuple[str, str]]:
    ours = _OF_LEVELS if isinstance(module, Level) else frozenset()
    for name, value in vars(module).items():
        if "hooks" in name and isinstance(value, dict):
            yield from [(name, f"{len(value)}")] if value else []
        elif name not in _OF_MODULES | _ABOUT | ours and not name.startswith("_torchgraft"):
            yield name, _said(value)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, f"parameter {write_dims(parameter.shape)}"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            # One that is not kept may be a table for the last input, of any size.
            kept = name not in module._non_persistent_buffers_set
            yield name, f"buffer {write_dims(buffer.shape)}" if kept else "buffer, not kept"
    if isinstance(module, Level) and runs_graph(module):
        for number, graph in enumerate(module.graphs):
            yield f"<forward {number}>", "; ".join(_calls(graph))


def _calls(graph: fx.Graph) -> Iterator[str]:
    """Write the nodes of a graph; one stands for another by its number, as names may differ."""
    numbers = {node: f"%{number}" for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = "" if node.op in ("placeholder", "output") else _target(node.target)
        yield f"{node.op} {target} {_given(node.args, numbers)} {_given(node.kwargs, numbers)}"


def _given(value: object, numbers: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return numbers[value]
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_given(item, numbers) for item in value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_given(item, numbers)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return _given((value.start, value.stop, value.step), numbers)
    return _said(value)


def _said(value: object, depth: int = 0) -> str:
    """Write an attribute; of what cannot be written, the class."""
    below = depth + 1
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, _CODE):
        line = getattr(getattr(value, "__code__", None), "co_firstlineno", "")
        return f"{value.__module__}.{value.__qualname__} {line}".rstrip()
    if isinstance(value, types.MethodType):
        return f"method {_said(value.__func__)}"
    if isinstance(value, functools.partial):
        return f"partial {_said((value.func, value.args, value.keywords), below)}"
    if isinstance(value, (nn.Module, torch.Tensor)) or depth > _DEEPEST:
        return f"a {_class(type(value))}"
    # Tensors in lists and mappings are tables, which a forward may keep for later runs.
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_said(v, below) for v in value if not isinstance(v, torch.Tensor))})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_said(item, below) for item in value))}}}"
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if not isinstance(v, torch.Tensor)]
        return f"{{{', '.join(f'{_said(k, below)}: {_said(v, below)}' for k, v in items)}}}"
    if hasattr(value, "to_json_string"):
        return _config(value.to_json_string())
    held = getattr(value, "__dict__", {})
    return f"{_class(type(value))} {_said(dict(held), below) if held else ''}".rstrip()


def _config(text: object) -> str:
    """Write the configuration of a model, without what it says of files."""
    held = json.loads(text) if isinstance(text, str) else {}
    return repr(sorted((key, repr(item)) for key, item in held.items() if key not in _OF_CONFIGS))


def _class(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _target(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))

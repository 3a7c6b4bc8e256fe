"""What is known of one of the two models, module by module and tensor by tensor."""

from __future__ import annotations

import re

import attrs
import torch
from torch import nn

from torchgraft.graph.history import history_of
from torchgraft.graph.level import runs_graph
from torchgraft.graph.outline import outline_of
from torchgraft.graph.portrait import portrait
from torchgraft.paths import join_path, last_of
from torchgraft.show.difference.costs import Costs

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_STORES = ("_parameters", "_buffers", "_modules")

_OURS = "partial (torchgraft."
"""How a portrait tells of what surgery hangs on an instance, such as the mode that a frozen layer keeps."""


@attrs.frozen
class Side:
    """One of the two models in figures.

    Args:
        model: name of its class.
        base: where it comes from, such as ``"torchvision/resnet50"``; empty if that is not known.
        steps: the transforms that made it, as written.
        opened: paths of the modules whose forward is a graph.
        modules: number of modules, itself included.
        tensors: number of parameters and buffers, tied ones once.
        parameters: number of values in parameters.
        trainable: number of those that get a gradient.
        bytes: size of parameters and buffers.
        macs: multiply-adds of convolutions and matrix products in one run; ``None`` if unknown.
        inputs: shapes of the input of that run.
        unknown: why there was no run; empty where there was one.
    """

    model: str
    base: str
    steps: tuple[str, ...]
    opened: tuple[str, ...]
    modules: int
    tensors: int
    parameters: int
    trainable: int
    bytes: int
    macs: int | None
    inputs: str
    unknown: str


@attrs.frozen
class Look:
    """How a module stands in one of the models.

    Args:
        path: where it stands; empty for the model itself.
        kind: name of its class.
        options: what it prints of itself.
        parameters: number of values in its parameters, those below included.
        shape: shape of what it gives; empty where it is not called.
        macs: multiply-adds, those of all its calls and of what is below included; ``None`` if unknown.
        opened: whether its forward is a graph.
        shared: the first path of the same module; empty at that path.
    """

    path: str
    kind: str
    options: str
    parameters: int
    shape: str
    macs: int | None
    opened: bool
    shared: str


@attrs.frozen
class TensorLook:
    """How a parameter or a buffer stands in one of the models.

    Args:
        key: its key.
        role: ``"parameter"``, ``"buffer"``, or ``"buffer, not kept"`` outside the state dict.
        shape: its shape.
        dtype: its dtype, such as ``"float32"``.
        device: its device, such as ``"cpu"``.
        trainable: whether it gets a gradient.
        tied: the other keys of the same tensor.
    """

    key: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    trainable: bool
    tied: tuple[str, ...]


@attrs.frozen(eq=False)
class Part:
    """A module: what is shown of it, where its class is defined, its plain attributes, its own tensors."""

    look: Look
    module: nn.Module
    home: str
    attributes: dict[str, str]
    tensors: dict[str, torch.Tensor]


class Snapshot:
    """Read a model once."""

    def __init__(self, model: nn.Module, costs: Costs) -> None:
        self.costs = costs
        self.outline, self.history = outline_of(model), history_of(model)
        said = portrait(model).items()
        self._said = {k: t for k, t in said if last_of(k)[:1] != "_" and not t.startswith(_OURS)}
        modules = dict(model.named_modules(remove_duplicate=False))
        self._first = {id(module): path for path, module in reversed(modules.items())}
        self.parts = {path: self._read(path, module) for path, module in modules.items()}
        keys: dict[int, list[str]] = {}
        for path, part in self.parts.items():
            for name, tensor in part.tensors.items():
                keys.setdefault(id(tensor), []).append(join_path(path, name))
        self.tensors: dict[str, tuple[TensorLook, torch.Tensor]] = {}
        for path, part in self.parts.items():
            for name, tensor in part.tensors.items():
                key = join_path(path, name)
                tied = tuple(other for other in keys[id(tensor)] if other != key)
                self.tensors[key] = _look_of(key, tensor, _role_of(part.module, name), tied), tensor

    def side(self) -> Side:
        """Sum up the model."""
        held = list({id(tensor): tensor for _, tensor in self.tensors.values()}.values())
        root = self.parts[""]
        return Side(
            root.look.kind,
            self.history.origin.base if self.history.origin else "",
            self.history.steps,
            tuple(path for path, part in self.parts.items() if part.look.opened),
            len(self._first),
            len(held),
            root.look.parameters,
            sum(p.numel() for p in root.module.parameters() if p.requires_grad),
            sum(t.numel() * t.element_size() for t in held),
            root.look.macs,
            self.costs.inputs,
            self.costs.unknown,
        )

    def children(self, path: str) -> dict[str, str]:
        """Return the paths right below one, by name."""
        held = self.parts[path].module._modules.items()
        return {name: join_path(path, name) for name, child in held if child is not None}

    def _read(self, path: str, module: nn.Module) -> Part:
        cls, first = type(module), self._first[id(module)]
        look = Look(
            path,
            cls.__name__,
            _options_of(module),
            sum(parameter.numel() for parameter in module.parameters()),
            self.costs.shapes.get(id(module), ""),
            None if self.costs.unknown else self._macs_of(module),
            runs_graph(module),
            first if first != path else "",
        )
        said = {
            name: _ADDRESS.sub("", text)
            for name in vars(module)
            if name not in _STORES and (text := self._said.get(join_path(path, name))) is not None
        }
        held = {**module._parameters, **module._buffers}
        own = {name: tensor for name, tensor in held.items() if tensor is not None}
        return Part(look, module, f"{cls.__module__}.{cls.__name__}", said, own)

    def _macs_of(self, module: nn.Module) -> int:
        """Return the multiply-adds of a module; a list of modules, never called itself, has those in it."""
        known = self.costs.macs.get(id(module))
        return sum(map(self._macs_of, set(module.children()))) if known is None else known


def _role_of(module: nn.Module, name: str) -> str:
    if name in module._parameters:
        return "parameter"
    return "buffer, not kept" if name in module._non_persistent_buffers_set else "buffer"


def _look_of(key: str, tensor: torch.Tensor, role: str, tied: tuple[str, ...]) -> TensorLook:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorLook(key, role, tuple(tensor.shape), dtype, str(tensor.device), tensor.requires_grad, tied)


def _options_of(module: nn.Module) -> str:
    try:
        text = module.extra_repr()
    except Exception:  # noqa: BLE001 - what a module prints of itself is its own affair
        return ""
    return _ADDRESS.sub("", " ".join(str(text).split()))[:200]

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
from torchgraft.show.difference.effort import Effort

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


@attrs.frozen(eq=False)
class Facts:
    """What is known of a module, for comparisons.

    Args:
        look: what is shown of it.
        module: the module.
        home: where its class is defined.
        attributes: its plain attributes, as text.
        tensors: its own parameters and buffers, by name.
    """

    look: Look
    module: nn.Module
    home: str
    attributes: dict[str, str]
    tensors: dict[str, torch.Tensor]


class Reading:
    """Read a model once.

    Args:
        model: the model; it is only read.
        effort: what a run of it told.
    """

    def __init__(self, model: nn.Module, effort: Effort) -> None:
        self._model = model
        self.effort = effort
        told = portrait(model).items()
        self._told = {k: t for k, t in told if k.rpartition(".")[2][:1] != "_" and not t.startswith(_OURS)}
        self.outline = outline_of(model)
        self.history = history_of(model)
        self.names: dict[int, list[str]] = {}
        self._paths: dict[int, str] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        for path, module in modules.items():
            self._paths.setdefault(id(module), path)
            for name, tensor in _own(module).items():
                self.names.setdefault(id(tensor), []).append(joined(path, name))
        self._below: dict[int, dict[int, int]] = {}
        self.facts = {path: self._facts(path, module) for path, module in modules.items()}

    def side(self) -> Side:
        """Sum up the model."""
        parameters = list(self._model.parameters())
        held = list({id(t): t for facts in self.facts.values() for t in facts.tensors.values()}.values())
        root = self.facts[""].look
        return Side(
            root.kind,
            self.history.origin.base if self.history.origin else "",
            self.history.steps,
            tuple(path for path, facts in self.facts.items() if facts.look.opened),
            len(self._paths),
            len(held),
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
            sum(t.numel() * t.element_size() for t in held),
            root.macs,
            self.effort.inputs,
            self.effort.unknown,
        )

    def children(self, path: str) -> dict[str, str]:
        """Give the paths right below one, by name."""
        held = self.facts[path].module._modules.items()
        return {name: joined(path, name) for name, child in held if child is not None}

    def _facts(self, path: str, module: nn.Module) -> Facts:
        cls = type(module)
        first = self._paths[id(module)]
        spent = self.effort.spent.get(id(module), 0)
        look = Look(
            path,
            cls.__name__,
            _options(module),
            sum(self._sizes(module).values()),
            self.effort.shapes.get(id(module), ""),
            None if self.effort.unknown else spent or self._spent_below(module),
            runs_graph(module),
            first if first != path else "",
        )
        said = {
            name: _ADDRESS.sub("", text)
            for name in vars(module)
            if name not in _STORES and (text := self._told.get(joined(path, name))) is not None
        }
        return Facts(look, module, f"{cls.__module__}.{cls.__name__}", said, _own(module))

    def _sizes(self, module: nn.Module) -> dict[int, int]:
        """Give the number of values of each parameter in a module and below, each once."""
        known = self._below.get(id(module))
        if known is None:
            known = {id(p): p.numel() for p in module._parameters.values() if p is not None}
            for child in module._modules.values():
                known.update(self._sizes(child) if child is not None else {})
            self._below[id(module)] = known
        return known

    def _spent_below(self, module: nn.Module) -> int:
        """Sum up a list of modules, which is never called itself."""
        if id(module) in self.effort.shapes:
            return 0
        below = {id(child): child for child in module._modules.values() if child is not None}
        return sum(self.effort.spent.get(key, 0) or self._spent_below(m) for key, m in below.items())


def joined(path: str, name: str) -> str:
    """Write the path of what stands under a name in a module."""
    return f"{path}.{name}" if path else name


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    held = (*module._parameters.items(), *module._buffers.items())
    return {name: tensor for name, tensor in held if tensor is not None}


def _options(module: nn.Module) -> str:
    try:
        text = module.extra_repr()
    except Exception:  # noqa: BLE001 - what a module prints of itself is its own affair
        return ""
    return _ADDRESS.sub("", " ".join(str(text).split()))[:200]

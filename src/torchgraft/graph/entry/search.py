"""Find the layers that take the input of a model, and which of its channels each feature is.

The forwards are followed with a tensor that names its own elements: each says which channel
and which place of the input it is. What only moves elements is done for real, so that it is
known what arrives at a layer, also behind a cut into patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.entry.moves import Raw, mapped, moved, raws
from torchgraft.graph.guard import guard
from torchgraft.graph.kinds import is_container
from torchgraft.graph.layout_rules import operation
from torchgraft.graph.level import runs_graph
from torchgraft.graph.probe import Example, arguments_of
from torchgraft.graph.proxy import UNKNOWN
from torchgraft.paths import join_path
from torchgraft.text import kind


@attrs.frozen
class Entry:
    """Describe a layer that takes the input.

    Args:
        path: the module that holds the weight.
        name: name of the weight in it.
        channels: for each feature that the layer takes, the channel of the input it comes from.
        places: for each feature, the place it comes from, as seen from one place of the layer.
    """

    path: str
    name: str
    channels: tuple[int, ...]
    places: tuple[int, ...]


@attrs.frozen(eq=False)
class Input:
    """Describe the argument of a model that holds the images.

    Args:
        name: name of the argument.
        shape: its shape.
        axis: axis of the channels.
        entries: the layers that take it.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    entries: tuple[Entry, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.axis]


def find_inputs(draft: Draft) -> list[Input]:
    """Find the arguments that hold images, with the layers that take them.

    Raises:
        TargetError: something else than a layer takes the channels, or no layer does.
        TraceError: the root's forward cannot be followed.
        AnalysisError: the shape of the input is unknown.
    """
    found, problems = [], []
    for name, value in _given(draft).items():
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            continue
        attempts = [_attempt(draft, name, tuple(value.shape), axis) for axis in _axes(value.ndim)]
        clear = next((made for made, walk in attempts if made.entries and not walk.obstacles), None)
        if clear is not None:
            found.append(clear)
        else:
            problems += [(made, walk) for made, walk in attempts[:1]]
    for made, walk in problems:
        if made.entries or not found:
            raise _refused(walk)
    if not found:
        raise TargetError("the model takes no images", found="no argument that is a tensor with channels")
    most = max(len(given.shape) for given in found)  # beside images there may be vectors
    return [given for given in found if len(given.shape) == most]


def refound(draft: Draft, given: Input, channels: int) -> tuple[Entry, ...]:
    """Look again what would arrive at the layers from an input with another number of channels.

    Raises:
        TargetError: the forward has the number of channels written down.
    """
    shape = tuple(channels if axis == given.axis else size for axis, size in enumerate(given.shape))
    made, walk = _attempt(draft, given.name, shape, given.axis)
    if walk.obstacles or [(e.path, e.name) for e in made.entries] != [
        (e.path, e.name) for e in given.entries
    ]:
        raise _refused(walk)
    return made.entries


def take_channels(draft: Draft, given: Input, channels: int) -> None:
    """Let later steps look at the model with an input of another number of channels."""
    example = draft.example if draft.example is not None else _recorded(draft)
    index = torch.arange(channels, device="cpu") % given.channels

    def fit(name: str, value: Any) -> Any:
        if name != given.name or not isinstance(value, torch.Tensor):
            return value
        return value.index_select(given.axis, index.to(value.device))

    if isinstance(example, torch.Tensor):
        draft.example = fit(given.name, example)
    elif isinstance(example, Mapping):
        draft.example = {name: fit(name, value) for name, value in example.items()}
    else:
        names = list(inspect.signature(draft.root.forward).parameters)
        draft.example = tuple(fit(name, value) for name, value in zip(names, example, strict=False))
    draft.forget()


def _recorded(draft: Draft) -> Example:
    call = draft.record("")[-1]
    only: Any = call.args[0] if len(call.args) == 1 else None
    return only if isinstance(only, torch.Tensor) and not call.kwargs else call.args


def _given(draft: Draft) -> dict[str, Any]:
    example = draft.example if draft.example is not None else _recorded(draft)
    args, kwargs = arguments_of(example)
    return dict(inspect.signature(draft.root.forward).bind(*args, **kwargs).arguments)


def _axes(rank: int) -> tuple[int, ...]:
    return (1,) if rank == 2 else (1, rank - 1)


def _attempt(draft: Draft, name: str, shape: tuple[int, ...], axis: int) -> tuple[Input, _Walk]:
    walk = _Walk(draft, shape[axis])
    raw = Raw.of((1, *shape[1:]), axis)
    for graph in draft.graphs(""):
        walk.graph("", graph, {name: raw})
    return Input(name, shape, axis, tuple(walk.entries.values())), walk


def _refused(walk: _Walk) -> TargetError:
    if not walk.obstacles:
        return TargetError(
            "no layer that takes the model's input was found",
            found="no convolution and no linear layer on the way of the input",
            write="replace(<the first layer>, <one for other channels>, keep_shape=False)",
        )
    name, why = next(iter(walk.obstacles.items()))
    return TargetError(
        f"{name!r} takes the model's input, and cannot be adapted to another number of channels",
        found=why,
        write=f'replace("{name}", <a module for any number of channels>) before, or a model without it',
    )


class _Walk:
    """Follow an input down into the forwards of parts."""

    def __init__(self, draft: Draft, channels: int) -> None:
        self._draft = draft
        self._channels = channels
        self.entries: dict[tuple[str, str], Entry] = {}
        self.obstacles: dict[str, str] = {}

    def graph(self, owner: str, graph: fx.Graph, given: Mapping[str, object]) -> object:
        """Follow one forward and return what it gives."""
        values: dict[fx.Node, Any] = {}

        def known(argument: Any) -> Any:
            return mapped(argument, lambda a: values[a] if isinstance(a, fx.Node) else a)

        for node in graph.nodes:
            if node.op == "output":
                return known(node.args[0])
            if node.op == "placeholder":
                values[node] = given.get(str(node.target).lstrip("*"), UNKNOWN)
            elif node.op == "get_attr":
                values[node] = self._held(owner, str(node.target))
            else:
                args, kwargs = known(node.args), known(node.kwargs)
                values[node] = self._step(owner, node, args, kwargs)
        return None

    def _step(self, owner: str, node: fx.Node, args: Any, kwargs: Any) -> object:
        taken = raws((args, kwargs))
        name = join_path(owner, str(node.target if node.op == "call_module" else node.name))
        if node.target is guard:
            self._decided(owner, name, args)
            return None
        if node.op == "call_module":
            return self._module(name, args, kwargs) if taken else UNKNOWN
        if taken and operation(node) in ("conv1d", "conv2d", "conv3d", "linear"):
            return self._function(name, node, [*args, *kwargs.values()])
        value = moved(node, args, kwargs)
        if isinstance(value, str):  # why it cannot be followed
            self.obstacles[name] = value
            return UNKNOWN
        lost = [raw for raw in raws(value) if not raw.is_complete]
        if lost:
            self.obstacles[name] = f"{operation(node)} takes single channels"
            return UNKNOWN
        return value

    def _module(self, path: str, args: Any, kwargs: Any) -> object:
        module = self._draft.get(path)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raw = raws((args, kwargs))[0]
            if module.groups != 1:
                self.obstacles[path] = f"a convolution in {module.groups} groups"
            else:
                self._enter(path, path, "weight", raw, raw.ids.ndim + 1 - module.weight.ndim)
            return UNKNOWN
        if isinstance(module, nn.Linear):
            self._enter(path, path, "weight", raws((args, kwargs))[0], -1)
            return UNKNOWN
        if module._modules and not is_container(module):
            self.obstacles[path] = f"{kind(module)} that takes the input as it is"
            return UNKNOWN
        try:
            graphs = self._draft.graphs(path)
        except TraceError as error:
            self.obstacles[path] = error.found or error.summary
            return UNKNOWN
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        before = len(self.obstacles)
        results = [self.graph(path, graph, bound) for graph in graphs]
        if not module._modules and len(self.obstacles) > before:  # a layer is named as a whole
            self.obstacles = dict(list(self.obstacles.items())[:before])
            self.obstacles[path] = f"{kind(module)} that takes the input as it is"
        return results[0]

    def _function(self, name: str, node: fx.Node, given: list[Any]) -> object:
        weight = given[1] if len(given) > 1 else None
        groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
        if not isinstance(given[0], Raw) or not isinstance(weight, _Held) or groups != 1:
            self.obstacles[name] = f"{operation(node)} with a weight that is computed, or in groups"
        else:
            rank = given[0].ids.ndim
            axis = -1 if operation(node) == "linear" else rank + 1 - weight.tensor.ndim
            self._enter(name, weight.path, weight.name, given[0], axis)
        return UNKNOWN

    def _enter(self, name: str, path: str, weight: str, raw: Raw, axis: int) -> None:
        features = raw.features(axis)
        if features is None:
            self.obstacles[name] = "what arrives there has channels and places mixed"
            return
        entry = Entry(path, weight, *features)
        if self.entries.setdefault((path, weight), entry) != entry:
            self.obstacles[name] = "it takes the input in two ways"

    def _decided(self, owner: str, name: str, args: Any) -> None:
        """Note a decision on the input that an opened forward would take otherwise."""
        value, expected, _ = args
        if value is UNKNOWN or not runs_graph(self._draft.get(owner)):
            return
        if (bool(value) is not expected) if isinstance(expected, bool) else value != expected:
            self.obstacles[name] = "a decision on the size of the input, taken when it was traced"

    def _held(self, owner: str, target: str) -> object:
        parent, _, name = join_path(owner, target).rpartition(".")
        value = getattr(self._draft.get(parent), name, UNKNOWN)
        return _Held(parent, name, value) if isinstance(value, torch.Tensor) else value


@attrs.frozen(eq=False)
class _Held:
    """A tensor that a module holds."""

    path: str
    name: str
    tensor: torch.Tensor

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return self.tensor.numel()

"""What a forward is followed with: proxies for data, the values themselves for settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import fx, nn

from torchgraft.graph import proxy as px
from torchgraft.graph.guard import baked, counted, passed_on
from torchgraft.graph.whereabouts import names_asked_for_none

Arguments = tuple[tuple[object, ...], dict[str, object]]
Hints = Mapping[str, object]
_DATA = (torch.Tensor, tuple, list, dict)


class Inputs(Protocol):
    """The part of the tracer that is needed here."""

    graph: fx.Graph
    source: nn.Module
    example: Arguments | None
    hints: Hints
    values: dict[fx.Node, object]

    @property
    def create_proxy(self) -> Callable[..., fx.Proxy]:
        """Record a call."""

    def proxy(self, node: fx.Node) -> px.Proxy:
        """Make the proxy of a node."""


def placeholders(tracer: Inputs, shadow: nn.Module) -> tuple[list[object], dict[str, object]]:
    """Make the placeholders of a forward, and what it is called with.

    Args:
        tracer: the tracer.
        shadow: the module whose forward is followed.

    Returns:
        Positional and keyword arguments: proxies for data, the values themselves for
        settings, which generated code checks at each call.
    """
    args: list[object] = []
    kwargs: dict[str, object] = {}
    given = tracer.hints if tracer.example is None else bind(shadow.forward, *tracer.example)
    asked = names_asked_for_none(tracer.source)
    flowing: list[fx.Node] = []
    settings: list[tuple[fx.Node, object, str]] = []
    for parameter in inspect.signature(shadow.forward).parameters.values():
        name, default, kind = parameter.name, parameter.default, parameter.kind
        stars = "*" if kind is parameter.VAR_POSITIONAL else "**" if kind is parameter.VAR_KEYWORD else ""
        default = () if stars else default
        known = given.get(name, default)
        node = tracer.graph.placeholder(stars + name, default_value=parameter.default)
        tracer.values[node] = px.UNKNOWN if tracer.example is None else px.to_meta(known)
        if stars:
            settings.append((node, len(known) if isinstance(known, (tuple, dict)) else 0, name))
            if stars == "*":
                args += [tracer.proxy(node)[i] for i in range(settings[-1][1])]  # type: ignore[index, call-overload]  # an integer
            continue
        passed: object = known
        if known is parameter.empty or flows(known):
            passed = tracer.proxy(node)
            if name in asked:
                flowing.append(node)
        else:
            settings.append((node, known, name))
        if kind is parameter.KEYWORD_ONLY:
            kwargs[name] = passed
        else:
            args.append(passed)
    for node, known, name in settings:
        function = counted if node.target.startswith("*") else baked  # type: ignore[union-attr]  # a name
        tracer.create_proxy("call_function", function, (tracer.proxy(node), known, name), {})
    for node in flowing:
        tracer.create_proxy("call_function", passed_on, (tracer.proxy(node), str(node.target)), {})
    return args, kwargs


def bind(forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> Hints:
    """Name the arguments of a call."""
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)


def flows(value: object) -> bool:
    """Tell whether an argument is data; modes, names and ``None`` are settings, which are baked in."""
    return value is px.UNKNOWN or type(value) in (int, float) or isinstance(value, _DATA)

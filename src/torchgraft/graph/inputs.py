"""What a forward is followed with: proxies for data, the values themselves for settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import fx, nn

from torchgraft.graph import proxy as px
from torchgraft.graph.guard import baked, counted, passed_on

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


def placeholders(tracer: Inputs, function: Callable[..., object]) -> tuple[list[object], dict[str, object]]:
    """Make the placeholders of a forward, and what it is called with.

    Args:
        tracer: the tracer.
        function: the forward that is followed, bound to its module.

    Returns:
        Positional and keyword arguments: proxies for data, the values themselves for
        settings, which generated code checks at each call.
    """
    args: list[object] = []
    kwargs: dict[str, object] = {}
    given = tracer.hints if tracer.example is None else bind(function, *tracer.example)
    flowing: list[fx.Node] = []
    settings: list[tuple[fx.Proxy, object, str]] = []

    def pass_on(value: object, proxy: fx.Proxy, name: str) -> object:
        if value is inspect.Parameter.empty or flows(value):
            return proxy
        settings.append((proxy, value, name))
        return value

    parameters = inspect.signature(function).parameters.values()
    variable = any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters)
    for parameter in parameters:
        name, default, kind = parameter.name, parameter.default, parameter.kind
        stars = "*" if kind is parameter.VAR_POSITIONAL else "**" if kind is parameter.VAR_KEYWORD else ""
        known = given.get(name, {"*": (), "**": {}}.get(stars, default))
        node = tracer.graph.placeholder(stars + name, default_value=default)
        tracer.values[node] = px.UNKNOWN if tracer.example is None else px.to_meta(known)
        proxy = tracer.proxy(node)
        if stars == "*" and isinstance(known, tuple):
            tracer.create_proxy("call_function", counted, (proxy, len(known), name), {})
            args += [pass_on(value, proxy[i], f"{name}[{i}]") for i, value in enumerate(known)]  # type: ignore[index]  # an integer
        elif stars == "**" and isinstance(known, dict):
            tracer.create_proxy("call_function", counted, (proxy, tuple(known), name), {})
            kwargs.update((key, pass_on(v, proxy[key], f"{name}[{key!r}]")) for key, v in known.items())  # type: ignore[index]  # a name
        else:
            passed = pass_on(known, proxy, name)
            if passed is proxy and (default is None or args or kwargs):  # somebody may pass None
                flowing.append(node)
            # What may be left out goes by its name: what is around a forward may set it too.
            if kind is parameter.KEYWORD_ONLY or (default is not parameter.empty and not variable):
                kwargs[name] = passed
            else:
                args.append(passed)
    for setting, known, name in settings:
        tracer.create_proxy("call_function", baked, (setting, known, name), {})
    for node in flowing:
        tracer.create_proxy("call_function", passed_on, (tracer.proxy(node), str(node.target)), {})
    return args, kwargs


def hints_of(forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> Hints:
    """Name the arguments of a call, without the data among them."""
    signature = inspect.signature(forward)
    bound = signature.bind_partial(*args, **kwargs).arguments
    hints: dict[str, object] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            hints[name] = tuple(map(_without_data, value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            hints[name] = {key: _without_data(item) for key, item in value.items()}
        else:
            hints[name] = _without_data(value)
    return hints


def _without_data(value: object) -> object:
    return px.UNKNOWN if flows(value) else value


def bind(forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> Hints:
    """Name the arguments of a call."""
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)


def flows(value: object) -> bool:
    """Tell whether an argument is data; modes, names and ``None`` are settings, which are baked in."""
    plain = value is px.UNKNOWN or type(value) in (int, float) or isinstance(value, _DATA)
    return plain or bool(px.attributes_of(value))

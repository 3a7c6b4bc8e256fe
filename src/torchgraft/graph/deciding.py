"""Decide on values while a forward is followed: what is read off a proxy becomes a guard."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import fx, nn

from torchgraft.graph import proxy as px
from torchgraft.graph.caches import empty_filled, empty_holding
from torchgraft.graph.guard import guard, kind_name, typed
from torchgraft.graph.whereabouts import NAMED, Lines, line_of_forward, traced_for


class Decider(fx.proxy.TracerBase):
    """The part of a tracer that proxies ask for what they stand for.

    Args:
        module: the module that is followed.
        path: where it stands.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self.graph = fx.Graph(tracer_cls=None)
        self.module_stack = {}  # type: ignore[assignment]  # unused, read by the base
        self.node_name_to_scope = {}
        self.scope = fx.proxy.Scope("", None)
        self.source = module
        self.path = path
        self.values: dict[fx.Node, object] = {}
        self._hashed = False
        self._typed: set[fx.Node] = set()
        self._ran: dict[types.CodeType, dict[str, object]] = {}
        self._asked: list[tuple[object, fx.Node]] = []

    def run(self) -> object:
        """Follow the forward."""
        raise NotImplementedError

    def proxy(self, node: fx.Node) -> px.Proxy:
        """Make the proxy of a node."""
        return px.Proxy(node, self)

    def value(self, node: fx.Node) -> object:
        """Return the example value of a node."""
        return self.values.get(node, px.UNKNOWN)

    def decide(self, proxy: px.Proxy, read: Callable[..., object]) -> object:
        """Read a plain value off a proxy and put a guard into the graph."""
        value, node = self.value(proxy.node), proxy.node
        if value is px.UNKNOWN:
            raise px.NeedsValues
        if read is type:
            kind = torch.Tensor if isinstance(value, torch.Tensor) else type(value)
            if node.op == "placeholder" and node not in self._typed:
                self._typed.add(node)
                self.create_proxy("call_function", typed, (proxy, kind_name(value), str(node.target)), {})
            return kind
        if isinstance(value, torch.Tensor) and read is not len:
            if read is hash:
                self._hashed = True
                return id(proxy)
            raise px.UnfollowableError("it decides on the data of a tensor")
        answer = read(value)
        self._hashed |= read is hash
        expected = value if read is hash else answer
        if read in (len, int, str, list):
            node = self.create_proxy("call_function", read, (proxy,), {}).node
        said = self.said()
        self.create_proxy("call_function", guard, (self.proxy(node), expected, said), {})
        return answer

    def index(self, proxy: px.Proxy, frame: types.FrameType) -> int:
        """Read an integer off a proxy; undone if a function of torch asks, which only looks at it."""
        last = proxy.node  # made now, if it is the read of an attribute
        last = next(reversed(self.graph.nodes))
        value = self.decide(proxy, int)
        self._asked.append((_instruction(frame), last))
        return value  # type: ignore[return-value]  # int gives int

    def asked_by_torch(self, frame: types.FrameType) -> None:
        """Take back what was decided for the function of torch that a frame is calling now."""
        while self._asked and self._asked[-1][0] == _instruction(frame):
            _, last = self._asked.pop()
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)

    def said(self) -> str:
        """Say what input this is traced for, and where it was decided on."""
        return traced_for(self.source, self.path, self.lines(), self.values)

    def text(self, text: str) -> object:
        """Record the making of a text that an f-string made of values."""
        first, *parts = NAMED.split(text)
        named = {node.name: self.proxy(node) for node in self.graph.nodes}
        if not all(name in named for name in parts[::2]):
            return text
        pieces = [piece.replace("{", "{{").replace("}", "}}") for piece in (first, *parts[1::2])]
        return self.create_proxy(
            "call_method", "format", ("{}".join(pieces), *map(named.get, parts[::2])), {}
        )

    def lines(self) -> Lines:
        """Return the lines of the forward that run now, the innermost first."""
        return line_of_forward(type(self).run.__code__, self._ran)

    def clear_caches(self) -> None:
        """Leave nothing of this trace in the caches of functions that ran."""
        empty_filled(self._ran.items())
        if self._hashed:
            empty_holding(px.Proxy)


def _instruction(frame: types.FrameType) -> object:
    """Tell what a frame is at: its arguments are looked at by what it calls, and by nothing else."""
    return id(frame), frame.f_code, frame.f_lasti

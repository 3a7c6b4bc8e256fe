"""Follow one forward with its children as leaves: module in, graphs out.

The forward runs on a shadow, so nothing is patched for other threads and nothing is left
behind. Where ``torch.fx.wrap`` asks for a patch of a global name, it is made under a lock,
and calls without proxies go straight to the original.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph import proxy as px
from torchgraft.graph.arguments import argument
from torchgraft.graph.deciding import Decider
from torchgraft.graph.evaluate import evaluate
from torchgraft.graph.guard import listed, nothing
from torchgraft.graph.inputs import Arguments, Hints, placeholders
from torchgraft.graph.recording import Recording, recorded
from torchgraft.graph.settings import Reads, Setting
from torchgraft.graph.shadow import Shadows, mark
from torchgraft.graph.watched import is_shadow
from torchgraft.graph.whereabouts import cannot_follow
from torchgraft.paths import join_path


@attrs.frozen(eq=False)
class Traced:
    """What following a forward gave.

    Args:
        train: graph of the forward in training mode.
        evaluate: graph in evaluation mode; the same object where the mode is never read.
        constants: objects that the forward took from outside the module, by their new names.
        inlined: paths of the descendants whose mode the forward reads itself.
        by_values: example values decided, so the graph is for inputs like the example.
        settings: plain values that the forward read, in either mode.
        enumerated: paths of the modules whose children the forward goes through.
        alike: one object for all copies, which modules that are alike have.
    """

    train: fx.Graph
    evaluate: fx.Graph
    constants: dict[str, object]
    inlined: frozenset[str]
    by_values: bool = False
    settings: tuple[Setting, ...] = ()
    enumerated: frozenset[str] = frozenset()
    alike: object = attrs.field(factory=object)


def trace_level(
    module: nn.Module,
    path: str,
    arguments: Callable[[bool], Arguments | None],
    hints: Hints,
    hidden: Mapping[str, frozenset[str]] | None = None,
    gives_none: Callable[[nn.Module], bool] | None = None,
    method: str = "forward",
) -> Traced:
    """Follow the forward of one module, in both modes where it reads its mode.

    Args:
        module: the module; it is only read.
        path: where it stands, for messages.
        arguments: gives example arguments for a mode, or ``None``; asked where values decide.
        hints: arguments that callers pass, ``UNKNOWN`` for data; for the others the defaults
            are baked in.
        hidden: names of children that the forward does not see, by the path of their parent.
        gives_none: tells whether a child was seen to give ``None``, or something with ``None`` in it.
        method: another method to follow in the place of the forward.

    Returns:
        The graphs.

    Raises:
        TraceError: the forward cannot be followed; names module, file and line.
    """
    reads = Reads(module, hidden, gives_none, method)
    try:
        first = trace_mode(module, path, module.training, arguments, hints, reads)
        second = first
        if first.modes_read:
            second = trace_mode(module, path, not module.training, arguments, hints, reads, first.constants)
    except TraceError as error:
        error.enumerated, error.called = reads.enumerated, reads.called
        raise
    train, evaluate_ = (first, second) if module.training else (second, first)
    inlined = frozenset(first.modes_read | second.modes_read) - {""}
    seen = bool(first.example or second.example), reads.settings, reads.enumerated
    return Traced(train.graph, evaluate_.graph, second.constants, inlined, *seen)


def trace_mode(
    module: nn.Module,
    path: str,
    training: bool,
    arguments: Callable[[bool], Arguments | None],
    hints: Hints,
    reads: Reads | None = None,
    constants: Mapping[str, object] | None = None,
) -> Tracer:
    """Follow the forward of a module in one mode, as ``trace_level`` does."""
    reads = reads or Reads(module)
    try:
        return Tracer(module, path, training, None, hints, constants, reads).run()
    except px.NeedsValues as need:
        example = arguments(training)
        if example is None:
            raise cannot_follow(need.__cause__ or need, module, path) from need
    return Tracer(module, path, training, example, hints, constants, reads).run()


class Tracer(Decider):
    """Record one run of a forward on proxies.

    Args:
        module: the module to follow.
        path: where it stands.
        training: the mode to follow it in.
        example: example arguments, to decide on values; ``None`` to record without.
        hints: arguments that callers pass.
        constants: constants found in the other mode, to share their names.
        reads: takes note of what the forward reads.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        training: bool,
        example: Arguments | None,
        hints: Hints,
        constants: Mapping[str, object] | None,
        reads: Reads,
    ) -> None:
        super().__init__(module, path)
        self.mode = training
        self.example = example
        self.hints = hints
        self.modes_read: set[str] = set()
        self.constants: dict[str, object] = dict(constants or {})
        self.reads = reads
        self._reads: dict[str, px.Proxy] = {}
        self._recording = Recording(self)

    def run(self) -> Tracer:
        """Follow the forward and close the graph."""
        shadows = Shadows(self, self.reads)
        shadow = shadows.of(self.source)
        try:
            self._check_own()
            with recorded(self._recording), self._recording:
                function = getattr(shadow, self.reads.method)
                args, kwargs = placeholders(self, function)
                output = function(*args, **kwargs)
                self.graph.output(self.create_arg(output))
            shadows.check_unwritten()
        except (px.NeedsValues, TraceError):
            raise
        except (Exception, px.UnfollowableError) as error:
            if self.example is None and not isinstance(error, px.UnfollowableError):
                raise px.NeedsValues from error  # a second look, with values, may follow it
            raise cannot_follow(error, self.source, self.path, self.values) from error
        finally:
            self.clear_caches()
        return self

    def _check_own(self) -> None:
        own = vars(self.source).get("forward")
        if own is not None and getattr(own, "__self__", None) is not self.source:
            raise px.UnfollowableError("its forward was replaced on the instance")

    # What the shadow tells ---------------------------------------------------------------

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Record the call of a child."""
        me = mark(shadow)
        if not me.path:
            raise px.UnfollowableError("it calls the module itself")
        self.reads.called = True
        if self.example is None:
            with self._recording.paused():
                asked = self.reads.gives_none(me.source)
            if asked:
                raise px.NeedsValues  # nobody notices that a forward asks for None
        args, kwargs = tuple(map(self._listed, args)), {k: self._listed(a) for k, a in kwargs.items()}
        me.family.fire(me.source)
        return self.create_proxy("call_module", me.path, args, kwargs)

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Record the read of a parameter, a buffer or a plain tensor."""
        return self._read(join_path(mark(shadow).path, name), value)

    def training(self, shadow: nn.Module) -> bool:
        """Note that the forward reads a mode."""
        me = mark(shadow)
        if me.path and me.source.training is not self.source.training:
            raise px.UnfollowableError(f"it reads the mode of {me.path}, which is not its own")
        self.modes_read.add(me.path)
        return self.mode

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave tensors as they are."""
        return tensor

    def assign(self, shadow: nn.Module, name: str, value: object) -> None:
        """Refuse a write that the graph would lose."""
        me, held = mark(shadow), mark(shadow).source.__dict__
        if me.family.firing:
            return  # lost with the shadow, and done by the hook whenever the child runs
        if name == "training":
            raise px.UnfollowableError(f"it changes the mode of {me.path or 'the module'}")
        if px.is_proxy(value) or name not in held or not (value is held[name] or value == held[name]):
            raise px.UnfollowableError(f"it writes {name!r} on the module")

    # What the base class and the proxies ask ----------------------------------------------

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - signature of the base
        """Record a node, the line that made it and, where examples are known, its value."""
        self._recording.check_state()
        node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["line"] = self.lines()
        if self.example is not None and kind.startswith("call"):
            with self._recording.paused():
                self.values[node] = evaluate(node, self.values, self.source, training=self.mode)
        return node

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        *rest: Any,
    ) -> fx.Proxy:
        """Record a call; ``None`` is given back as it is, because a forward asks for it by identity."""
        proxy = super().create_proxy(kind, target, args, kwargs, name, *rest)
        if self.values.get(proxy.node, px.UNKNOWN) is not None:
            return proxy
        if kind != "call_function" or target in (operator.getitem, getattr):
            self.graph.call_function(nothing, (proxy.node, self.said()))
        return None  # type: ignore[return-value]  # stands for itself

    def create_arg(self, a: object) -> fx.node.Argument:
        """Turn a value of the forward into an argument of a node."""
        if type(a) is str and "Proxy(" in a:
            a = self.text(a)
        if isinstance(a, nn.Module) and not px.is_proxy(a) and is_shadow(a):
            a = self._module(a)
        if not px.is_proxy(a):
            a = (
                self._read(self._name(a), a)
                if isinstance(a, torch.Tensor)
                else argument(a, self.create_proxy, self.keep)
            )
        return a.node if px.is_proxy(a) else super().create_arg(a)  # type: ignore[attr-defined]  # a proxy

    def keep(self, value: object) -> fx.Node:
        """Keep an object on the level and record the read of it."""
        return self._read(self._name(value), value)  # type: ignore[return-value]  # a proxy is unwrapped later

    # Inside --------------------------------------------------------------------------------

    def _module(self, shadow: nn.Module) -> px.Proxy:
        me = mark(shadow)
        if not me.path:
            raise px.UnfollowableError("it hands the module itself on")
        return self._read(me.path, me.source)

    def _listed(self, value: object) -> object:
        # An interpreter hands over the lists in a graph as immutable ones, and some modules
        # write into the lists they are given.
        if type(value) is list and px.holds_proxy(value):
            return self.create_proxy("call_function", listed, tuple(value), {})
        return value

    def _read(self, path: str, value: object) -> px.Proxy:
        if path not in self._reads:
            node = self.graph.create_node("get_attr", path)
            self._reads[path] = self.proxy(node)
            if self.example is not None:
                with self._recording.paused():
                    self.values[node] = px.to_meta(value)
        return self._reads[path]

    def _name(self, value: object) -> str:
        """Name an object that the forward took from elsewhere than the module."""
        if isinstance(value, nn.Parameter):
            raise px.UnfollowableError("it uses a parameter that the module does not hold")
        for name, known in self.constants.items():
            if known is value:
                return name
        name = f"_constant{len(self.constants)}"
        self.constants[name] = value
        return name

"""Follow one forward with its children as leaves: module in, graphs out.

The forward runs on a shadow, so nothing is patched for other threads and nothing is left
behind. Where ``torch.fx.wrap`` asks for a patch of a global name, it is made under a lock,
and calls without proxies go straight to the original.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph import proxy as px
from torchgraft.graph.evaluate import evaluate
from torchgraft.graph.guard import baked, guard
from torchgraft.graph.recording import Recording, wrapped_functions
from torchgraft.graph.shadow import Shadows, mark
from torchgraft.graph.whereabouts import cannot_follow, place, traced_for


@attrs.frozen(eq=False)
class Traced:
    """What following a forward gave.

    Args:
        train: graph of the forward in training mode.
        evaluate: graph in evaluation mode; the same object where the mode is never read.
        constants: tensors that the forward took from outside the module, by their new names.
        inlined: paths of the descendants whose mode the forward reads itself.
    """

    train: fx.Graph
    evaluate: fx.Graph
    constants: dict[str, torch.Tensor]
    inlined: frozenset[str]


Arguments = tuple[tuple[object, ...], dict[str, object]]


def trace_level(module: nn.Module, path: str, arguments: Callable[[bool], Arguments | None]) -> Traced:
    """Follow the forward of one module, in both modes where it reads its mode.

    Args:
        module: the module; it is only read.
        path: where it stands, for messages.
        arguments: gives example arguments (meta tensors) for a mode, or ``None``; asked only
            when the forward decides on values.

    Returns:
        The graphs.

    Raises:
        TraceError: the forward cannot be followed; names module, file and line.
    """
    first = _trace_mode(module, path, module.training, arguments)
    if not first.modes_read:
        return Traced(first.graph, first.graph, first.constants, frozenset())
    second = _trace_mode(module, path, not module.training, arguments, first.constants)
    train, evaluate_ = (first, second) if module.training else (second, first)
    inlined = frozenset(first.modes_read | second.modes_read) - {""}
    return Traced(train.graph, evaluate_.graph, second.constants, inlined)


def _trace_mode(
    module: nn.Module,
    path: str,
    training: bool,
    arguments: Callable[[bool], Arguments | None],
    constants: Mapping[str, torch.Tensor] | None = None,
) -> Tracer:
    try:
        return Tracer(module, path, training, None, constants).run()
    except px.NeedsValues:
        example = arguments(training)
    if example is None:
        raise TraceError(
            f"the forward of {place(module, path)} decides on sizes, and no example input is known",
            module=path,
            write="pipe(model, ..., example=torch.zeros(<an input>))",
        )
    return Tracer(module, path, training, example, constants).run()


class Tracer(fx.proxy.TracerBase):
    """Record one run of a forward on proxies.

    Args:
        module: the module to follow.
        path: where it stands.
        training: the mode to follow it in.
        example: example arguments, to decide on values; ``None`` to record without.
        constants: constants found in the other mode, to share their names.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        training: bool,
        example: Arguments | None,
        constants: Mapping[str, torch.Tensor] | None,
    ) -> None:
        self.graph = fx.Graph(tracer_cls=None)
        self.module_stack = {}  # type: ignore[assignment]  # unused, read by the base
        self.node_name_to_scope = {}
        self.scope = fx.proxy.Scope("", None)
        self.source = module
        self.path = path
        self.mode = training
        self.example = example
        self.values: dict[fx.Node, object] = {}
        self.modes_read: set[str] = set()
        self.constants: dict[str, torch.Tensor] = dict(constants or {})
        self._reads: dict[str, fx.Node] = {}
        self._recording = Recording(self)
        self._paths: dict[int, str] = {}

    def run(self) -> Tracer:
        """Follow the forward and close the graph."""
        shadow = Shadows(self).of(self.source)
        try:
            args, kwargs = self._placeholders(shadow)
            with wrapped_functions(self), self._recording:
                output = shadow.forward(*args, **kwargs)
            self.graph.output(self.create_arg(output))
        except (px.NeedsValues, TraceError):
            raise
        except Exception as error:
            if self.example is None and not isinstance(error, px.DataDependentError):
                raise px.NeedsValues from error  # a second look, with values, may follow it
            raise cannot_follow(error, self.source, self.path) from error
        return self

    # What the shadow tells ---------------------------------------------------------------

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Record the call of a child."""
        me = mark(shadow)
        if not me.path:
            raise px.DataDependentError("the module calls itself")
        return self.create_proxy("call_module", me.path, args, kwargs)

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Record the read of a parameter or buffer."""
        path = f"{mark(shadow).path}.{name}".lstrip(".")
        return self.proxy(self._read(path, value))

    def training(self, shadow: nn.Module) -> bool:
        """Note that the forward reads a mode."""
        self.modes_read.add(mark(shadow).path)
        return self.mode

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave tensors as they are."""
        return tensor

    # What the base class and the proxies ask ----------------------------------------------

    def proxy(self, node: fx.Node) -> px.Proxy:
        """Make the proxy of a node."""
        return px.Proxy(node, self)

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - signature of the base
        """Record a node and, where examples are known, its value."""
        node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        if self.example is not None and kind.startswith("call"):
            with self._recording.paused():
                self.values[node] = evaluate(node, self.values, self.source, training=self.mode)
        return node

    def create_arg(self, a: object) -> fx.node.Argument:
        """Turn a value of the forward into an argument of a node."""
        if px.is_proxy(a):
            return a.node  # type: ignore[attr-defined, no-any-return]  # a proxy
        if isinstance(a, torch.Tensor):
            return self._read(self._tensor_path(a), a)
        if isinstance(a, (list, tuple)) and type(a) not in (list, tuple) and not hasattr(a, "_fields"):
            a = list(a) if isinstance(a, list) else tuple(a)
        try:
            return super().create_arg(a)
        except NotImplementedError:
            if callable(a) or a.__class__.__module__ not in ("builtins", "torch"):
                return a  # type: ignore[return-value]  # an enum or function is passed as it is
            raise

    def value(self, node: fx.Node) -> object:
        """Return the example value of a node."""
        return self.values.get(node, px.UNKNOWN)

    def decide(self, proxy: px.Proxy, read: Callable[[object], object]) -> object:
        """Read a plain value off a proxy and put a guard into the graph."""
        value = self.value(proxy.node)
        if value is px.UNKNOWN:
            raise px.NeedsValues
        if isinstance(value, torch.Tensor) and read is not len:
            raise px.DataDependentError("control flow depends on the data of a tensor")
        answer = read(value)
        node = proxy.node
        if read is len:
            node = self.create_proxy("call_function", len, (proxy,), {}).node
        if read in (bool, len, int, float):
            said = traced_for(self.source, self.path, self.values)
            self.graph.call_function(guard, (node, cast("fx.node.Argument", answer), said))
        return answer

    # Inside --------------------------------------------------------------------------------

    def _placeholders(self, shadow: nn.Module) -> tuple[list[object], dict[str, object]]:
        args: list[object] = []
        kwargs: dict[str, object] = {}
        parameters = inspect.signature(shadow.forward).parameters.values()
        given = _bind(shadow.forward, self.example)
        for parameter in parameters:
            name, default = parameter.name, parameter.default
            if parameter.kind is parameter.VAR_KEYWORD:
                continue  # only what callers name can be followed
            if parameter.kind is parameter.VAR_POSITIONAL:
                name = f"*{name}"
            known = given.get(parameter.name, default)
            wanted = () if default is parameter.empty else (default,)
            node = self.graph.placeholder(name, default_value=default if wanted else inspect.Signature.empty)
            passed: object
            if (
                default is parameter.empty
                or isinstance(known, (torch.Tensor, tuple, list, dict))
                or (type(known) in (int, float))
            ):
                passed = self.proxy(node)
                if self.example is not None:
                    self.values[node] = px.to_meta(known)
            else:
                passed = known
                self.graph.call_function(baked, (node, cast("fx.node.Argument", known), name))
            if parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[name] = passed
            elif parameter.kind is parameter.VAR_POSITIONAL:
                if known:
                    args.extend(passed)  # type: ignore[arg-type]  # iterating decides the count
            else:
                args.append(passed)
        return args, kwargs

    def _read(self, path: str, value: torch.Tensor) -> fx.Node:
        if path not in self._reads:
            self._reads[path] = node = self.graph.create_node("get_attr", path)
            if self.example is not None:
                self.values[node] = px.to_meta(value)
        return self._reads[path]

    def _tensor_path(self, tensor: torch.Tensor) -> str:
        if not self._paths:
            for prefix, module in self.source.named_modules():
                for name, held in (
                    *module._parameters.items(),
                    *module._buffers.items(),
                    *vars(module).items(),
                ):
                    if isinstance(held, torch.Tensor):
                        self._paths.setdefault(id(held), f"{prefix}.{name}".lstrip("."))
        path = self._paths.get(id(tensor))
        if path is not None:
            return path
        for name, known in self.constants.items():
            if known is tensor:
                return name
        name = f"_constant{len(self.constants)}"
        self.constants[name] = tensor
        return name


def _bind(forward: Callable[..., object], example: Arguments | None) -> dict[str, object]:
    if example is None:
        return {}
    args, kwargs = example
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)

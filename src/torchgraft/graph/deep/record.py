"""Record one run of a model down to primitive operations: which value each is made from.

The run is on shadows, so torch.fx need not follow a forward, and on meta tensors, so nothing
is computed. Values are numbered as they are made; a write renews all that share its memory.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchgraft.graph.dry.known import Constants
from torchgraft.graph.probe import Arguments
from torchgraft.graph.proxy import attributes_of, tensors_in
from torchgraft.graph.run import ModuleCall, Recorder, knowing, run_on_meta
from torchgraft.graph.shadow import mark


@attrs.frozen
class Ref:
    """Stand for a value among the arguments of an operation."""

    value: int


@attrs.frozen(eq=False)
class Op:
    """One primitive operation.

    Args:
        name: its name, without the overload: ``convolution``.
        args: its arguments, with references to values.
        kwargs: those given by keyword.
        inputs: the values among them.
        outputs: the values it makes.
        scope: number of the call whose own forward ran it.
        func: what was called; ``None`` for the trace that a write leaves on other views.
    """

    name: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: int
    func: torch._ops.OpOverload | None = None


@attrs.frozen(eq=False)
class Scope:
    """One call of a module.

    Args:
        path: where the module stands.
        cls: its class.
        number: which of the calls of this module it is.
        parent: number of the call that made it; -1 for the root.
        start: how many operations had run when it began.
        end: how many had run when it returned.
        inputs: the values it was given.
        outputs: the values it returned, each with the way to it: ``()`` for a plain tensor,
            ``(1,)`` for the second item of a sequence.
    """

    path: str
    cls: type[nn.Module]
    number: int
    parent: int
    start: int
    end: int
    inputs: tuple[int, ...]
    outputs: tuple[tuple[tuple[int | str, ...], int], ...]


@attrs.frozen(eq=False)
class Record:
    """What a run did.

    Args:
        shapes: shape of every value.
        ops: the operations, in order.
        scopes: the calls of modules, in the order in which they began.
        keys: the parameters and buffers among the values, by their names.
        inputs: the values that the model was given.
        outputs: the values that it returned.
        given: the parameters and buffers, as they were before anything was written into them.
        modal: paths of the modules that read their mode.
        calls: what the calls of modules got and gave, in the order in which they ended.
    """

    shapes: tuple[torch.Size, ...]
    ops: tuple[Op, ...]
    scopes: tuple[Scope, ...]
    keys: Mapping[int, str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    given: Mapping[int, str] = attrs.field(factory=dict)
    modal: frozenset[str] = frozenset()
    calls: tuple[ModuleCall, ...] = attrs.field(default=(), repr=False)


def record(model: nn.Module, arguments: Arguments, *, training: bool = False) -> Record:
    """Run a model on meta tensors and record what it does.

    Args:
        model: the model; it is only read.
        arguments: positional and keyword arguments that it takes.
        training: the mode to run in.

    Returns:
        The record.
    """

    def run(known: Constants | None) -> Record:
        values = Values()
        recorder = Scopes(values, training=training, constants=known)
        with Ops(values, recorder):
            run_on_meta(model, *arguments, training=training, recorder=recorder)
        return made_of(values, recorder)

    return knowing(run)


def made_of(values: Values, recorder: Scopes) -> Record:
    """Make the record of what was noted in a run."""
    scopes = tuple(recorder.scopes)
    root = scopes[0]
    return Record(
        tuple(values.shapes),
        tuple(values.ops),
        scopes,
        {values.now(tensor): key for key, tensor in recorder.keys.items()},
        root.inputs,
        tuple(value for _, value in root.outputs),
        recorder.first,
        frozenset(recorder.modal),
        tuple(recorder.calls),
    )


class Values:
    """Number tensors; one that is written to gets a new number."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []
        self.ops: list[Op] = []
        self._numbers: dict[int, int] = {}
        self._held: dict[int, object] = {}
        self._sharing: dict[int, list[weakref.ref[torch.Tensor]]] = {}

    def now(self, tensor: torch.Tensor) -> int:
        """Return the number of what a tensor holds now."""
        known = self._numbers.get(id(tensor))
        if known is None:
            self._held[id(tensor)] = self.hold(tensor)
            self._sharing.setdefault(_memory(tensor), []).append(weakref.ref(tensor))
            known = self.renew(tensor)
        return known

    def hold(self, tensor: torch.Tensor) -> object:
        """Keep a tensor alive: no other may take its identity."""
        return tensor

    def forget(self, identity: int) -> None:
        """Take it that there is no tensor of an identity any more."""
        self._numbers.pop(identity, None)
        self._held.pop(identity, None)

    def renew(self, tensor: torch.Tensor) -> int:
        """Give a tensor a new number."""
        self.shapes.append(tensor.shape)
        self._numbers[id(tensor)] = len(self.shapes) - 1
        return len(self.shapes) - 1

    def sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """List the other tensors that share the memory of one."""
        known = [ref() for ref in self._sharing.get(_memory(tensor), [])]
        return [other for other in known if other is not None and other is not tensor]


class Scopes(Recorder):
    """Take note of which call an operation runs in."""

    def __init__(self, values: Values, *, training: bool, constants: Constants | None = None) -> None:
        super().__init__(training, constants)
        self.scopes: list[Scope] = []
        self.keys: dict[str, torch.Tensor] = {}
        self.first: dict[int, str] = {}
        self.current = -1
        self._values = values
        self._numbers: dict[int, int] = {}

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow in a scope of its own."""
        parent, self.current = self.current, len(self.scopes)
        mine, start = self.current, len(self._values.ops)
        given = tuple(self._values.now(t) for t in tensors_in((args, kwargs)))
        me = mark(shadow)
        self.scopes.append(Scope(me.path, type(me.source), -1, parent, start, start, given, ()))
        try:
            output = super().call(shadow, args, kwargs)
        finally:
            self.current = parent
        number = self._numbers[id(me.source)] = self._numbers.get(id(me.source), -1) + 1
        made = tuple((way, self._values.now(tensor)) for way, tensor in ways(output))
        end = len(self._values.ops)
        self.scopes[mine] = Scope(me.path, type(me.source), number, parent, start, end, given, made)
        return output

    def hidden(self, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
        """Record a call whose operations cannot be seen as one operation."""
        given = tuple(self._values.now(t) for t in tensors_in((args, kwargs)))
        made = tuple(self._values.now(t) for t in tensors_in(output))
        self._values.ops.append(Op("hidden", tuple(map(Ref, given)), {}, given, made, self.current))
        return output

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Give the meta tensor of a tensor and note its name."""
        known = self.convert(value)
        key = f"{mark(shadow).path}.{name}".lstrip(".")
        if key not in self.keys:
            self.keys[key] = known
            self.first.setdefault(self._values.now(known), key)
        return known


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Take note of every primitive operation."""

    def __init__(self, values: Values, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._values = values
        self._scopes = scopes
        self._made: dict[object, tuple[tuple[tuple[torch.Size, tuple[int, ...]], torch.dtype], ...]] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        values = self._values
        taken: list[int] = []
        given = self._refs(args, taken), self._refs(kwargs, taken)
        output = self.run(func, args, kwargs, tuple(taken))
        written = _written(func, args, kwargs)
        for tensor in written:
            values.renew(tensor)
        made = tuple(values.now(tensor) for tensor in tensors_in(output))
        made += tuple(n for n in map(values.now, written) if n not in made)
        name, scope = func.overloadpacket.__name__, self._scopes.current
        values.ops.append(Op(name, given[0], given[1], tuple(taken), made, scope, func))  # type: ignore[arg-type]  # as given
        for tensor in written:
            for other in values.sharing(tensor):
                if not any(other is one for one in written):
                    both = (values.now(other), values.now(tensor))
                    refs = tuple(map(Ref, both))
                    values.ops.append(Op("written", refs, {}, both, (values.renew(other),), scope))
        return output

    def run(
        self,
        func: torch._ops.OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        taken: tuple[int, ...],  # noqa: ARG002 - for those who look at what runs
    ) -> object:
        """Run one operation; what the same one made of tensors that look the same is not worked out again."""
        if self._scopes.constants is not None or _hands_on(func):
            return func(*args, **kwargs)
        look = _look_of((args, kwargs))
        try:
            known = self._made.get((func, look))
        except TypeError:  # something in it is not hashable
            return func(*args, **kwargs)
        if known is not None:
            made = [torch.empty_strided(*sizes, dtype=dtype, device="meta") for sizes, dtype in known]
            return made[0] if len(func._schema.returns) == 1 else tuple(made)
        output = func(*args, **kwargs)
        made = [output] if len(func._schema.returns) == 1 else output
        if all(type(t) is torch.Tensor and t.is_meta and not t.is_sparse for t in made):
            self._made[func, look] = tuple(((t.shape, t.stride()), t.dtype) for t in made)
        return output

    def _refs(self, value: object, taken: list[int]) -> object:
        if isinstance(value, torch.Tensor):
            taken.append(self._values.now(value))
            return Ref(taken[-1])
        if isinstance(value, (tuple, list)):
            return tuple([self._refs(item, taken) for item in value])
        if isinstance(value, dict):
            return {key: self._refs(item, taken) for key, item in value.items()}
        return value


@functools.cache
def _hands_on(func: torch._ops.OpOverload) -> bool:
    """Return True if an operation writes into what it gets, or gives out a part of it."""
    schema = func._schema
    return schema.is_mutable or any(value.alias_info is not None for value in schema.returns)


def _look_of(value: object) -> object:
    """Return what an operation goes by in its arguments, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return type(value), *map(_look_of, value)
    if isinstance(value, dict):
        return tuple((key, _look_of(item)) for key, item in value.items())
    return type(value), value  # for 1, 1.0 and True are equal


def ways(
    output: object, way: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], torch.Tensor]]:
    """Yield the tensors of a nested output, each with the way to it."""
    if isinstance(output, torch.Tensor):
        yield way, output
    elif isinstance(output, (tuple, list)):
        for i, item in enumerate(output):
            yield from ways(item, (*way, i))
    elif isinstance(output, Mapping):
        for key, item in output.items():
            yield from ways(item, (*way, key))
    else:
        for name, item in attributes_of(output).items():
            yield from ways(item, (*way, name))


def _written(
    func: torch._ops.OpOverload,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> list[torch.Tensor]:
    if not func._schema.is_mutable:
        return []
    found: list[torch.Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            found += tensors_in(given)
    return found


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

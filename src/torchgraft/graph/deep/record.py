"""Record one run of a model down to primitive operations: which value each is made from.

The run is on shadows, so torch.fx need not follow a forward, and on meta tensors, so nothing
is computed. Values are numbered as they are made; a write renews all that share its memory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, cast

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
)
from torch.utils._pytree import tree_map, tree_map_only

from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.clone import clone
from torchgraft.graph.constant_values import Constants, ReadConstants, reads_values
from torchgraft.graph.modes import no_autocast_on_meta
from torchgraft.graph.proxy import attributes_of, tensors_in, to_meta
from torchgraft.graph.run import FAILED, UNTIL, Arguments, ModuleCall, Run
from torchgraft.graph.shadow import Chain, Shadows, Stage, mark


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
class Record(Run):
    """What a run did, down to primitive operations.

    Args:
        shapes: shape of every value.
        ops: the operations, in order.
        scopes: the calls of modules, in the order in which they began.
        keys: the parameters and buffers among the values, by their names.
        inputs: the values that the model was given.
        outputs: the values that it returned.
        given: the parameters and buffers, as they were before anything was written into them.
        modal: paths of the modules that read their mode.
    """

    shapes: tuple[torch.Size, ...]
    ops: tuple[Op, ...]
    scopes: tuple[Scope, ...]
    keys: Mapping[int, str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    given: Mapping[int, str] = attrs.field(factory=dict)
    modal: frozenset[str] = frozenset()


class Step(Protocol):
    """Runs one operation of a model in the place of the usual way to do it."""

    def __call__(
        self,
        number: int,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        values: tuple[int, ...],
    ) -> object:
        """Run operation ``number``, whose tensors have the numbers ``values``."""


def record(model: Stage, arguments: Arguments, *, training: bool = False, strict: bool = False) -> Record:
    """Run a model on meta tensors and record what it does.

    Args:
        model: the model, or another callable; it is only read.
        arguments: positional and keyword arguments that it takes.
        training: the mode to run in.
        strict: refuse inputs and weights of different dtypes, which the meta device takes.

    Returns:
        The record.
    """

    def run(known: Constants | None) -> Record:
        return record_with(Scopes(training, known, strict=strict), model, arguments)

    # What a function does to real tensors is not done to them where constants are known.
    return (
        with_constants(run)
        if all(isinstance(stage, nn.Module) for stage in _stages(model))
        else run(Constants())
    )


def record_with(scopes: Scopes, model: Stage, arguments: Arguments, step: Step | None = None) -> Record:
    """Run the shadow of a model and record what it does.

    Args:
        scopes: what takes note of the calls, and says what stands for tensors.
        model: the model, or another callable; it is only read.
        arguments: positional and keyword arguments that it takes.
        step: runs an operation, or does something else in its place; the usual way if there is none.

    Returns:
        The record, numbered as that of any other run of the same model.
    """
    shadow = Shadows(scopes).stage(model)
    modules = nn.ModuleList(stage for stage in _stages(model) if isinstance(stage, nn.Module))
    try:
        with _apart(), fresh_caches(modules):
            with scopes.place():
                scopes.ready(shadow)
            args = [scopes.given(value) for value in arguments[0]]
            kwargs = {name: scopes.given(value) for name, value in arguments[1].items()}
            with Ops(scopes, step), scopes.place():
                output = shadow(*args, **kwargs)
    except Exception as error:
        vars(error)[UNTIL] = tuple(scopes.calls)
        raise
    values, root = scopes.values, next((scope for scope in scopes.scopes if scope.parent < 0), None)
    return Record(
        tuple(values.shapes),
        tuple(values.ops),
        tuple(scopes.scopes),
        {values.now(tensor): key for key, tensor in scopes.keys.items()},
        root.inputs if root is not None else (),
        tuple(values.now(tensor) for _, tensor in ways(output)),
        scopes.first,
        frozenset(scopes.modal),
        calls=tuple(scopes.calls),
        output=scopes.noted(output),
        training=scopes.mode,
    )


def _stages(model: Stage) -> Sequence[Stage]:
    return model.stages if isinstance(model, Chain) else [model]


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Leave random numbers and gradients alone, and have attention spelled out in primitive operations."""
    python, fast = random.getstate(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(python)


def output_of(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object] | None = None) -> object:
    """Return what the output of a module looks like, by a run on meta tensors, else on zeros."""
    try:
        return record(module, (args, kwargs or {})).output
    except Exception as error:
        if not reads_values(error):
            raise
    return _on_zeros(module, args, kwargs or {})


def _on_zeros(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Run a clone of a module once on zeros, and return what its output looks like."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    trial = clone(module).eval()
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        given, named = tree_map_only(
            torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (args, kwargs)
        )
        return to_meta(trial(*given, **named))


_T = TypeVar("_T")


def with_constants(run: Callable[[Constants | None], _T]) -> _T:
    """Make a run; one that reads values is made again, with small constants known."""
    try:
        return run(None)
    except Exception as error:
        if not reads_values(error):
            raise
    return run(Constants())


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


class Scopes:
    """Take note of every call in a run, and of which call an operation runs in.

    Args:
        training: the mode that forwards read.
        constants: what is known of small tensors; nothing by default.
        values: the numbers of values.
        strict: refuse inputs and weights of different dtypes.
    """

    is_live = False

    def __init__(
        self,
        training: bool,
        constants: Constants | None = None,
        values: Values | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.calls: list[ModuleCall] = []
        self.constants = constants
        self.modal: set[str] = set()
        self.mode = training
        self.values = values or Values()
        self.strict = strict
        self.scopes: list[Scope] = []
        self.keys: dict[str, torch.Tensor] = {}
        self.first: dict[int, str] = {}
        self.current = -1
        self._numbers: dict[int, int] = {}
        self._clock = 0
        self._meta: dict[int, torch.Tensor] = {}

    def ready(self, shadow: Stage) -> None:
        """Make the twins of all tensors, and drop the caches that a module drops when its mode changes.

        Neither is part of the run.
        """
        if isinstance(shadow, nn.Module):
            model = mark(shadow).source
            for tensor in (*model.parameters(), *model.buffers()):
                self.convert(tensor)
            with contextlib.suppress(Exception):  # some are made for one mode alone
                shadow.train(not self.mode)
                shadow.train(self.mode)
            self.modal.clear()

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow in a scope of its own."""
        # Containers are copied: a caller may go on to fill the list that it passed.
        given = cast("tuple[object, ...]", self.noted(args)), cast("dict[str, object]", self.noted(kwargs))
        parent, self.current = self.current, len(self.scopes)
        mine, start = self.current, len(self.values.ops)
        inputs = tuple(self.values.now(t) for t in tensors_in((args, kwargs)))
        me = mark(shadow)
        self.scopes.append(Scope(me.path, type(me.source), -1, parent, start, start, inputs, ()))
        self._clock = started = self._clock + 1
        try:
            output = self._forward(shadow, args, kwargs)
        finally:
            self.current = parent
        self._clock += 1
        self.calls.append(ModuleCall(me.path, me.source, *given, self.noted(output), started, self._clock))
        number = self._numbers[id(me.source)] = self._numbers.get(id(me.source), -1) + 1
        made = tuple((way, self.values.now(tensor)) for way, tensor in ways(output))
        end = len(self.values.ops)
        self.scopes[mine] = Scope(me.path, type(me.source), number, parent, start, end, inputs, made)
        return output

    def _forward(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        hooked = shadow._forward_hooks or shadow._forward_pre_hooks
        forward: Callable[..., object] = shadow._call_impl if hooked else shadow.forward
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            # What has no weights, as monitors and quantisers have none, may look at values.
            me = mark(shadow)
            weighs = any(p.ndim > 1 for p in me.source.parameters())
            if weighs or self.constants is None or not reads_values(error):
                error.add_note(f"in {me.path or 'the root'}, a {type(me.source).__name__}")
                vars(error).setdefault(FAILED, ModuleCall(me.path, me.source, args, kwargs, None))
                raise
        # Its operations cannot be seen, so it stands as one.
        output = _on_zeros(me.source, args, kwargs)
        given = tuple(self.values.now(t) for t in tensors_in((args, kwargs)))
        made = tuple(self.values.now(t) for t in tensors_in(output))
        self.values.ops.append(Op("hidden", tuple(map(Ref, given)), {}, given, made, self.current))
        return output

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:
        """Give the meta tensor of a tensor and note its name."""
        known = self.convert(value)
        key = f"{mark(shadow).path}.{name}".lstrip(".")
        if key not in self.keys:
            self.keys[key] = known
            self.first.setdefault(self.values.now(known), key)
        return known

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Make new tensors on the meta device, and know small ones."""
        known = contextlib.nullcontext() if self.constants is None else ReadConstants(self.constants)
        with torch.device("meta"), no_autocast_on_meta(), known:
            yield

    def given(self, value: object) -> object:
        """Return what a model gets for its arguments."""
        return to_meta(value)

    def noted(self, value: object) -> object:
        """Keep of an argument or a result what it looks like."""
        return to_meta(value)

    def assign(self, shadow: nn.Module, name: str, value: object) -> None:
        """Let a forward write on its shadow."""
        for store in ("_parameters", "_buffers"):
            if name in mark(shadow).source.__dict__[store]:
                getattr(shadow, store)[name] = value

    def training(self, shadow: nn.Module) -> bool:
        """Give the mode of the run, and note who asks."""
        self.modal.add(mark(shadow).path)
        return self.mode

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the meta tensor of a tensor, one for each."""
        known = self._meta.get(id(tensor))
        if known is None:
            known = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                known = nn.Parameter(known, requires_grad=tensor.requires_grad)
            self._meta[id(tensor)] = known
            if self.constants is not None:
                self.constants.learn(known, tensor)
        return known


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Take note of every primitive operation."""

    def __init__(self, scopes: Scopes, step: Step | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._values = scopes.values
        self._scopes = scopes
        self._step = step
        self._made: dict[object, tuple[tuple[tuple[torch.Size, tuple[int, ...]], torch.dtype], ...]] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        values, constants = self._values, self._scopes.constants
        if constants is not None:
            if constants.are_apart(tensors_in((args, kwargs))) and not func._schema.is_mutable:
                return func(*args, **kwargs)
            args, kwargs = tree_map(constants.twin, (args, kwargs))
        taken: list[int] = []
        given = self._refs(args, taken), self._refs(kwargs, taken)
        written = _written(func, args, kwargs)
        if constants is None and not self._scopes.is_live and not all(t.is_meta for t in written):
            raise RuntimeError("a run on meta tensors does not write into others")  # it is made with twins
        if self._scopes.strict and func in _ALIKE:
            _check_dtypes(tensors_in(args))
        if self._step is None:
            output = self._run(func, args, kwargs)
        else:
            output = self._step(len(values.ops), func, args, kwargs, tuple(taken))
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

    def _run(
        self, func: torch._ops.OpOverload, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Run one operation; what the same one made of tensors that look the same is not worked out again."""
        if self._scopes.constants is not None:
            return self._scopes.constants.run(func, args, kwargs)
        if _hands_on(func) or _get_current_dispatch_mode() is not None:  # somebody around looks on too
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


def _check_dtypes(tensors: Iterable[torch.Tensor]) -> None:
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    if len(dtypes) > 1:
        raise RuntimeError(f"input and weights should have one dtype, but have {' and '.join(dtypes)}")


_ALIKE = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("convolution", "linear", "mm", "bmm", "addmm", "baddbmm")
)


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

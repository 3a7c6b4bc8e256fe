"""Compare the graph of a level with its own forward, before the first edit of it.

Both run once on throwaway clones, side by side, on random values under one seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast

import attrs
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from torchgraft.errors import SpecialisedError, TraceError
from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.clone import clone
from torchgraft.graph.dispatch import generate_forward
from torchgraft.graph.following import LEVEL, own_forward
from torchgraft.graph.hooking import HOOKS
from torchgraft.graph.probe import Arguments, small_guesses
from torchgraft.graph.run import ModuleCall, Run
from torchgraft.graph.settings import ADDED
from torchgraft.graph.trace import Traced
from torchgraft.graph.whereabouts import place

Outputs = Mapping[str, list[ModuleCall]]
"""What the children of a level were seen to return, call by call, by their path from the level."""

_LARGEST = 60_000_000
"""Numbers in the parameters of a level up to which its children are run."""


def check_level(
    module: nn.Module, path: str, traced: Traced, known: Run | None, run: Callable[[], Run | None]
) -> bool:
    """Check that the graphs of a forward compute what the forward computes.

    It is run on what it got in a run of the model, with stand-ins for the children; where there
    was none, on a small input that is guessed, with its children.

    Args:
        module: the module; it is only read.
        path: where it stands, for messages.
        traced: what following its forward gave.
        known: a run of the model on meta tensors, if one was made.
        run: makes such a run, if it can be made.

    Returns:
        True if it was compared; False where no input is known.

    Raises:
        TraceError: it computes something else.
    """
    return _check_modes(module, path, traced, functools.partial(_inputs, module, known, run))


def check_call(level: nn.Module, traced: Traced, given: Arguments, method: str) -> None:
    """Check that the graphs of a method compute what the method computes for the arguments of a call.

    Raises:
        TraceError: they compute something else.
    """
    if not issubclass(getattr(type(level), "_origin", type(level)), fx.GraphModule):
        _check_modes(level, "", traced, lambda called: iter([(given, {path: [] for path in called})]), method)


_Inputs = Callable[[Collection[str]], Iterator[tuple[Arguments, Outputs]]]


def _check_modes(
    module: nn.Module, path: str, traced: Traced, inputs: _Inputs, method: str = "forward"
) -> bool:
    if any(p.is_meta for p in module.parameters()):
        return False  # without values there is nothing to compare
    modes = (module.training,) if traced.train is traced.evaluate else (False, True)
    with _classes_kept(module, path):
        return all(_check_mode(module, path, traced, mode, inputs, method) for mode in modes)


@contextlib.contextmanager
def _classes_kept(module: nn.Module, path: str) -> Iterator[None]:
    """Undo what a run writes on the classes of a module, and refuse a forward that does."""
    mro = getattr(type(module), "_origin", type(module)).__mro__
    classes = [(cls, dict(vars(cls))) for cls in mro if cls.__module__.partition(".")[0] != "torch"]
    changed = ""
    try:
        yield
    finally:
        for cls, before in classes:
            for name in [n for n, value in vars(cls).items() if before.get(n, before) is not value]:
                if name.startswith("__"):
                    continue  # Python fills in some as they are asked for
                changed = name
                if name in before:
                    setattr(cls, name, before[name])
                else:
                    delattr(cls, name)
    if changed:
        raise _differs(module, path, f"{changed!r}, which it writes on its class,")


def _check_mode(
    module: nn.Module, path: str, traced: Traced, mode: bool, inputs: _Inputs, method: str
) -> bool:
    graph = traced.train if mode else traced.evaluate
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    twin, is_fresh = _twin(module, mode, traced), True
    for given, outputs in inputs(called):
        try:
            expected = _run(twin, _own(twin, method), given, outputs)
            if not is_fresh:  # another guess may have left something on it
                twin = _twin(module, mode, traced)
                expected = _run(twin, _own(twin, method), given, outputs)
        except Exception:  # noqa: BLE001 - a guess need not suit a forward
            is_fresh = False
            continue
        code, cause = generate_forward(graph), None
        for again in (expected.seen, []):  # where something differs, without the replays
            other = _twin(module, mode, traced)
            vars(other).update({name: _apart(value) for name, value in traced.constants.items()})
            try:
                difference = _difference(expected, _run(other, code.__get__(other), given, outputs, again))
            except SpecialisedError:
                break  # a guess for which the forward decides otherwise
            except Exception as error:  # noqa: BLE001 - it is raised below
                difference, cause = f"{type(error).__name__}: {error}".splitlines()[0], error
            if not difference:
                return True
        else:
            raise _differs(module, path, difference) from cause
        is_fresh = False
    return False


def _own(twin: nn.Module, method: str) -> Callable[..., object]:
    return own_forward(twin) if method == "forward" else getattr(twin, method)


def _inputs(
    module: nn.Module, known: Run | None, run: Callable[[], Run | None], called: Collection[str]
) -> Iterator[tuple[Arguments, Outputs]]:
    """Yield inputs for a forward, each with what stands for the children: nothing for the children."""
    if known is not None:
        yield from _recorded(module, known)
    if sum(p.numel() for p in module.parameters()) <= _LARGEST:
        for guess in itertools.islice(small_guesses(module), 12):
            yield ((guess,), {}), {path: [] for path in called}
    if known is None and (known := run()) is not None:
        yield from _recorded(module, known)


def _recorded(module: nn.Module, run: Run) -> Iterator[tuple[Arguments, Outputs]]:
    """Yield what a module got in a run, with what its children gave."""
    own = next((call for call in run.calls if call.module is module), None)
    if own is None:
        return
    names = {id(part): path for path, part in module.named_modules() if path}
    outputs: dict[str, list[ModuleCall]] = {}
    inside = [c for c in run.calls if own.started < c.started and c.ended < own.ended]
    ended = own.started
    for call in sorted(inside, key=lambda call: call.started):
        if call.started > ended and id(call.module) in names:  # by the forward itself, not by a child
            outputs.setdefault(names[id(call.module)], []).append(call)
            ended = call.ended
    yield (own.args, own.kwargs), outputs


def _twin(module: nn.Module, mode: bool, traced: Traced) -> nn.Module:
    """Return a clone of a level without hooks, and without what edits added."""
    twin = clone(module)
    for path, part in twin.named_modules():
        held = vars(part)
        for name in HOOKS & held.keys():
            held[name] = type(held[name])()  # hooks are for the model that runs
        held.update({n: _apart(v) for n, v in held.items() if isinstance(v, torch.Generator)})
        graph_runs = getattr(held.get(LEVEL), "runs_graph", False)
        if not path or not graph_runs or path in traced.enumerated:
            for name in held.get(ADDED, ()):
                part._modules.pop(name, None)  # a forward does not see what edits added
    origin = getattr(type(twin), "_origin", type(twin))
    if not issubclass(origin, fx.GraphModule):  # with the methods of the class, not with their graphs
        object.__setattr__(twin, "__class__", origin)
    return twin.train(mode)


def _apart(value: object) -> object:
    """Copy what a run may change: tensors, also in containers, and generators."""
    return tree_map(
        lambda v: (
            v.clone()
            if isinstance(v, torch.Tensor)
            else v.clone_state()
            if isinstance(v, torch.Generator)
            else v
        ),
        value,
    )


def _run(
    twin: nn.Module,
    forward: Callable[..., object],
    given: Arguments,
    outputs: Outputs,
    again: Sequence[_Call] = (),
) -> _Result:
    """Run a forward on a clone whose children are watched, and tell all that can be seen of it.

    Args:
        twin: the clone.
        forward: what to run.
        given: what it gets.
        outputs: what its children give, if that is not for them to say.
        again: the calls of children in another run; one that comes again need not be computed.
    """
    seen: list[_Call] = []
    for path, calls in outputs.items():
        child = twin.get_submodule(path)
        inner = child.forward
        if isinstance(inner, _Watched):  # of another guess
            inner = inner.forward
        kept = [call for call in again if call.path == path]
        vars(child)["forward"] = _Watched(seen, path, child, twin, inner, calls, kept)
    with fresh_caches(twin), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        args, kwargs = cast("Arguments", _real(given, twin))
        result = forward(*args, **kwargs)
    modes = {name: part.training for name, part in twin.named_modules()}
    return _Result((result, (args, kwargs)), seen, modes, dict(twin.named_buffers()))


@attrs.frozen
class _Call:
    """A call of a child: what it got, its mode, and what it gave, where it did nothing else."""

    path: str
    training: bool
    given: object
    output: object = None


@attrs.frozen
class _Result:
    output: object
    seen: list[_Call]
    modes: dict[str, bool]
    buffers: dict[str, torch.Tensor]


@attrs.define
class _Watched:
    """Stand for the forward of a child: note each call, and give what it gives.

    That is random values of what it was seen to give in a run on meta tensors; else what it gave
    for these arguments in another run; else what it computes.
    """

    seen: list[_Call]
    path: str
    child: nn.Module
    twin: nn.Module
    forward: Callable[..., object]
    calls: list[ModuleCall]
    kept: list[_Call]

    def __call__(self, *args: object, **kwargs: object) -> object:
        number = sum(other.path == self.path for other in self.seen)
        call = _Call(self.path, self.child.training, _apart((args, kwargs)))
        if self.calls:
            self.seen.append(call)
            known = self.calls[min(number, len(self.calls) - 1)]
            pairs = zip(tree_leaves((known.args, known.kwargs)), tree_leaves((args, kwargs)), strict=False)
            same = {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}
            return tree_map(lambda v: same[id(v)] if id(v) in same else _real(v, self.twin), known.output)
        kept = self.kept[number] if number < len(self.kept) else call
        if kept.output is not None and kept.training == call.training and _equal(kept.given, call.given):
            self.seen.append(kept)
            return _apart(kept.output)
        self.seen.append(call)
        place = len(self.seen) - 1
        held = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        held += [*self.child.parameters(), *self.child.buffers()]
        versions, state = [t._version for t in held], torch.random.get_rng_state()
        output = self.forward(*args, **kwargs)
        memory = [
            t.untyped_storage().data_ptr()
            for t in (*held, *tree_leaves(output))
            if isinstance(t, torch.Tensor)
        ]
        new = memory[len(held) :]
        pure = len(set(new)) == len(new) and not set(new) & set(memory[: len(held)])
        pure = pure and versions == [t._version for t in held]
        if pure and torch.equal(state, torch.random.get_rng_state()):
            self.seen[place] = attrs.evolve(call, output=_apart(output))
        return output


def _real(value: object, owner: nn.Module) -> object:
    """Make random tensors in the place of meta tensors."""
    device = next((p.device for p in owner.parameters() if not p.is_meta), torch.device("cpu"))

    def make(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_meta:  # of a call
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        if leaf.is_floating_point() or leaf.is_complex():
            made = torch.randn(leaf.shape, dtype=leaf.dtype, device=device)
        else:
            made = torch.randint(0, 2, leaf.shape, device=device).to(leaf.dtype)
        return made.as_strided(leaf.shape, leaf.stride()) if _is_dense(leaf) else made

    return tree_map(make, value)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return True if a tensor fills its memory, in whatever order of axes."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def _difference(expected: _Result, found: _Result) -> str:
    """Say in what two runs differ; nothing where they do not."""
    parts: tuple[tuple[str, Callable[[_Result], object]], ...] = (
        ("the output, or an argument, after the call", lambda run: run.output),
        ("the calls of its children", lambda run: [(c.path, c.training, c.given) for c in run.seen]),
        ("a mode", lambda run: run.modes),
        ("a buffer", lambda run: run.buffers),
    )
    return next((name for name, part in parts if not _equal(part(expected), part(found))), "")


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return one.is_meta or torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return _equal(vars(one), vars(other))
    plain = (str, int, float, bool, complex, type(None), torch.Tensor)
    return one is other or not isinstance(one, plain) or (type(one) is type(other) and one == other)


def _differs(module: nn.Module, path: str, difference: str) -> TraceError:
    return TraceError(
        f"the forward of {place(module, path)} cannot be followed by torch.fx: the graph does something else",
        module=path,
        found=f"{difference} differs on random values",
        write="an edit at a place outside this forward",
    )

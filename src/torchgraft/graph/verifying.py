"""Compare the graph of a level with its own forward, before the first edit of it.

Both run once on throwaway clones, side by side, on random values under one seed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import cast

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from torchgraft.errors import SpecialisedError, TraceError
from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.clone import clone
from torchgraft.graph.dispatch import generate_forward
from torchgraft.graph.following import ADDED, own_forward
from torchgraft.graph.hooking import HOOKS
from torchgraft.graph.probe import Arguments, small_guesses
from torchgraft.graph.run import ModuleCall, Run
from torchgraft.graph.trace import Traced
from torchgraft.graph.whereabouts import place

Outputs = Mapping[str, list[ModuleCall]]
"""What the children of a level were seen to return, call by call, by their path from the level."""

_LARGEST = 60_000_000
"""Numbers in the parameters of a level up to which its children are run."""

_Seen = list[tuple[str, bool, object]]
_Result = tuple[object, _Seen, dict[str, bool], dict[str, torch.Tensor]]


def check_level(module: nn.Module, path: str, traced: Traced, run: Callable[[], Run | None]) -> bool:
    """Check that the graphs of a forward compute what the forward computes.

    It is run on a small input that is guessed, with its children; where it takes none, on what
    it got in a run of the model, with stand-ins for the children.

    Args:
        module: the module; it is only read.
        path: where it stands, for messages.
        traced: what following its forward gave.
        run: gives a run of the model on meta tensors, if there is one.

    Returns:
        True if it was compared; False where no input is known.

    Raises:
        TraceError: it computes something else.
    """
    if any(p.is_meta for p in module.parameters()):
        return False  # without values there is nothing to compare
    modes = (module.training,) if traced.train is traced.evaluate else (False, True)
    return all(_check_mode(module, path, traced, mode, run) for mode in modes)


def _check_mode(
    module: nn.Module, path: str, traced: Traced, mode: bool, run: Callable[[], Run | None]
) -> bool:
    graph = traced.train if mode else traced.evaluate
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    twin, is_fresh = _twin(module, mode), True
    for given, outputs in _inputs(module, run, called):
        try:
            expected = _run(twin, own_forward(twin), given, outputs)
            if not is_fresh:  # another guess may have left something on it
                twin = _twin(module, mode)
                expected = _run(twin, own_forward(twin), given, outputs)
        except Exception:  # noqa: BLE001 - a guess need not suit a forward
            is_fresh = False
            continue
        code = generate_forward(graph)
        other = _twin(module, mode)
        vars(other).update(traced.constants)
        try:
            found = _run(other, code.__get__(other), given, outputs)
        except SpecialisedError:
            is_fresh = False
            continue  # a guess for which the forward decides otherwise
        except Exception as error:
            raise _differs(module, path, f"{type(error).__name__}: {error}".splitlines()[0]) from error
        difference = _difference(expected, found)
        if difference:
            raise _differs(module, path, difference)
        return True
    return False


def _inputs(
    module: nn.Module, run: Callable[[], Run | None], called: Collection[str]
) -> Iterator[tuple[Arguments, Outputs]]:
    """Yield inputs for a forward, each with what stands for the children: nothing for the children."""
    if sum(p.numel() for p in module.parameters()) <= _LARGEST:
        for guess in itertools.islice(small_guesses(module), 12):
            yield ((guess,), {}), {path: [] for path in called}
    known = run()
    own = next((call for call in known.calls if call.module is module), None) if known is not None else None
    if known is None or own is None:
        return
    names = {id(part): path for path, part in module.named_modules() if path}
    outputs: dict[str, list[ModuleCall]] = {}
    inside = [c for c in known.calls if own.started < c.started and c.ended < own.ended]
    ended = own.started
    for call in sorted(inside, key=lambda call: call.started):
        if call.started > ended and id(call.module) in names:  # by the forward itself, not by a child
            outputs.setdefault(names[id(call.module)], []).append(call)
            ended = call.ended
    yield (own.args, own.kwargs), outputs


def _twin(module: nn.Module, mode: bool) -> nn.Module:
    """Return a clone of a level without hooks, and without what edits added."""
    twin = clone(module)
    for part in twin.modules():
        for name in HOOKS & vars(part).keys():
            vars(part)[name] = type(vars(part)[name])()  # hooks are for the model that runs
        for name in vars(part).get(ADDED, ()):
            part._modules.pop(name, None)  # a forward does not see what edits added
    return twin.train(mode)


def _run(twin: nn.Module, forward: Callable[..., object], given: Arguments, outputs: Outputs) -> _Result:
    """Run a forward on a clone whose children are watched, and tell all that can be seen of it."""
    seen = _Seen()
    for path, calls in outputs.items():
        child = twin.get_submodule(path)
        inner = child.forward
        if isinstance(inner, functools.partial) and inner.func is _watched:  # of another guess
            inner = inner.args[3]
        vars(child)["forward"] = functools.partial(_watched, seen, path, twin, inner, calls)
    with fresh_caches(twin), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        args, kwargs = cast("Arguments", _real(given, twin))
        result = forward(*args, **kwargs)
    modes = {name: part.training for name, part in twin.named_modules()}
    return (result, (args, kwargs)), seen, modes, dict(twin.named_buffers())


def _watched(
    seen: _Seen,
    path: str,
    twin: nn.Module,
    forward: Callable[..., object],
    calls: list[ModuleCall],
    *args: object,
    **kwargs: object,
) -> object:
    """Note a call of a child; return what it gives, or random values of what it was seen to give."""
    number = sum(other == path for other, _, _ in seen)
    given = tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, (args, kwargs))
    seen.append((path, twin.get_submodule(path).training, given))
    if not calls:
        return forward(*args, **kwargs)
    known = calls[min(number, len(calls) - 1)]
    pairs = zip(tree_leaves((known.args, known.kwargs)), tree_leaves((args, kwargs)), strict=False)
    same = {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}
    return tree_map(lambda v: same[id(v)] if id(v) in same else _real(v, twin), known.output)


def _real(value: object, owner: nn.Module) -> object:
    """Make random tensors in the place of meta tensors."""
    device = next((p.device for p in owner.parameters() if not p.is_meta), torch.device("cpu"))

    def make(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
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
    names = ("the output, or an argument, after the call", "the calls of its children", "a mode", "a buffer")
    for name, one, other in zip(names, expected, found, strict=True):
        if not _equal(one, other):
            return name
    return ""


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

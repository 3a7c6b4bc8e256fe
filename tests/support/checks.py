"""What must hold for any model, one function a promise; each raises AssertionError."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import pickle
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from fingerprint import changes, fingerprint
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from torchgraft import at, features, freeze, op, pipe, replace, swap_head, tiers, wrap
from torchgraft.blocks import se
from torchgraft.graph.probe import Example, arguments_of

EXAMPLE: list[Example | None] = [None]
"""An input for forwards that decide on sizes; set by the sweep where a model needs it."""


def graft(model: nn.Module, *steps: object) -> nn.Module:
    return pipe(model, *steps, example=EXAMPLE[0])


def flat(output: object) -> list[torch.Tensor]:
    """List the tensors of an output."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in flat(value)]
    if dataclasses.is_dataclass(output):
        return flat(vars(output))
    if isinstance(output, (list, tuple)):
        return [t for value in output for t in flat(value)]
    return []


def same(one: object, other: object) -> bool:
    """Compare outputs bit by bit, NaN included."""
    a, b = flat(one), flat(other)
    return (
        type(one) is type(other)
        and len(a) == len(b)
        and all(
            x.shape == y.shape and torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
            for x, y in zip(a, b, strict=True)
        )
    )


def called(model: nn.Module, x: Example) -> object:
    """Call a model with an example as ``pipe`` takes it."""
    args, kwargs = arguments_of(x)
    return model(*args, **kwargs)


def run(model: nn.Module, x: Example, *, mode: bool) -> object:
    """Run a model in a mode from a fixed seed, without gradients."""
    model.train(mode)
    torch.manual_seed(3)
    random.seed(3)
    with torch.no_grad():
        return called(model, x)


def computes_the_same(model: nn.Module, x: torch.Tensor) -> None:
    """``pipe(m)`` is bit-equal to ``m`` after any sequence of mode switches; keys and order too."""
    result = graft(model)
    assert isinstance(result, torch.fx.GraphModule), "the root stayed a clone of its class"
    assert list(result.state_dict()) == list(model.state_dict()), "state-dict keys or order"
    twin = copy.deepcopy(model)
    for mode in (False, True, True, False):
        assert same(run(result, x, mode=mode), run(twin, x, mode=mode)), f"output, training={mode}"
    for (name, a), b in zip(result.state_dict().items(), twin.state_dict().values(), strict=True):
        assert same(a, b), f"statistics after training: {name}"
    classes = {path: type(module) for path, module in model.named_modules() if path}
    assert classes == {path: type(module) for path, module in result.named_modules() if path}, "classes"
    lost = [
        k
        for k, v in vars(model).items()
        if isinstance(v, (int, float, str, dict)) and not k.startswith("_") and k not in vars(result)
    ]
    assert not lost, f"attributes: {lost}"


def is_independent(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """Neither the edit nor training, freezing and switching the result shows in the model, and the other way round."""
    before = fingerprint(model)
    result = graft(model, wrap(stage, se), swap_head(7))
    assert not changes(before, fingerprint(model)), "by the edit"
    step(result, x)
    pipe(result, freeze("*"))
    result.eval().requires_grad_(False)
    assert not changes(before, fingerprint(model)), f"by training: {changes(before, fingerprint(model))[:5]}"
    after = fingerprint(result)
    twin = graft(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert not changes(before, fingerprint(model)), "by a second copy"
    assert not changes(after, fingerprint(result)), "between copies"


def step(model: nn.Module, x: Example, *, rate: float = 1e-2) -> None:
    """Take one optimizer step in training mode."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    torch.manual_seed(4)
    loss = sum((t.float() ** 2).mean() + t.float().mean() for t in flat(called(model, x)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def takes_a_block(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """``wrap(stage, se)`` is neutral, trains, and old checkpoints load with the new keys missing."""
    wrapped = graft(model, wrap(stage, se, name="added"))
    assert same(run(wrapped, x, mode=False), run(copy.deepcopy(model), x, mode=False)), "neutral start"
    new = [key for key in wrapped.state_dict() if key not in model.state_dict()]
    assert len(new) == 4, f"new keys {new}"
    missing, unexpected = wrapped.load_state_dict(model.state_dict(), strict=False)
    assert sorted(missing) == sorted(new), "missing keys"
    assert not unexpected, "unexpected keys"
    edited = graft(wrapped, swap_head(10))
    parameters = dict(edited.named_parameters())
    reached: set[str] = set()
    for attempt in range(2):
        edited.train(attempt == 0 or True)
        torch.manual_seed(5 + attempt)
        loss = sum((t.float() ** 2).sum() + t.float().sum() for t in flat(edited(x)))
        loss.backward()
        reached |= {k for k in new if parameters[k].grad is not None and parameters[k].grad.abs().sum() > 0}
        torch.optim.SGD(edited.parameters(), lr=1e-3).step()
        edited.zero_grad()
    assert reached == set(new), f"no gradient for {set(new) - reached}"
    edited.eval()
    assert all(t.shape[-1] == 10 for t in flat(edited(x))), "classes"


def is_a_good_citizen(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """The result can be transformed again, copied and pickled."""
    result = graft(model, wrap(stage, se), swap_head(10)).eval()
    expected = run(result, x, mode=False)
    for name, other in {
        "again": graft(result),
        "deepcopy": copy.deepcopy(result),
        "pickle": pickle.loads(pickle.dumps(result)),
    }.items():
        assert same(run(other, x, mode=False), expected), name
        assert list(other.state_dict()) == list(result.state_dict()), f"{name}: keys"


class OriginalCannotEitherError(Exception):
    """The model that was given fails at the same."""


def compiles(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """The result compiles as a full graph."""
    result = graft(model, wrap(stage, se), swap_head(10)).eval()
    try:
        close(run(_compiled(result), x, mode=False), run(result, x, mode=False))
    except Exception as error:
        _blame(error, lambda: run(_compiled(copy.deepcopy(model).eval()), x, mode=False))


def _compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


def exports(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """The result exports with a dynamic batch."""
    result = graft(model, wrap(stage, se), swap_head(10)).eval()
    more = torch.cat([x, x[:1]])
    try:
        with torch.no_grad():
            close(_exported(result, x)(more), result(more))
    except Exception as error:
        _blame(error, lambda: _exported(copy.deepcopy(model).eval(), x)(more))


def _exported(model: nn.Module, x: torch.Tensor) -> nn.Module:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()


def _blame(error: Exception, original: Callable[[], object]) -> None:
    try:
        original()
    except Exception as same:
        raise OriginalCannotEitherError(type(same).__name__) from same
    raise error


def close(one: object, other: object) -> None:
    """Compare outputs within 1e-5 of the largest value."""
    for a, b in zip(flat(one), flat(other), strict=True):
        gap, largest = float((a - b).detach().abs().max()), float(b.detach().abs().max())
        assert gap <= 1e-5 * max(1.0, largest), f"differs by {gap}"


class Watch(TorchDispatchMode):
    """Note the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


def loses_every_relu(model: nn.Module, x: torch.Tensor, stage: str) -> None:
    """After ``replace`` by class and by operation no ReLU runs, in either mode."""
    steps = (replace(at(kind).maybe(), nn.SiLU) for kind in (nn.ReLU, op(F.relu)))
    result = graft(model, *steps)
    for mode in (False, True):
        with Watch() as watch:
            run(result, x, mode=mode)
        assert "relu" not in watch.seen, f"training={mode}"


def gives_its_maps(
    model: nn.Module, x: Example, stage: str, *, modes: Sequence[bool] = (False, True)
) -> None:
    """``features`` at every stride gives what hooks at those places see, in both modes; the output stays."""
    maps = tiers(model, example=EXAMPLE[0]).maps
    names = [str(one.stride) for one in maps]
    result = graft(model, features(strides=[one.stride for one in maps], layout="native"))
    both = graft(model, features(strides=[one.stride for one in maps], layout="native", keep_output=True))
    twin = copy.deepcopy(model)
    seen = watched(twin, maps)
    for mode in modes:
        seen.clear()
        wanted = run(twin, x, mode=mode)
        expected = [functools.reduce(operator.getitem, one.item, seen[one.path, one.call]) for one in maps]
        output, given = run(both, x, mode=mode)
        assert same(output, wanted), f"output, training={mode}"
        assert list(given) == names, "names"
        assert same(list(given.values()), expected), f"maps beside the output, training={mode}"
        # Without the rest of the model fewer random numbers are drawn, so training is compared where none are.
        alone = run(result, x, mode=mode)
        if not mode or not draws(model, x):
            assert same(list(alone.values()), expected), f"maps, training={mode}"
    missing = result.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert not missing, "missing keys"


def watched(model: nn.Module, maps: Sequence[object]) -> dict[tuple[str, int], object]:
    """Keep clones of what modules give, by path and number of the call."""
    seen: dict[tuple[str, int], object] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            seen[path, sum(known == path for known, _ in seen)] = tree_map(
                lambda v: v.clone() if isinstance(v, torch.Tensor) else v, output
            )

        return hook

    for path in {one.path for one in maps}:
        model.get_submodule(path).register_forward_hook(note(path))
    return seen


def draws(model: nn.Module, x: Example) -> bool:
    """Tell whether training draws random numbers."""
    run(copy.deepcopy(model), x, mode=True)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    return not torch.equal(after, torch.get_rng_state())


CHECKS: dict[str, Callable[..., None]] = {
    "same": lambda m, x, stage: computes_the_same(m, x),
    "independent": is_independent,
    "block and head": takes_a_block,
    "again, copy, pickle": is_a_good_citizen,
    "compile": compiles,
    "export": exports,
    "no ReLU left": loses_every_relu,
    "maps": gives_its_maps,
}

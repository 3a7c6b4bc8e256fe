"""Directed pairs of independent implementations of one function, and a judge of aligners."""

from __future__ import annotations

import copy
import functools
import itertools
import time
from collections.abc import Callable, Mapping

import attrs
import torch
from attention_nets import ATTENTION_NETS
from convnets import CONVNETS
from group import Build
from randomised import difference, images, output, randomise
from torch import Tensor, nn

SAME = 1e-4
State = Mapping[str, Tensor]
Align = Callable[[nn.Module, nn.Module, Tensor], State]


@attrs.frozen
class Pair:
    """Two builders of seeded random models of one function, and the images they take.

    Args:
        source: builds the model that the weights come from.
        target: builds the model that they go to.
        shape: of the images.
    """

    source: Build
    target: Build
    shape: tuple[int, ...]


@attrs.frozen
class Judged:
    """What an aligner did with a pair.

    Args:
        right: target tensors that got the values they need; ``None`` where nobody knows which those are.
        wrong: target tensors that got others; ``None`` likewise.
        missing: target tensors that got none.
        error: largest difference of the outputs, as a share of the largest output.
        seconds: that it took.
    """

    right: int | None
    wrong: int | None
    missing: int
    error: float
    seconds: float

    @property
    def solved(self) -> bool:
        """Tell whether the target now computes what the source computes."""
        return self.error < SAME


def _seeded(build: Build, seed: int, shape: tuple[int, ...]) -> Build:
    return lambda: randomise(build(), seed, shape)


GROUPS = {**CONVNETS, **ATTENTION_NETS}
PAIRS: dict[str, Pair] = {
    f"{name}_{source}2{target}": Pair(
        _seeded(group.sides[source], 1, group.shape),
        _seeded(group.sides[target], 2, group.shape),
        group.shape,
    )
    for name, group in GROUPS.items()
    for source, target in itertools.permutations(group.sides, 2)
}


@attrs.frozen(eq=False)
class Case:
    """What a pair is judged against: pristine models, what the source computes, what matters of the target."""

    source: nn.Module
    target: nn.Module
    x: Tensor
    expected: Tensor
    needed: Mapping[str, Tensor]


@functools.lru_cache(maxsize=1)
def case(pair: Pair) -> Case:
    """Build what a pair is judged against; the last is kept, for several aligners in a row."""
    source, target, x = pair.source(), pair.target(), images(pair.shape)
    with torch.no_grad():
        expected = output(copy.deepcopy(source), x)
    return Case(source, target, x, expected, alive(copy.deepcopy(target), x))


def judge(pair: Pair, align: Align, truth: State | None = None) -> Judged:
    """Let an aligner fill a target, and see what it computes then.

    Without a truth, a result that makes the outputs agree is its own truth: all values are
    random and distinct. Tensors that the output does not depend on do not count.
    """
    held = case(pair)
    source, target = copy.deepcopy(held.source), copy.deepcopy(held.target)
    start = time.perf_counter()
    given = align(source, target, held.x)
    seconds = time.perf_counter() - start
    given = {key: value.detach().clone() for key, value in given.items()}
    error = mismatch(pair, given)
    missing = sum(key not in given for key in held.needed)
    if truth is None and error < SAME:
        truth = given
    if truth is None:
        return Judged(None, None, missing, error, seconds)
    right = sum(
        key in given and _equal(given[key], truth.get(key), mask) for key, mask in held.needed.items()
    )
    return Judged(right, len(held.needed) - missing - right, missing, error, seconds)


def mismatch(pair: Pair, state: State) -> float:
    """Tell how far a target with these tensors is from computing what the source computes."""
    held = case(pair)
    filled = copy.deepcopy(held.target)
    load(filled, state)
    with torch.no_grad():
        return difference(held.expected, output(filled, held.x))


def load(model: nn.Module, state: State) -> None:
    """Copy what is given and fits into a model."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key in state and state[key].shape == value.shape:
                value.copy_(state[key])


def alive(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Say which elements of which tensors the output depends on, by its gradient in double precision.

    Key biases of attention, for one, have no influence, for softmax cancels them. Statistics
    of BatchNorm have no gradient; they live where the layer was run.
    """
    ran: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.register_forward_hook(lambda *_, path=path: ran.add(f"{path}."))
    try:
        result = output(model.double(), x.double())
    except RuntimeError:  # some forwards make single-precision tensors of their own
        result = output(model.float(), x)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(3), dtype=result.dtype)
    (result * weights).sum().backward()
    slopes = {k: p.grad.abs() for k, p in model.named_parameters() if p.grad is not None}
    least = max(s.max().item() for s in slopes.values()) * (1e-12 if result.dtype == torch.float64 else 1e-6)
    masks = {key: slope > least for key, slope in slopes.items() if (slope > least).any()}
    statistics = {
        key: torch.ones_like(buffer, dtype=torch.bool)
        for key, buffer in model.named_buffers()
        if key.endswith(("running_mean", "running_var")) and f"{key.rpartition('.')[0]}." in ran
    }
    return {**masks, **statistics}


def _equal(found: Tensor, expected: Tensor | None, mask: Tensor) -> bool:
    return expected is not None and found.shape == mask.shape and torch.equal(found[mask], expected[mask])

"""What ``≡`` means: one graph up to node names, one state, one set of modes, and one function in both modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from checks import run, same
from fingerprint import bits
from strategies import inputs
from torch import nn

Graphs = dict[str, list[list[str]]]


def normal(graph: torch.fx.Graph) -> list[str]:
    """Write a graph with numbers in place of the names of its nodes."""
    numbers: dict[torch.fx.Node, str] = {}
    rows = []
    for node in graph.nodes:
        held = {"args": node.args, "kwargs": node.kwargs}
        numbers[node] = f"%{len(numbers)}"
        said = torch.fx.map_arg(held, lambda n: _Said(numbers[n]))
        target = "" if node.op in ("placeholder", "output") else node.target
        rows.append(f"{node.op} {target} {said}")
    return rows


class _Said(str):
    """A text that is written without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def graphs(model: nn.Module) -> Graphs:
    """Return the graphs of the levels of a model, by path."""
    return {
        path: [normal(graph) for graph in module.graphs]
        for path, module in model.named_modules()
        if isinstance(module, torch.fx.GraphModule)
    }


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer, those that are not saved and every name of shared ones too."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def modes(model: nn.Module) -> dict[str, bool]:
    """Return the mode of every module."""
    return {path: module.training for path, module in model.named_modules(remove_duplicate=False)}


def shares(model: nn.Module) -> set[frozenset[str]]:
    """Return the groups of names under which one tensor or one module is held."""
    named = [*model.named_modules(remove_duplicate=False), *tensors(model).items()]
    groups: dict[int, set[str]] = {}
    for name, held in named:
        groups.setdefault(id(held), set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def equivalent(
    one: nn.Module, other: nn.Module, *, fresh: Sequence[str] = (), graph: bool = True, channels: int = 3
) -> None:
    """Assert that two models are equivalent.

    Args:
        one: a model; it is run in both modes.
        other: another one, likewise.
        fresh: keys of new tensors that may hold other values; those of the first are taken.
        graph: also compare the forwards of levels that both have opened.
        channels: channels of the input.
    """
    here, there = tensors(one), tensors(other)
    assert list(one.state_dict()) == list(other.state_dict())
    assert list(here) == list(there)
    differ = [k for k in here if k not in fresh and bits(here[k]) != bits(there[k])]
    assert not differ
    assert {k: p.requires_grad for k, p in here.items()} == {k: p.requires_grad for k, p in there.items()}
    assert modes(one) == modes(other)
    assert shares(one) == shares(other)
    if graph:
        ours, theirs = graphs(one), graphs(other)
        unlike = [path for path in ours if path in theirs and ours[path] != theirs[path]]
        assert not [(ours[path], theirs[path]) for path in unlike]
    if fresh:
        other.load_state_dict(one.state_dict(), strict=True)
    x = inputs(channels=channels)
    for mode in (False, True):
        assert same(run(one, x, mode=mode), run(other, x, mode=mode)), f"outputs, training={mode}"
    here, there = tensors(one), tensors(other)
    assert not [k for k in here if bits(here[k]) != bits(there[k])], "statistics after training"


def new_keys(model: nn.Module, *results: nn.Module) -> list[str]:
    """Return the keys that results have and the model has not."""
    return [k for result in results for k in result.state_dict() if k not in model.state_dict()]

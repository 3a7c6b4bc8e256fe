"""Read facts off the graphs of a model."""

from __future__ import annotations

import re

from torch import nn

from torchgraft.graph.guard import baked, guard
from torchgraft.graph.level import edited_graphs, state_of

_NUMBER = re.compile(r"(?<![\w/])\d+(?=\.\w)|(?<=\.)\d+(?=[.' ])")
"""A number in the path of a module."""


def guards_of(model: nn.Module) -> tuple[str, ...]:
    """List what the levels of a model check at each call, those of alike modules as one fact."""
    said = {
        str(node.args[2])
        for module in model.modules()
        for graph in edited_graphs(module)
        for node in graph.nodes
        if node.target is guard
    }
    settings = {
        f"{path or 'the root'} was traced with {node.args[2]}={node.args[1]!r}"
        for path, module in model.named_modules()
        for graph in edited_graphs(module)
        for node in graph.nodes
        if node.target is baked
    }
    return (*_folded(said), *_folded(settings))


def _folded(said: set[str]) -> list[str]:
    """Make one fact of those that differ by the numbers in a path alone."""
    alike: dict[str, list[str]] = {}
    for one in sorted(said):
        alike.setdefault(_NUMBER.sub("*", one), []).append(one)
    return [f"{fact}, {len(each)} alike" if len(each) > 1 else each[0] for fact, each in alike.items()]


def levels_of(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Tell how the root of a model, and each level that was edited, runs."""
    found = [(path, edited_graphs(part), part) for path, part in model.named_modules()]
    return tuple(
        (path, _how(part) if graphs else "Python") for path, graphs, part in found if graphs or not path
    )


def _how(level: nn.Module) -> str:
    state = state_of(level)
    patterns = f", {len(state.patterns)} patterns" if len(state.patterns) > 1 else ""
    return f"graph{patterns}{'' if state.is_checked else ', not checked'}"

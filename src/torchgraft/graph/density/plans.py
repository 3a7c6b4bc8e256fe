"""Changes that the walk plans: nodes put around others, and what cannot be planned."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from torch import fx

from torchgraft.errors import TargetError
from torchgraft.graph.density import dense
from torchgraft.graph.density.walk import Fact, Grid, Tokens, Walk, name_of
from torchgraft.graph.density.window import Pair, Window, trims, widens
from torchgraft.graph.layout_rules import operation


def refuse(owner: str, node: fx.Node, fact: Grid | Tokens) -> TargetError:
    """Say that an operation cannot be done on a denser map."""
    if isinstance(fact, Grid):
        what, stride = f"a map of {fact.density[0]} x {fact.density[1]} times the places", max(fact.stride)
    else:
        what, stride = f"what {fact.by!r} made of a map with more places", fact.stride
    return TargetError(
        f"{name_of(owner, node)!r} mixes places in a way that cannot be dilated",
        found=f"{node.target if node.op == 'call_module' else operation(node)} on {what}",
        write=f"dilate({stride}), with which the maps there stay as they are",
    )


def unclear(owner: str, node: fx.Node, fact: Tokens) -> TargetError:
    """Say that something takes every n-th place out of what is no map any more."""
    return TargetError(
        f"the stride behind {name_of(owner, node)!r} cannot be told",
        found=f"{fact.by!r} mixes places on the way there",
        write="the part of the model before it: pipe(<that part>, dilate(...))",
    )


def plan(
    walk: Walk, owner: str, node: fx.Node, what: object, change: Callable[[], None] | None, key: object = None
) -> None:
    """Plan a change of one node, for which its level is opened."""

    def act() -> None:
        walk.draft.open(owner)
        if change is not None:
            change()

    walk.decide(key or node, name_of(owner, node), what, act if change is not None else None)


def whole(
    walk: Walk,
    owner: str,
    node: fx.Node,
    grid: Grid,
    result: Fact = None,
    also: Callable[[], None] | None = None,
) -> Fact:
    """Let what looks at the whole map see the places that it saw before."""
    index: list[slice[int | None, int | None, int | None]] = [slice(None)] * grid.rank
    for axis, density in zip(grid.axes, grid.density, strict=True):
        index[axis] = slice(None, None, density) if density > 1 else slice(None)

    def change() -> None:
        source = node.all_input_nodes[0]
        with node.graph.inserting_before(node):
            seen = node.graph.call_function(operator.getitem, (source, tuple(index)))
        node.replace_input_with(source, seen)
        if also is not None:
            also()

    plan(walk, owner, node, ("seen", grid.density), change if grid.is_dense else None)
    return result


def fit(
    walk: Walk,
    owner: str,
    node: fx.Node,
    grid: Grid,
    window: Window,
    step: Pair,
    value: float,
    *,
    padded: bool,
) -> None:
    """Add the places that a denser layer lacks at the ends, and take off those before the first."""
    specs = window.specs(grid.density, step)
    if (step, grid.density) == (window.stride, (1, 1)):
        return
    wide, late = padded or widens(specs, ceil=window.ceil), trims(specs)

    def change() -> None:
        graph, source = node.graph, node.all_input_nodes[0]
        with graph.inserting_before(node):
            wider = graph.call_function(dense.widen, (source, *specs, window.ceil, value, padded))
        node.replace_input_with(source, wider)
        if late:
            with graph.inserting_after(node):
                trimmed = graph.call_function(dense.trim, (node, source, *specs))
            node.replace_all_uses_with(trimmed, delete_user_cb=lambda user: user is not trimmed)

    if wide or late:
        plan(walk, owner, node, specs, change, key=(node, "ends"))


def average_instead(
    walk: Walk, owner: str, node: fx.Node, grid: Grid, window: Window, step: Pair, unusual: Sequence[object]
) -> None:
    """Pool to averages by what can read places that lie apart, where the layer would have to."""
    specs = window.specs(grid.density, step)
    changed = (step, grid.density) != (window.stride, (1, 1))
    if window.same and changed:
        raise refuse(owner, node, grid)

    def change() -> None:
        source = node.all_input_nodes[0]
        with node.graph.inserting_after(node):
            new = node.graph.call_function(dense.average, (source, *specs, *unusual))  # type: ignore[arg-type]  # plain
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)

    plan(walk, owner, node, specs, change if changed else None)

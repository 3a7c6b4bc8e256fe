"""What convolutions, poolings and paddings need to read the same places in a denser map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import fx, nn

from torchgraft.errors import AnalysisError
from torchgraft.graph.density import dense
from torchgraft.graph.density.plans import average_instead, fit, plan, refuse, unclear, whole
from torchgraft.graph.density.walk import Fact, Facts, Grid, Tokens, Walk, name_of
from torchgraft.graph.density.window import (
    AVG_POOL2D,
    CONV2D,
    MAX_POOL2D,
    Pair,
    Window,
    arguments,
    check_dense,
    settings,
    window_of,
    window_of_call,
)
from torchgraft.graph.layout_rules import operation

# Layers ----------------------------------------------------------------------------------------


def layer_window(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let a convolution or pooling read the same places as before."""
    path = name_of(owner, node)
    module, source = walk.draft.get(path), node.all_input_nodes[0]
    window = window_of(module)
    grid = _taken(owner, node, facts[source], window)
    if not isinstance(grid, Grid):
        walk.decide(id(module), path, window, None)
        return grid
    if _covers(window, _seen(walk, path)):
        walk.decide(id(module), path, window, None)
        return whole(walk, owner, node, grid)
    step, result = _stepped(walk, owner, node, grid, window.stride)
    if isinstance(module, nn.AvgPool2d):
        unusual = (window.ceil, module.count_include_pad, module.divisor_override)
        average_instead(walk, owner, node, grid, window, step, unusual)
        return result
    new = window if (step, grid.density) == (window.stride, (1, 1)) else window.dense(grid.density, step)
    bare = isinstance(module, nn.MaxPool2d) and new.is_pooled_bare
    if bare:
        new = attrs.evolve(new, padding=(0, 0))
    if new != window:
        check_dense(module, path, window, grid.density, step)
    change = (lambda: vars(module).update(settings(module, new))) if new != window else None
    walk.decide(id(module), path, new, change)
    value = float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0
    fit(walk, owner, node, grid, window, step, value, padded=bare)
    return result


def pad_layer(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let a padding layer add as many places of the original as before."""
    path = name_of(owner, node)
    module, fact = walk.draft.get(path), facts[node.all_input_nodes[0]]
    density = fact.density if isinstance(fact, Grid) else (1, 1)
    held: Any = module.padding
    sides = (held,) * 4 if isinstance(held, int) else tuple(held)
    new = (*(s * density[1] for s in sides[:2]), *(s * density[0] for s in sides[2:]))
    if isinstance(fact, Grid) and fact.is_dense and isinstance(module, nn.CircularPad2d):
        raise refuse(owner, node, fact)
    walk.decide(id(module), path, new, (lambda: setattr(module, "padding", new)) if new != sides else None)
    return fact


# Functions -------------------------------------------------------------------------------------


def call_window(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let a functional convolution or pooling read the same places as before."""
    name, kernel = operation(node), None
    held: dict[str, Any] = arguments(node, {"conv2d": CONV2D, "max_pool2d": MAX_POOL2D}.get(name, AVG_POOL2D))
    source = held["input"]
    if not isinstance(source, fx.Node) or not isinstance(facts[source], (Grid, Tokens)):
        return None
    if isinstance(held.get("weight"), fx.Node):
        shape = walk.shape(owner, held["weight"])
        kernel = tuple(shape[-2:]) if shape is not None else None
    window = window_of_call(held, kernel)
    if window is None:
        fact = facts[source]
        if isinstance(fact, (Grid, Tokens)) and fact.is_dense:
            raise refuse(owner, node, fact)
        shape = walk.shape(owner, node)
        # A kernel that is computed is most often that of the whole map.
        return None if shape is not None and shape[-2:] == (1, 1) else Tokens(name_of(owner, node))
    grid = _taken(owner, node, facts[source], window)
    if not isinstance(grid, Grid):
        return grid
    if _covers(window, [walk.shape(owner, source)] if min(window.kernel) > 3 else []):
        return whole(walk, owner, node, grid)
    step, result = _stepped(walk, owner, node, grid, window.stride)
    if name == "avg_pool2d":
        unusual = (window.ceil, held["count_include_pad"], held["divisor_override"])
        average_instead(walk, owner, node, grid, window, step, unusual)
        return result
    new = window if (step, grid.density) == (window.stride, (1, 1)) else window.dense(grid.density, step)
    bare = name == "max_pool2d" and new.is_pooled_bare
    if bare:
        new = attrs.evolve(new, padding=(0, 0))
    if new != window:
        held.update(stride=step, dilation=new.dilation, padding="same" if window.same else new.padding)
        if "ceil_mode" in held:
            held["ceil_mode"] = False

        def change() -> None:
            held["input"] = node.all_input_nodes[0]
            node.args, node.kwargs = tuple(held.values()), {}

        plan(walk, owner, node, new, change)
    else:
        plan(walk, owner, node, window, None)
    fit(walk, owner, node, grid, window, step, 0.0 if name == "conv2d" else float("-inf"), padded=bare)
    return result


def pad(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let a functional padding add as many places of the original as before."""
    names = ("input", "pad", "mode", "value")
    held: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    fact, sides = facts[node.all_input_nodes[0]], held["pad"]
    if not isinstance(fact, Grid):
        return fact
    fixed = isinstance(sides, Sequence) and all(isinstance(side, int) for side in sides)
    if not fact.is_dense:
        plan(walk, owner, node, sides if fixed else "", None)
        return fact
    if not fixed or held.get("mode") == "circular":
        raise refuse(owner, node, fact)
    times = {fact.rank - 1 - axis: density for axis, density in zip(fact.axes, fact.density, strict=True)}
    held["pad"] = [side * times.get(i // 2, 1) for i, side in enumerate(sides)]

    def change() -> None:
        held.pop("input")
        node.args, node.kwargs = (node.all_input_nodes[0],), held

    plan(walk, owner, node, tuple(held["pad"]), change)
    return fact


def helper(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let what an earlier dilation put in count on a map that is denser still."""
    names = ("y", "x", "rows", "columns") if node.target is dense.trim else ("x", "rows", "columns")
    held: dict[str, Any] = dict(zip(names, node.args, strict=False))
    grid, specs = facts[held["x"]], (held["rows"], held["columns"])
    if not isinstance(grid, Grid):
        return grid
    strides: Pair = (specs[0][5], specs[1][5])
    step, result = _stepped(walk, owner, node, grid, strides, counts=node.target is dense.average)
    new = [(*s[:4], s[4] * d, t) for s, d, t in zip(specs, grid.density, step, strict=True)]
    start = names.index("rows")

    def change() -> None:
        node.args = (*node.args[:start], *new, *node.args[start + 2 :])

    plan(walk, owner, node, tuple(new), change if tuple(new) != specs else None)
    if node.target is dense.trim:
        return facts[held["y"]]
    return result if node.target is dense.average else grid


# What they share -------------------------------------------------------------------------------


def _taken(owner: str, node: fx.Node, fact: Fact, window: Window) -> Grid | Tokens | None:
    """Return the map that a window moves over; tokens and vectors are left as they are."""
    if isinstance(fact, Tokens):
        if fact.sliced:
            raise refuse(owner, node, fact)
        if window.stride != (1, 1):
            raise unclear(owner, node, fact)
        return fact
    if not isinstance(fact, Grid):
        return None
    if (fact.axes, fact.rank) != ((2, 3), 4):
        if fact.is_dense:
            raise refuse(owner, node, fact)
        # An input may come channels last; what else has its places elsewhere is no map.
        return Grid((2, 3), 4) if fact.stride == (1, 1) else Tokens(name_of(owner, node))
    return fact


def _stepped(
    walk: Walk, owner: str, node: fx.Node, grid: Grid, strides: Pair, *, counts: bool = True
) -> tuple[Pair, Grid]:
    """Choose the strides that are left, and tell what comes out."""
    step = list(strides)
    for axis, (stride, density, own) in enumerate(zip(grid.stride, grid.density, strides, strict=True)):
        now = stride // density
        if walk.limit is not None and now > walk.limit:
            raise refuse(owner, node, grid)
        if walk.limit is not None:
            step[axis] = max(
                t for t in range(1, own + 1) if own % t == 0 and (t == 1 or now * t <= walk.limit)
            )
    made = attrs.evolve(
        grid,
        stride=(grid.stride[0] * strides[0], grid.stride[1] * strides[1]),
        density=(grid.density[0] * strides[0] // step[0], grid.density[1] * strides[1] // step[1]),
    )
    if counts:
        walk.count(made.stride)
    return (step[0], step[1]), made


def _covers(window: Window, shapes: Sequence[Sequence[int] | None]) -> bool:
    """Tell whether one window is the whole map; small ones may be so by chance."""
    plain = min(window.kernel) > 3 and window.padding == (0, 0) and not window.same
    return plain and bool(shapes) and all(s is not None and tuple(s[-2:]) == window.kernel for s in shapes)


def _seen(walk: Walk, path: str) -> list[Sequence[int] | None]:
    try:
        return [getattr(call.args[0], "shape", None) for call in walk.draft.record(path) if call.args]
    except AnalysisError:
        return []

"""What takes a map apart, sums it up or moves its axes, and what that needs where it is denser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx

from torchgraft.graph.density import dense
from torchgraft.graph.density.meetings import first, pointwise, unknown
from torchgraft.graph.density.plans import plan, refuse, unclear, whole
from torchgraft.graph.density.walk import Each, Fact, Facts, Grid, Rule, Tokens, Walk, name_of
from torchgraft.graph.layout_rules import operation


def reduced(place: int) -> Rule:
    """Make the rule of what sums up over axes; over both places it looks at the whole map."""

    def rule(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
        fact, given = first(walk, owner, node, facts), argument(node, place, ("dim", "axis"))
        if not isinstance(fact, (Grid, Tokens)):
            return None
        if isinstance(given, fx.Node):  # the larger of two
            return pointwise(walk, owner, node, facts)
        axes = axes_of(given)
        rank, held = fact.rank, _places(fact)
        if axes is None or (rank is not None and held and held <= {axis % rank for axis in axes}):
            return whole(walk, owner, node, fact) if isinstance(fact, Grid) else None
        if rank is None or not spares(fact, axes):
            return fact if isinstance(fact, Tokens) else unknown(walk, owner, node, facts)
        gone = {axis % rank for axis in axes}
        if not argument(node, place + 1, ("keepdim",)):
            fact = _moved_to(
                fact, {axis: axis - sum(g < axis for g in gone) for axis in held}, rank - len(gone)
            )
        return Each(fact) if operation(node) in ("max", "min") else fact

    return rule


def moved(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Follow axes that change places."""
    fact = first(walk, owner, node, facts)
    if not isinstance(fact, (Grid, Tokens)) or fact.rank is None or len(node.all_input_nodes) > 1:
        return fact if isinstance(fact, Tokens) else unknown(walk, owner, node, facts)
    # Every axis of the marker has a size of its own, which tells where it went.
    marker = torch.empty(tuple(range(2, fact.rank + 2)), device="meta")
    function: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    moved = function(marker, *node.args[1:], **node.kwargs)
    return _moved_to(fact, {size - 2: axis for axis, size in enumerate(moved.shape)}, fact.rank)


def reshaped(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Find the places in another shape; where they come in one row, the original's are taken."""
    fact = first(walk, owner, node, facts)
    if not isinstance(fact, (Grid, Tokens)):
        return None
    old, new = walk.shape(owner, node.all_input_nodes[0]), walk.shape(owner, node)
    held = sorted(_places(fact))
    if old is None or new is None or not held or held[-1] - held[0] != len(held) - 1:
        if isinstance(fact, Grid):
            return unknown(walk, owner, node, facts)
        return attrs.evolve(fact, axis=None, rank=None)
    places, sizes = old[held[0] : held[-1] + 1], _sizes(node)
    # In row-major order an axis survives where what comes before it does.
    starts = [i for i in range(len(new)) if math.prod(new[:i]) == math.prod(old[: held[0]])]
    kept = next((i for i in starts if new[i : i + len(held)] == places), None)
    if isinstance(fact, Tokens):
        return attrs.evolve(fact, axis=kept, rank=len(new))
    if kept is not None and not (fact.is_dense and any(map(_is_written, sizes[kept : kept + 2]))):
        return attrs.evolve(fact, axes=(kept, kept + 1), rank=len(new))
    merged = next((i for i in starts if new[i] == math.prod(places)), None)
    at = len(new) if merged is None else merged
    if fact.is_dense and (any(isinstance(size, fx.Node) for size in sizes[at + 1 :]) or -1 in sizes[:at]):
        raise refuse(owner, node, fact)
    made = Tokens(name_of(owner, node), merged, len(new), fact.is_dense, max(fact.stride))
    return whole(walk, owner, node, fact, made, lambda: _leave_open(node, at))


def multiplied(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Tell whether a product of matrices sums over all places, as pooling by attention does."""
    sides = [walk.fact(facts, arg) for arg in node.args[:2]]
    for fact, other, at in ((sides[0], sides[1], -1), (sides[1], sides[0], -2)):
        if isinstance(fact, Tokens) and fact.axis is not None and fact.rank is not None:
            meets = other is None or (
                isinstance(other, Tokens) and other.axis is not None and other.rank == fact.rank
            )
            along = not isinstance(other, Tokens) or other.axis == fact.rank + (-3 - at)
            if meets and along and fact.axis == fact.rank + at:
                return None
    return unknown(walk, owner, node, facts)


def resized(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Note that a map of the original's density was brought to another size."""
    fact, old, new = first(walk, owner, node, facts), None, None
    if isinstance(fact, Grid) and not fact.is_dense:
        old, new = walk.shape(owner, node.all_input_nodes[0]), walk.shape(owner, node)
    if not isinstance(fact, Grid) or old is None or new is None:
        return unknown(walk, owner, node, facts)
    stride = [s * old[axis] / new[axis] for s, axis in zip(fact.stride, fact.axes, strict=True)]
    if any(s < 1 or s != int(s) for s in stride):
        return unknown(walk, owner, node, facts)
    return attrs.evolve(fact, stride=(int(stride[0]), int(stride[1])))


def adaptive(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let a pooling to a given size see the places that it saw before."""
    fact = first(walk, owner, node, facts)
    module = walk.draft.get(name_of(owner, node)) if node.op == "call_module" else None
    size = module.output_size if module is not None else argument(node, 1, ("output_size",))
    ends = None if size in (1, (1,), (1, 1), [1], [1, 1]) else Tokens(name_of(owner, node))
    if not isinstance(fact, Grid) or (isinstance(size, Sequence) and None in size):
        return None if ends is None else unknown(walk, owner, node, facts)
    return whole(walk, owner, node, fact, ends)


def by_group(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Normalise each of the maps apart that lie in a denser one, as all places have a say in it."""
    fact = first(walk, owner, node, facts)
    if not isinstance(fact, Grid):
        return fact
    if fact.is_dense and (fact.axes, fact.rank) != ((2, 3), 4):
        raise refuse(owner, node, fact)

    def change() -> None:
        graph, source = node.graph, node.all_input_nodes[0]
        with graph.inserting_before(node):
            apart = graph.call_function(dense.split, (source, *fact.density))
        node.replace_input_with(source, apart)
        with graph.inserting_after(node):
            joined = graph.call_function(dense.join, (node, source, *fact.density))
        node.replace_all_uses_with(joined, delete_user_cb=lambda user: user is not joined)

    plan(walk, owner, node, fact.density, change if fact.is_dense else None)
    return fact


def apart(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Let what an earlier dilation took apart, or put together, come in more pieces."""
    source, (rows, columns) = node.all_input_nodes[-1], node.args[-2:]
    fact = facts[source]
    if not isinstance(fact, Grid):
        return fact
    new = (rows * fact.density[0], columns * fact.density[1])  # type: ignore[operator]  # integers

    def change() -> None:
        node.args = (*node.args[:-2], *new)

    plan(walk, owner, node, new, change if fact.is_dense else None)
    return attrs.evolve(fact, density=(1, 1)) if node.target is dense.split else fact


def item(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Take an item out of several values, or let a slice of a map take the places that it took."""
    fact, index = walk.fact(facts, node.args[0]), node.args[1]
    if isinstance(fact, Each):
        return fact.item if isinstance(index, int) else fact
    if isinstance(fact, tuple):
        return fact[index] if isinstance(index, (int, slice)) else unknown(walk, owner, node, facts)
    if isinstance(fact, dict):
        return fact.get(str(index))
    if isinstance(fact, Tokens):
        if any(isinstance(part, slice) and part.step not in (None, 1) for part in _listed(index)):
            raise unclear(owner, node, fact)
        return attrs.evolve(fact, axis=None, rank=None)
    if not isinstance(fact, Grid):
        return None
    parts: list[Any] = list(_listed(index))
    if ... in parts:
        at = parts.index(...)
        parts[at : at + 1] = [slice(None)] * (fact.rank - len(parts) + 1)
    parts += [slice(None)] * (fact.rank - len(parts))
    if not all(isinstance(part, slice) for part in parts):
        return unknown(walk, owner, node, facts)
    stride, density = list(fact.stride), list(fact.density)
    for i, axis in enumerate(fact.axes):
        part = parts[axis]
        ends = (part.start, part.stop, part.step)
        if density[i] > 1 and (
            not all(isinstance(e, (int, type(None))) for e in ends) or (part.start or 0) < 0
        ):
            return unknown(walk, owner, node, facts)
        parts[axis] = (
            slice(*(None if e is None else e * density[i] for e in ends)) if density[i] > 1 else part
        )
        if isinstance(part.step, int) and part.step > 1:
            stride[i], density[i] = stride[i] * part.step, 1
    new: Any = tuple(parts)

    def change() -> None:
        node.args = (node.args[0], new)

    plan(walk, owner, node, repr(new), change if fact.is_dense and repr(new) != repr(index) else None)
    return attrs.evolve(fact, stride=(stride[0], stride[1]), density=(density[0], density[1]))


# Small questions -------------------------------------------------------------------------------


def argument(node: fx.Node, place: int, names: tuple[str, ...]) -> object:
    """Return an argument by its place or one of its names."""
    named = [node.kwargs[name] for name in names if name in node.kwargs]
    return named[0] if named else node.args[place] if place < len(node.args) else None


def axes_of(given: object) -> set[int] | None:
    """Return the axes that an argument names; ``None`` for all or unknown ones."""
    listed = [given] if isinstance(given, int) else given
    if isinstance(listed, Sequence) and all(isinstance(axis, int) for axis in listed):
        return set(listed)
    return None


def spares(fact: Grid | Tokens, axes: set[int] | None) -> bool:
    """Tell whether axes are none of those with places, as far as is known."""
    held = _places(fact)
    if not held or fact.rank is None:
        return True
    return axes is not None and not held & {axis % fact.rank for axis in axes}


def _places(fact: Grid | Tokens) -> set[int]:
    if isinstance(fact, Grid):
        return set(fact.axes)
    return set() if fact.axis is None else {fact.axis}


def _moved_to(fact: Grid | Tokens, where: Mapping[int, int], rank: int) -> Grid | Tokens:
    if isinstance(fact, Grid):
        return attrs.evolve(fact, axes=(where[fact.axes[0]], where[fact.axes[1]]), rank=rank)
    return attrs.evolve(fact, axis=None if fact.axis is None else where[fact.axis], rank=rank)


def _sizes(node: fx.Node) -> list[Any]:
    """List the sizes that a reshape asks for."""
    if operation(node) not in ("reshape", "view"):
        return []
    given: list[Any] = list(node.args[1:]) or [node.kwargs.get("shape")]
    return list(given[0]) if isinstance(given[0], Sequence) else given


def _leave_open(node: fx.Node, place: int) -> None:
    """Let a reshape find out the number of places, which may be written down as it was."""
    sizes = _sizes(node)
    if place < len(sizes):
        sizes[place] = -1
        node.args, node.kwargs = (node.all_input_nodes[0], tuple(sizes)), {}


def _is_written(size: object) -> bool:
    return isinstance(size, int) and size > 0


def _listed(index: object) -> Sequence[object]:
    return index if isinstance(index, tuple) else (index,)

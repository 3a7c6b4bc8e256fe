"""Values that meet: whether their places still lie on each other."""

from __future__ import annotations

import attrs
from torch import fx

from torchgraft.errors import TargetError
from torchgraft.graph.density.plans import refuse
from torchgraft.graph.density.walk import Fact, Facts, Grid, Tokens, Walk, flat, name_of


def unknown(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Take it that an operation mixes places, which is refused where the map is denser."""
    found = walk.found(facts, node)
    for fact in found:
        if fact.is_dense:
            raise refuse(owner, node, fact)
    if any(isinstance(fact, Grid) for fact in found):
        walk.lost.append(name_of(owner, node))
    return Tokens(name_of(owner, node)) if found else None


def pointwise(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:
    """Tell where the places of the result are, if an operation works on each place alone.

    Raises:
        TargetError: branches come out with maps of different densities.
    """
    found = walk.found(facts, node)
    if not found or all(fact == found[0] for fact in found):
        if found and isinstance(found[0], Grid) and found[0].is_dense:
            _check_others(walk, owner, node, facts, found[0])
        return found[0] if found else None
    densities = {fact.density for fact in found if isinstance(fact, Grid)}
    if len(densities) > 1:
        raise TargetError(
            f"the branches that meet at {name_of(owner, node)!r} come out with maps of different sizes",
            found=" and ".join(f"{d[0]} x {d[1]} times the places" for d in sorted(densities)),
            write="a model whose branches have equal strides there",
        )
    tokens = [fact for fact in found if isinstance(fact, Tokens)]
    if len(tokens) == len(found):
        return attrs.evolve(tokens[0], axis=None, rank=None, sliced=any(fact.sliced for fact in tokens))
    return _beside(walk, owner, node, facts) or unknown(walk, owner, node, facts)


def _check_others(walk: Walk, owner: str, node: fx.Node, facts: Facts, grid: Grid) -> None:
    """Refuse what has a value for each place and does not come from the map, such as its coordinates."""
    for source in node.all_input_nodes:
        shape = walk.shape(owner, source) if facts[source] is None else None
        if shape is None or len(shape) < 2:
            continue
        if any(shape[axis - grid.rank] > 1 for axis in grid.axes if grid.rank - axis <= len(shape)):
            raise refuse(owner, node, grid)


def _beside(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Grid | None:
    """Return the map that others meet without a change of its size, if none is denser."""
    found = {source: fact for source in node.all_input_nodes for fact in flat(facts[source])}
    grids = {fact for fact in found.values() if isinstance(fact, Grid)}
    if len(grids) != 1 or any(fact.is_dense for fact in found.values()):
        return None
    grid = grids.pop()
    nodes = (node, next(source for source, fact in found.items() if fact == grid))
    made, given = (walk.shape(owner, n) for n in nodes)
    if made is None or given is None or not len(made) == len(given) == grid.rank:
        return None
    return grid if all(made[axis] == given[axis] for axis in grid.axes) else None


def first(walk: Walk, owner: str, node: fx.Node, facts: Facts) -> Fact:  # noqa: ARG001 - a rule
    """Keep what is known of the first argument."""
    return facts[node.all_input_nodes[0]] if node.all_input_nodes else None

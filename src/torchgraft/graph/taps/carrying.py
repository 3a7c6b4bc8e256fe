"""Carry values from the levels that make them up to the root."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import fx

from torchgraft.errors import TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.level import Level
from torchgraft.graph.taps.layouts import Turn
from torchgraft.graph.taps.memory import Memory, end_of
from torchgraft.graph.taps.places import Places, Tap, watchers
from torchgraft.graph.taps.pruning import Joint, prune

Values = dict[fx.Graph, dict[object, fx.Node]]
"""The node that holds the value of each tap, in each graph on its way to the root."""


def carry(draft: Draft, taps: Sequence[Tap], turns: Mapping[str, Turn], *, keep_output: bool) -> None:
    """Make a model return values from anywhere in it, by name.

    Args:
        draft: the model.
        taps: the values.
        turns: what is done to some of them at the end, by name.
        keep_output: return the output too, and leave everything in; what no map needs is
            taken out otherwise.

    Raises:
        TargetError: a hook would see the maps in place of what it was made for.
    """
    places = Places(draft)
    ways = [places.way(tap.owner) for tap in taps]
    depth = {path: len(found) - i for found in ways for i, path in enumerate(found)}
    deepest_first = sorted(depth, key=depth.__getitem__, reverse=True)
    for path in deepest_first:
        _check_hooks(draft, path)
    callers = {path: places.caller(path)[1] for path in deepest_first if path}
    levels = {path: draft.open(path) for path in reversed(deepest_first)}
    values: Values = {graph: {} for level in levels.values() for graph in level.graphs}
    marks = [(tap.owner, node) for tap in taps for node in _marked(tap, values)]
    joints = [
        j for path in deepest_first if path for j in _returned(path, levels[path], callers[path], values)
    ]
    for graph in levels[""].graphs:
        _collect(graph, taps, turns, values[graph], keep_output=keep_output)
    draft.changed()
    if not keep_output:
        prune(draft, levels, joints)
        draft.changed()
    memory = Memory(draft)
    for owner, mark in marks:
        (source,) = mark.all_input_nodes
        if not memory.written_after(owner, mark, source):
            mark.replace_all_uses_with(source)
            mark.graph.erase_node(mark)
    draft.rerun()


def _check_hooks(draft: Draft, path: str) -> None:
    hooks = watchers(draft.get(path))
    if hooks:
        raise TargetError(
            f"{path or 'the root'} has a hook that sees its output, and with the maps that is another one",
            found=", ".join(hooks),
            write="a target outside of it, or the hook on the result" if path else "the hook on the result",
        )


def _marked(tap: Tap, values: Values) -> list[fx.Node]:
    """Copy a value as soon as it is made; the copies that nobody needs are taken out later."""
    made = []
    for node in tap.nodes:
        if tap.key in values[node.graph]:
            continue
        last = node
        for step in tap.item:
            last = _part(last, step, behind=last)
        with node.graph.inserting_after(last):
            values[node.graph][tap.key] = node.graph.call_method("clone", (last,))
        made.append(values[node.graph][tap.key])
    return made


def _returned(path: str, level: Level, calls: Mapping[fx.Graph, fx.Node], values: Values) -> list[Joint]:
    """Return values of a level beside its output, and take them apart in its caller."""
    keys: list[object] = []
    for graph in level.graphs:
        end, keys = end_of(graph), list(values[graph])
        end.args = ((end.args[0], *values[graph].values()),)
    joints = []
    for graph, call in calls.items():
        users, parts = list(call.users), [call]
        for place in range(len(keys) + 1):
            parts.append(_part(call, place, behind=parts[-1]))
        for user in users:
            user.replace_input_with(call, parts[1])
        values[graph].update(zip(keys, parts[2:], strict=True))
        joints.append(Joint(path, call, tuple(parts[1:])))
    return joints


def _collect(
    graph: fx.Graph,
    taps: Sequence[Tap],
    turns: Mapping[str, Turn],
    values: Mapping[object, fx.Node],
    *,
    keep_output: bool,
) -> None:
    """Return the maps from the root."""
    end, image = end_of(graph), next((node for node in graph.nodes if node.op == "placeholder"), None)
    maps = []
    for tap in taps:
        node = values[tap.key]
        maps.append((tap.name, turns[tap.name].put(node, image) if tap.name in turns else node))
    with graph.inserting_before(end):
        made = graph.call_function(OrderedDict, (maps,))
    end.args = ((end.args[0], made),) if keep_output else (made,)


def _part(value: fx.Node, step: int | str, *, behind: fx.Node) -> fx.Node:
    # Named apart from the parts that the forward takes itself, which are numbered.
    with value.graph.inserting_after(behind):
        return value.graph.create_node("call_function", operator.getitem, (value, step), name="part")


def return_only(draft: Draft) -> None:
    """Return a single map as it is, and no dictionary."""
    for graph in draft.open("").graphs:
        end = end_of(graph)
        (made,) = end.all_input_nodes
        end.args = tuple(made.all_input_nodes)
        graph.erase_node(made)


def feed(draft: Draft, name: str) -> None:
    """Call a child of the root with the maps, and return what it gives.

    Args:
        draft: the model; it returns maps.
        name: name of the child.
    """
    for graph in draft.open("").graphs:
        end = end_of(graph)
        with graph.inserting_before(end):
            end.args = (graph.call_module(name, (end.args[0],)),)
    draft.changed()
    draft.rerun()

"""Take out what the values that are returned do not need: nodes, parts of outputs, modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import attrs
from torch import fx, nn
from torch.nn.utils import parametrize

from torchgraft.graph.draft import Draft
from torchgraft.graph.level import Level, state_of
from torchgraft.graph.modes import enter, leave
from torchgraft.graph.taps.memory import CHECKS, Effect, Memory, end_of
from torchgraft.paths import join_path


@attrs.frozen(eq=False)
class Joint:
    """A call of a level that returns several values, taken apart by its caller.

    Args:
        path: path of the level.
        call: the call.
        parts: the nodes that take the values out, in their order; the first is its own output.
    """

    path: str
    call: fx.Node
    parts: tuple[fx.Node, ...]


def prune(draft: Draft, levels: Mapping[str, Level], joints: Sequence[Joint]) -> None:
    """Take out what is not needed for what the root returns.

    Args:
        draft: the model.
        levels: those to take something out of, a level after its caller.
        joints: the calls of those but the root.
    """
    memory = Memory(draft)
    for path, level in levels.items():
        if path:
            _trim(level, [joint for joint in joints if joint.path == path])
        for graph in level.graphs:
            needed = _needed(memory, path, graph)
            for node in reversed(graph.nodes):
                if node not in needed:
                    graph.erase_node(node)
    _discard(draft, levels)


def _trim(level: Level, joints: Sequence[Joint]) -> None:
    """Return only the values that a caller still takes; a single one as it is."""
    taken = [{i for i, part in enumerate(joint.parts) if not part._erased} for joint in joints]
    places = sorted(set().union(*taken))
    for joint in joints:
        for new, old in enumerate(places):
            part = joint.parts[old]
            if part._erased:
                continue
            if len(places) == 1:
                part.replace_all_uses_with(joint.call)
                part.graph.erase_node(part)
            else:
                part.args = (joint.call, new)
    for graph in level.graphs:
        end = end_of(graph)
        values = [end.args[0][place] for place in places]  # type: ignore[index]  # a tuple of ours
        end.args = (values[0] if len(values) == 1 else tuple(values),)


def _needed(memory: Memory, owner: str, graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that decide on the output: by value, by a check, or by writing into memory."""
    needed: set[fx.Node] = set()
    # What stands before the collecting of the maps alone can no longer decide on one.
    last = {end_of(graph), *(n for n in end_of(graph).all_input_nodes if n.target is OrderedDict)}
    _add(needed, [end_of(graph), *(node for node in graph.nodes if node.op == "placeholder")])
    known = 0
    while known < len(needed):
        known = len(needed)
        behind: list[fx.Node] = []
        for node in reversed(graph.nodes):
            if node in needed:
                behind += [] if node in last else [node]
            elif (node.target is leave and node.args[0] in needed) or (
                behind
                and (node.target in CHECKS or node.target is enter or _changes(memory, owner, node, behind))
            ):
                _add(needed, [node])
    return needed


def _changes(memory: Memory, owner: str, node: fx.Node, behind: Sequence[fx.Node]) -> bool:
    """Tell whether a node may write into what later ones take."""
    written = [s for s in node.all_input_nodes if memory.effect(owner, node, s) is Effect.WRITES]
    taken = {source for later in behind for source in later.all_input_nodes} if written else set()
    return not taken.isdisjoint(memory.shared(owner, written))


def _add(needed: set[fx.Node], waiting: list[fx.Node]) -> None:
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes


def _discard(draft: Draft, levels: Mapping[str, Level]) -> None:
    """Take out the modules and tensors of levels that no forward reaches any more."""
    opened = {id(level) for level in levels.values()}
    whole: set[int] = set(opened)
    tensors: set[tuple[int, str]] = set()
    for path, level in levels.items():
        for graph in level.graphs:
            for node in graph.nodes:
                target = join_path(path, str(node.target))
                if node.op == "call_module" and id(draft.get(target)) not in opened:
                    whole.update(map(id, draft.get(target).modules()))
                elif node.op == "get_attr":
                    parent, _, name = target.rpartition(".")
                    tensors.add((id(draft.get(parent)), name))
    holders = whole | {holder for holder, _ in tensors}
    waiting = [""]
    while waiting:
        path = waiting.pop()
        module = draft.get(path)
        if id(module) in opened:
            _drop_tensors(module, tensors)
        for name, child in list(module._modules.items()):
            below = join_path(path, name)
            if child is None or (id(child) in whole and id(child) not in opened):
                continue
            if any(id(part) in holders for part in child.modules()):
                waiting.append(below)
            elif not parametrize.is_parametrized(module):
                draft.discard(below)
    for path, level in levels.items():
        pattern = state_of(level).patterns[0]
        pattern.move({n: n for n in pattern.paths if draft.has(join_path(path, n))})
    draft.opened[:] = filter(draft.has, draft.opened)


def _drop_tensors(level: nn.Module, used: Iterable[tuple[int, str]]) -> None:
    if level._forward_pre_hooks or parametrize.is_parametrized(level):
        return  # what hangs on it may be read there
    for store in (level._parameters, level._buffers):
        for name in [name for name in store if (id(level), name) not in used]:
            del store[name]

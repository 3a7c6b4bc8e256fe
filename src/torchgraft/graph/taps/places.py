"""Where a value is made that is asked for: the level, and the node in each of its graphs."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import fx, nn

from torchgraft.errors import TargetError
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.edges import called, exits
from torchgraft.graph.nodes import name_of
from torchgraft.graph.taps.memory import end_of
from torchgraft.text import literal

Item = tuple[int | str, ...]
_MODES = ("evaluation", "training")


@attrs.frozen(eq=False)
class Tap:
    """A value to return under a name.

    Args:
        name: its name among the maps.
        owner: path of the level that makes it.
        nodes: the node that makes it, in each graph of the level.
        item: the way into the value; empty for the value itself.
    """

    name: str
    owner: str
    nodes: tuple[fx.Node, ...]
    item: Item = ()

    @property
    def key(self) -> object:
        """What is equal for taps of one value."""
        return (*map(id, self.nodes), self.item)


class Places:
    """Find where values are made; who calls what is looked up once.

    Args:
        draft: the model; it is only read.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls: dict[str, list[Call]] = {}

    def of_module(self, name: str, path: str, call: int | None = None, item: Item = ()) -> Tap:
        """Return the tap of what a module gives.

        Args:
            name: name of the map.
            path: path of the module.
            call: which of its calls is meant; needed where there are several.
            item: the way into what it gives.

        Raises:
            TargetError: no call of it gives the value in a mode, or several do.
        """
        if called(self._draft, path):
            owner, calls = self._one_owner(path)
        else:
            edges = exits(self._draft, path)
            owner, calls = edges[0].owner, {edge.graph: [edge.value] for edge in edges}
        several = next((found for found in calls.values() if len(found) > 1), None)
        if call is None and several:
            names = [name_of(node, owner) for node in several]
            raise TargetError(
                f"{path!r} is called {len(several)} times, so there are {len(several)} values",
                found=", ".join(names),
                swap=(literal(path), f'node("{names[0]}")'),
            )
        place = call or 0
        held = (calls.get(graph, []) for graph in self._draft.graphs(owner))
        return self.of_nodes(name, path, owner, tuple(h[place] for h in held if len(h) > place), item)

    def of_nodes(self, name: str, said: str, owner: str, nodes: tuple[fx.Node, ...], item: Item = ()) -> Tap:
        """Return the tap of a node.

        Args:
            name: name of the map.
            said: how the value was asked for.
            owner: path of the level.
            nodes: the node in each graph of the level that has it.
            item: the way into its value.

        Raises:
            TargetError: the value is not made in one of the modes, or is made several times.
        """
        self._check_modes(said, owner, {node.graph: [node] for node in nodes})
        self.way(owner)
        tap = Tap(name, self._draft.names(self._draft.get(owner))[0], nodes, item)
        while self._is_returned(tap):  # taken where the level is called, the level can stay as it is
            owner, calls = self.caller(tap.owner)
            tap = attrs.evolve(tap, owner=owner, nodes=tuple(calls[g] for g in self._draft.graphs(owner)))
        return tap

    def way(self, path: str) -> list[str]:
        """Return the levels from one up to the root.

        Raises:
            TargetError: one of them is not called exactly once in each mode.
        """
        found = [path]
        while path:
            path = self.caller(path)[0]
            found.append(path)
        return found

    def caller(self, path: str) -> tuple[str, Mapping[fx.Graph, fx.Node]]:
        """Return the level that calls another, and the call in each of its graphs.

        Raises:
            TargetError: there is not exactly one call in each mode.
        """
        owner, calls = self._one_owner(path)
        for here in calls.values():
            if len(here) > 1:
                raise TargetError(
                    f"{path!r} is called {len(here)} times, so what is in it is made {len(here)} times",
                    found=", ".join(name_of(node, owner) for node in here),
                    swap=(literal(path), f'node("{name_of(here[0], owner)}")'),
                )
        self._check_modes(path, owner, calls)
        return owner, {graph: found[0] for graph, found in calls.items()}

    def _one_owner(self, path: str) -> tuple[str, Mapping[fx.Graph, list[fx.Node]]]:
        """Return the one level that calls a module, and its calls in execution order."""
        if path not in self._calls:
            self._calls[path] = self._draft.calls(path)
        calls: dict[fx.Graph, set[fx.Node]] = {}
        for call in self._calls[path]:
            calls.setdefault(call.graph, set()).add(call.node)
        owners = {id(self._draft.get(call.owner)): call.owner for call in self._calls[path]}
        owner, *others = owners.values()
        if others:
            names = [name_of(call.node, call.owner) for call in self._calls[path]]
            raise TargetError(
                f"{path!r} is called in {len(owners)} places, so there are several values",
                found=", ".join(dict.fromkeys(names)),
                swap=(literal(path), f'node("{names[0]}")'),
            )
        ordered = {
            graph: list(held) if len(held) == 1 else [node for node in graph.nodes if node in held]
            for graph, held in calls.items()
        }
        return self._draft.names(self._draft.get(owner))[0], ordered

    def _check_modes(self, said: str, owner: str, held: Mapping[fx.Graph, list[fx.Node]]) -> None:
        for mode, graph in zip(_MODES, self._draft.graphs(owner), strict=False):
            if not held.get(graph):
                raise TargetError(
                    f"{said!r} never runs in {mode}, and the maps have to be the same in both modes",
                    found=f"the forward of {owner or 'the root'} is another one in {mode}",
                    write="a target that runs in both modes",
                )

    def _is_returned(self, tap: Tap) -> bool:
        if not tap.owner or watchers(self._draft.get(tap.owner)):
            return False
        return [end_of(graph).args[0] for graph in self._draft.graphs(tap.owner)] == list(tap.nodes)


def watchers(module: nn.Module) -> list[str]:
    """Name the hooks of a module that see its output, or change it."""
    stores = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for store in stores for hook in vars(module).get(store, {}).values()]
    return [getattr(hook, "__name__", type(hook).__name__) for hook in hooks]

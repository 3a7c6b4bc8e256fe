"""Operations: functions and methods in the forwards of a model, by name or by function."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import attrs
from torch import nn

from torchgraft.errors import OptionError, TargetError, TraceError
from torchgraft.graph.kinds import searched
from torchgraft.graph.nodes import Node, canonical, grouped, operation_name, plain_name
from torchgraft.graph.watch import own_operations
from torchgraft.select.globs import fits
from torchgraft.select.query import Query
from torchgraft.select.selector import Selector
from torchgraft.select.site import Site
from torchgraft.select.targets import Path
from torchgraft.text import function_name, literal, spelled, wrong


@attrs.frozen(repr=False)
class Operation(Selector):
    """Point at the operations of one name, or of one function, in every forward."""

    what: str | Callable[..., object]

    def answer(self, query: Query) -> list[Site]:
        """Follow the forwards and look at their operations."""
        found: list[Site] = []
        stopped: TraceError | None = None
        for path in dict.fromkeys(query.draft.names(m)[0] for _, m in query.draft.modules() if searched(m)):
            if not query.in_scope(path) or not query.draft.reached(path):
                continue
            try:
                named = grouped(query.draft.graphs(path), path)
            except TraceError as error:
                if self._may_hide(query, path):
                    stopped = stopped or error
                continue
            found += [Site(n, query.draft, path, nodes) for n, nodes in named if self._is(nodes[0])]
        if stopped is not None:  # also where nothing has to be found: it could be in there
            stopped.write = f"{self!r}.inside(<a part that can be followed>)"
            raise stopped
        if not found and query.strict:
            layer = self._layer(query)
            raise TargetError(
                f"no forward of this model runs {self._name()}",
                found="functions and methods, not layers",
                swap=(repr(self), layer) if layer else ("", ""),
            )
        return found

    def _layer(self, query: Query) -> str:
        """Write the class of the layers that do it, where the model has some."""
        name = self._name().replace("_", "").lower()
        found = (type(m) for _, m in query.draft.modules() if type(m).__name__.lower() == name)
        return next(map(literal, found), "")

    def _may_hide(self, query: Query, path: str) -> bool:
        """Return True if a forward that cannot be followed may run it: a run on meta tensors is watched."""
        if not (isinstance(self.what, str) or _native(self.what)):
            return True
        ran = own_operations(query.draft, path)
        return ran is None or any(fits(name, self._name()) for name in ran)

    def _is(self, node: Node) -> bool:
        if node.op not in ("call_function", "call_method"):
            return False
        if isinstance(self.what, str) or _native(self.what):
            wanted = self._name()
            return fits(canonical(node), wanted) and (
                isinstance(self.what, str) or node.op == "call_method" or _native(node.target)
            )
        return node.target is self.what

    def _name(self) -> str:
        return operation_name(self.what if isinstance(self.what, str) else plain_name(self.what))

    def __repr__(self) -> str:
        return f"op({literal(self.what) if isinstance(self.what, str) else function_name(self.what)})"


@spelled
def op(what: str | Callable[..., object]) -> Selector:
    """Point at operations in the forwards of a model: functions and methods, not layers.

    A name, or a function of torch, means the operation however it is spelled:
    ``op(F.relu)`` also finds ``x.relu_()``. Every forward is followed for it;
    ``.inside(target)`` looks there alone.

    Args:
        what: a name, which may have ``*`` in it, a function of torch, or one of your own.

    Returns:
        The selector.

    Raises:
        OptionError: it is neither a name nor a function.

    Example:
        >>> from torch.nn import functional as F
        >>> op(F.relu) | op("add")
        op(F.relu) | op("add")
    """
    if isinstance(what, str) and what:
        return Operation(what)
    if isinstance(what, type) or not callable(what) or isinstance(what, nn.Module):
        right = f"at({literal(what)})" if isinstance(what, type) else 'op("add")'
        raise OptionError("op takes the name of an operation or a function", found=literal(what), write=right)
    return Operation(what)


@spelled
def node(name: str) -> Selector:
    """Point at one operation or call by the name that torchvision gives its node.

    Args:
        name: such as ``"layer1.0.add"`` or ``"layer1.0.relu_2"``.

    Returns:
        The selector.

    Raises:
        OptionError: it is no name.

    Example:
        >>> node("layer1.0.relu_2")
        node("layer1.0.relu_2")
    """
    if not isinstance(name, str) or not name or not all(name.split(".")) or "*" in name:
        raise wrong("a node has a name", name, '"layer1.0.add"')
    return Path(name, node_only=True)


def _native(function: object) -> bool:
    module = getattr(function, "__module__", None) or ""
    return (
        module.partition(".")[0] in ("torch", "_operator", "math", "builtins", "")
        or inspect.isbuiltin(function)
        or inspect.ismethoddescriptor(function)
    )

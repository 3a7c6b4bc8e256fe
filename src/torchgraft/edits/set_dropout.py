"""Set dropout: one probability for every dropout that a model has."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ClassVar

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.errors import AnalysisError, HeadError, TargetError, TraceError
from torchgraft.graph.anchor import anchor_of
from torchgraft.graph.code_of import codes_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import find_heads
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.level import runs_graph
from torchgraft.graph.names import Node
from torchgraft.graph.rewrites import Reargue
from torchgraft.text import check_flags, spelled, wrong
from torchgraft.transform import Transform

_PLAIN = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_ALPHA = ("alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_NAMES = (*_PLAIN, *_ALPHA, "dropout_", *(f"{name}_" for name in _ALPHA))
_FUNCTIONS = frozenset(getattr(home, name) for home in (F, torch) for name in _NAMES if hasattr(home, name))
_ATTENTION = F.scaled_dot_product_attention


@attrs.frozen(eq=False)
class _Call:
    """A function in a forward that gets a probability.

    Args:
        node: the call.
        place: where the probability stands among the arguments.
        word: its keyword.
    """

    node: Node
    place: int
    word: str

    @property
    def held(self) -> object:
        """The probability of now."""
        if len(self.node.args) > self.place:
            return self.node.args[self.place]
        return self.node.kwargs.get(self.word, 0.5)  # the default of torch's functions


@attrs.frozen(repr=False)
class SetDropout(Transform):
    """Give every dropout one probability."""

    name: ClassVar[str] = "set_dropout"
    p: float
    attention: bool = attrs.field(kw_only=True, default=False)

    def _edit(self, draft: Draft) -> None:
        modules = {id(m): m for _, m in draft.modules() if isinstance(m, nn.modules.dropout._DropoutNd)}
        attention = [m for _, m in draft.modules() if isinstance(m, nn.MultiheadAttention)]
        before = {key: module.p for key, module in modules.items()}
        for module in modules.values():
            module.p = self.p
        for layer in attention if self.attention else ():
            layer.dropout = self.p
        draft.forget()  # what was followed holds the old probabilities
        found = bool(modules) or bool(attention and self.attention)
        for path, level in {id(m): (path, m) for path, m in reversed(list(draft.modules()))}.values():
            if not has_forward(level) or not _may_drop(level, attention=self.attention):
                continue
            for call in _set(draft, path, self.p, functools.partial(self._calls, draft, path, before)):
                found = True
                if call.held != self.p:
                    step = Reargue(anchor_of(call.node), call.place, call.word, self.p)
                    draft.rewrite(path, [(call.node.graph, step)])
        if not found:
            raise _nothing(draft, self.p, attention=bool(attention))

    def _calls(self, draft: Draft, path: str, before: dict[int, float]) -> list[_Call]:
        """List the functions that drop, in every graph of a level; for attention in that of training."""
        found = []
        try:
            graphs = draft.graphs(path)
        except TraceError as error:
            error.summary = f"{path or 'the root'} may call a dropout function: {error.summary}"
            raise
        for node in (node for graph in graphs for node in graph.nodes if node.op == "call_function"):
            call = _Call(node, 1, "p")
            if node.target in _FUNCTIONS:
                if not isinstance(call.held, (int, float)):
                    raise TargetError(
                        f"the probability of {node.name!r} in {path or 'the root'} is computed",
                        found=f"p={call.held}",
                        write="edit(<a function of the draft>, name=<name>)",
                    )
                found.append(call)
            elif node.target is _ATTENTION and node.graph is not graphs[0]:
                call = _Call(node, 4, "dropout_p")
                given = len(node.args) > 4 or "dropout_p" in node.kwargs
                if given and (self.attention or call.held in _unused(draft, path, before)):
                    found.append(call)
        return found


@spelled
def set_dropout(p: float, *, attention: bool = False) -> SetDropout:
    """Set the probability of every dropout of a model; evaluation does not change.

    That is the modules of ``torch.nn``'s dropout family, also those that were at 0, and the
    functions of that family that a forward calls with a number, or with an attribute of its
    module, which is set then. A probability that a forward hands to another function, such as
    torchvision's shifted windows, stays. Drop path is no
    dropout: see ``drop_path``.

    Args:
        p: share of the values to drop.
        attention: also drop attention weights, in ``nn.MultiheadAttention`` and in calls of
            ``F.scaled_dot_product_attention`` in training.

    Returns:
        The transform.

    Raises:
        OptionError: the probability is out of range, or the flag is none.

    Example:
        >>> from torchvision.models import mobilenet_v2
        >>> set_dropout(0.4)(mobilenet_v2()).classifier[0]
        Dropout(p=0.4, inplace=False)

    Source:
        Hinton et al., Improving neural networks by preventing co-adaptation of feature
        detectors, arXiv 1207.0580.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise wrong("a dropout is a probability below 1", p, "0.1")
    check_flags(attention=attention)
    return SetDropout(float(p), attention=attention)


def _set(draft: Draft, path: str, p: float, calls: Callable[[], list[_Call]]) -> list[_Call]:
    """Set the attributes of a level that its forward hands to functions which drop.

    An attribute is one of these where, with another value of it, more calls have that value.
    """
    held, found = vars(draft.get(path)), calls()
    for name, value in list(held.items()) if not runs_graph(draft.get(path)) else ():
        if type(value) not in (int, float) or not 0 <= value < 1 or _right(found, p) == len(found) > 0:
            continue
        held[name] = p
        draft.forget(path)
        with contextlib.suppress(TraceError):
            tried = calls()
            if _right(tried, p) > _right(found, p):
                found = tried
                continue
        held[name] = value
        draft.forget(path)
        found = calls()
    return found


def _right(calls: list[_Call], p: float) -> int:
    return sum(call.held == p for call in calls)


def _may_drop(module: nn.Module, *, attention: bool) -> bool:
    """Tell whether a forward names a dropout function; so few levels have to be followed."""
    if runs_graph(module):
        return True
    if type(module).__module__.startswith("torch.nn."):
        return False
    asked = {*_NAMES, _ATTENTION.__name__} if attention else set(_NAMES)
    return any(asked.intersection(code.co_names) for code in codes_of(module))


def _unused(draft: Draft, path: str, before: dict[int, float]) -> set[float]:
    """Return what the dropouts of a level held that it does not call: it read their probability."""
    called = {str(node.target) for graph in draft.graphs(path) for node in graph.nodes}
    children = draft.get(path).named_children()
    return {before[id(m)] for name, m in children if id(m) in before and name not in called}


def _nothing(draft: Draft, p: float, *, attention: bool) -> TargetError:
    try:
        heads = [head.path for head in find_heads(draft)]
    except (HeadError, TraceError, AnalysisError):
        heads = []
    parts = [name for name, child in draft.root.named_children() if any(True for _ in child.parameters())]
    last = heads[0] if heads else parts[-1] if parts else "<a module>"
    write = f'inject("{last}", nn.Dropout({p!r}), where="before")'
    write += f", or swap_head(10, dropout={p!r})" if heads else ""
    return TargetError(
        "the model has no dropout that could be set",
        found=f"parts that can take one: {', '.join(parts)}"
        + (f"; {', '.join(heads)} is the head" if heads else ""),
        write=f"set_dropout({p!r}, attention=True)" if attention else write,
    )

"""Set dropout: one probability for every dropout that a model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft.errors import AnalysisError, HeadError, OptionError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import find_heads
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.level import Level
from torchgraft.graph.names import Node
from torchgraft.graph.residual import codes_of
from torchgraft.text import check_flags, literal, spelled
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
        path: path of the level.
        node: the call.
        place: where the probability stands among the arguments.
        word: its keyword.
    """

    path: str
    node: Node
    place: int
    word: str

    @property
    def held(self) -> object:
        """The probability of now."""
        if len(self.node.args) > self.place:
            return self.node.args[self.place]
        return self.node.kwargs.get(self.word, 0.5)  # the default of torch's functions

    def give(self, p: float) -> None:
        """Exchange the probability."""
        if len(self.node.args) > self.place:
            self.node.update_arg(self.place, p)
        else:
            self.node.update_kwarg(self.word, p)


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
        draft._traced.clear()  # what was followed holds the old probabilities
        draft.changed()
        calls = list(_calls(draft, before, attention=self.attention))
        if not modules and not calls and not (attention and self.attention):
            raise _nothing(draft, self.p, attention=bool(attention))
        for call in calls:
            if call.held != self.p:
                draft.open(call.path)
                call.give(self.p)


@spelled
def set_dropout(p: float, *, attention: bool = False) -> SetDropout:
    """Set the probability of every dropout of a model; evaluation does not change.

    That is the modules of ``torch.nn``'s dropout family, also those that were at 0, and the
    functions of that family that a forward calls with a number. A probability that a forward
    hands to another function, such as torchvision's shifted windows, stays. Drop path is no
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
        raise OptionError(
            "a dropout is a probability below 1",
            asked=f"set_dropout({literal(p)})",
            found=literal(p),
            write="set_dropout(0.1)",
        )
    made = SetDropout(float(p), attention=attention)
    check_flags(made, attention=attention)
    return made


def _calls(draft: Draft, before: dict[int, float], *, attention: bool) -> Iterator[_Call]:
    """Yield the functions that drop, in every graph; for attention in that of training."""
    levels = {id(module): (path, module) for path, module in reversed(list(draft.modules()))}
    for path, module in levels.values():
        if not has_forward(module) or not _may_drop(module, attention=attention):
            continue
        try:
            graphs = draft.graphs(path)
        except TraceError as error:
            error.summary = f"{path or 'the root'} may call a dropout function: {error.summary}"
            raise
        for graph in graphs:
            for node in graph.nodes:
                call = _Call(path, node, 1, "p")
                if node.op == "call_function" and node.target in _FUNCTIONS:
                    if not isinstance(call.held, (int, float)):
                        raise TargetError(
                            f"the probability of {node.name!r} in {path or 'the root'} is computed",
                            found=f"p={call.held}",
                            write="edit(<a function of the draft>, name=...)",
                        )
                    yield call
                elif node.op == "call_function" and node.target is _ATTENTION and graph is not graphs[0]:
                    call = _Call(path, node, 4, "dropout_p")
                    given = len(node.args) > 4 or "dropout_p" in node.kwargs
                    if given and (attention or call.held in _unused(draft, path, before)):
                        yield call


def _may_drop(module: nn.Module, *, attention: bool) -> bool:
    """Tell whether a forward names a dropout function; so few levels have to be followed."""
    if isinstance(module, Level):
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

"""Check what stands between a head and the output, which a new head has to live with."""

from __future__ import annotations

from torch import fx, nn

from torchgraft.errors import HeadError
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import after
from torchgraft.graph.heads import Head

_TURNS_TO_ODDS = frozenset(("softmax", "log_softmax", "sigmoid", "logsigmoid"))
_ODDS = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid, nn.Softmax2d)


def check_behind(draft: Draft, head: Head, *, features: bool = False) -> None:
    """Refuse a head whose output is used as what a new one would not give.

    Args:
        draft: the draft.
        head: the head.
        features: the head is dropped, so odds made of its output would be odds of features.

    Raises:
        HeadError: the number of classes is written into an operation behind the head, or
            odds are made there of what would be features.
    """
    calls = draft.calls(head.path)
    waiting = [(call.owner, call.node) for call in calls]
    seen: set[fx.Node] = set()
    while waiting:
        owner, node = waiting.pop()
        for user in after(owner, node.graph, node).users:
            if user in seen:
                continue
            seen.add(user)
            if user.op == "output" and owner:
                waiting += [(call.owner, call.node) for call in draft.calls(owner)]
            elif user.op != "output":
                _check(draft, owner, user, head, features=features)
                waiting.append((owner, user))


def _check(draft: Draft, owner: str, node: fx.Node, head: Head, *, features: bool) -> None:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    place = f"{owner}.{node.name}".lstrip(".")
    if node.op == "call_module":
        odds = isinstance(draft.get(f"{owner}.{name}".lstrip(".")), _ODDS)
    else:
        odds = name in _TURNS_TO_ODDS
        if head.classes > 1 and head.classes in _numbers(node):
            raise HeadError(
                f"the number of classes is written into the forward behind {head.path!r}",
                found=f"{place} with {head.classes}",
                write=f'replace("{place}", <a module without that number>) before',
            )
    if odds and features:
        raise HeadError(
            f"{place!r} behind the head {head.path!r} would make odds of features",
            found=f"{name} on the way to the output",
            write=f'pipe(model, remove("{place}"), drop_head())',
        )


def _numbers(node: fx.Node) -> list[int]:
    def flat(value: object) -> list[int]:
        if isinstance(value, (tuple, list)):
            return [n for item in value for n in flat(item)]
        return [value] if isinstance(value, int) and not isinstance(value, bool) else []

    return flat([*node.args, *node.kwargs.values()])

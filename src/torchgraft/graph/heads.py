"""Find the heads of a model: the projections that every way to an output runs through last."""

from __future__ import annotations

import attrs
from torch import fx, nn

from torchgraft.errors import HeadError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container
from torchgraft.text import literal


class NoHead(nn.Identity):
    """Stand where a head was dropped, so that a new one can be put there.

    Args:
        width: number of features the head took.
        axes: number of axes of its weight: 2 for a linear layer, more for a convolution.
        bias: whether it had a bias.
    """

    def __init__(self, width: int, axes: int, *, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.axes = axes
        self.bias = bias

    def extra_repr(self) -> str:
        """Say what was there."""
        return f"{self.width} features"


@attrs.frozen(eq=False)
class Head:
    """A projection to classes.

    Args:
        path: where it stands.
        module: the projection, a linear layer or a convolution with kernel size 1, or what
            stands for a dropped one.
    """

    path: str
    module: nn.Linear | nn.modules.conv._ConvNd | NoHead

    @property
    def classes(self) -> int:
        """Number of outputs; 0 for a dropped head."""
        if isinstance(self.module, NoHead):
            return 0
        return self.module.out_features if isinstance(self.module, nn.Linear) else self.module.out_channels

    @property
    def width(self) -> int:
        """Number of inputs."""
        if isinstance(self.module, NoHead):
            return self.module.width
        return self.module.in_features if isinstance(self.module, nn.Linear) else self.module.in_channels

    @property
    def axes(self) -> int:
        """Number of axes of the weight: 2 for a linear layer, more for a convolution."""
        return self.module.axes if isinstance(self.module, NoHead) else self.module.weight.ndim

    @property
    def bias(self) -> bool:
        """Whether it adds a bias."""
        held = self.module.bias
        return held if isinstance(held, bool) else held is not None


def find_heads(draft: Draft) -> list[Head]:
    """Find the heads, those of training mode included.

    Raises:
        HeadError: the last layers with weights are no projections, follow each other, or
            have different numbers of classes.
        TraceError: a forward on the way cannot be followed.
    """
    walk = _Walk(draft)
    for graph in draft.graphs(""):
        walk.outputs("", graph, ())
    heads = [Head(path, draft.get(path)) for path in sorted(walk.found)]  # type: ignore[arg-type]  # projections
    if not heads or walk.blocked:
        raise HeadError(
            "no classifier: the last layers with weights before the output are no projections to classes",
            found=", ".join(sorted({*walk.blocked, *walk.found})[:6]),
            write=f'replace("{heads[0].path}", lambda old: nn.Linear(old.in_features, 10))' if heads else "",
        )
    if len(heads) > 1 and (chained := walk.chained({head.path for head in heads})):
        raise HeadError(
            "the layers before the output follow each other, so none of them is the classifier",
            found=", ".join(sorted(chained)[:6]),
            write=f'replace("{heads[-1].path}", lambda old: nn.Linear(old.in_features, 10))',
        )
    if len({head.classes for head in heads}) > 1:
        raise HeadError(
            "the model has heads of different kinds",
            found=", ".join(f"{head.path} ({head.classes})" for head in heads),
            write=f'replace("{heads[0].path}", lambda old: nn.Linear(old.in_features, 10))',
        )
    return heads


_Frames = tuple[tuple[str, fx.Node], ...]


class _Walk:
    """Walk back from outputs, down into containers and up again to what they were given."""

    def __init__(self, draft: Draft, *, through: frozenset[str] | None = None) -> None:
        self._draft = draft
        self._seen: set[tuple[str, fx.Node]] = set()
        self._through = through
        self.found: set[str] = set()
        self.blocked: set[str] = set()

    def outputs(self, owner: str, graph: fx.Graph, frames: _Frames) -> None:
        end = next(node for node in graph.nodes if node.op == "output")
        self._all(owner, end, frames)

    def chained(self, heads: set[str]) -> set[str]:
        """Return the heads that others of them are computed from."""
        found: set[str] = set()
        for head in heads:
            walk = _Walk(self._draft, through=frozenset({head}))
            for call in self._draft.calls(head):
                walk._all(call.owner, call.node, self._frames_of(call.owner))
            found |= walk.found & heads - {head}
        return found

    def _frames_of(self, owner: str) -> _Frames:
        if not owner:
            return ()
        call = self._draft.calls(owner)[0]
        return (*self._frames_of(call.owner), (call.owner, call.node))

    def _all(self, owner: str, node: fx.Node, frames: _Frames) -> None:
        waiting = [(owner, source, frames) for source in node.all_input_nodes]
        while waiting:
            where, source, above = waiting.pop()
            if (where, source) in self._seen:
                continue
            self._seen.add((where, source))
            waiting += self._step(where, source, above)

    def _step(self, owner: str, node: fx.Node, frames: _Frames) -> list[tuple[str, fx.Node, _Frames]]:
        if _is_size(node):
            return []
        onward = [(owner, source, frames) for source in node.all_input_nodes]
        if node.op == "placeholder":
            return self._given(node, frames)
        if node.op != "call_module":
            weights = [n for n in onward if n[1].op == "get_attr" and self._is_weight(owner, n[1])]
            if (
                weights
                and self._through is None
                and getattr(node.target, "__name__", "") in ("linear", "conv2d")
            ):
                self.blocked.add(f"{owner}.{node.name}".lstrip(".") + " (a function)")
                return []
            return onward
        path = f"{owner}.{node.target}".lstrip(".")
        module = self._draft.get(path)
        if is_projection(module):
            self.found.add(path)
            return onward if self._through is not None else []
        dropped = any(isinstance(part, NoHead) for part in module.modules())
        if next(module.parameters(), None) is None and not dropped:
            return onward
        if is_container(module):
            inside = []
            try:
                graphs = self._draft.graphs(path)
            except TraceError:
                if self._through is None:
                    raise
                return onward
            for graph in graphs:
                end = next(n for n in graph.nodes if n.op == "output")
                inside += [(path, source, (*frames, (owner, node))) for source in end.all_input_nodes]
            return inside
        if self._through is None:
            self.blocked.add(f"{path} ({literal(type(module))})")
            return []
        return onward

    def _given(self, node: fx.Node, frames: _Frames) -> list[tuple[str, fx.Node, _Frames]]:
        if not frames:
            self.blocked.add("the input")
            return []
        (above, call), rest = frames[-1], frames[:-1]
        names = [n.target for n in node.graph.nodes if n.op == "placeholder"]
        position = names.index(node.target)
        passed = call.args[position] if position < len(call.args) else call.kwargs.get(str(node.target))
        return [(above, passed, rest)] if isinstance(passed, fx.Node) else []

    def _is_weight(self, owner: str, node: fx.Node) -> bool:
        parent, _, name = f"{owner}.{node.target}".lstrip(".").rpartition(".")
        return isinstance(getattr(self._draft.get(parent), name, None), nn.Parameter)


_SIZES = frozenset(("shape", "size", "dim", "ndim", "dtype", "device", "numel"))


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node asks for a property of a value and not for its data."""
    asked = node.args[1] if node.target is getattr and len(node.args) > 1 else node.target
    return isinstance(asked, str) and node.op != "placeholder" and asked in _SIZES


def is_projection(module: nn.Module) -> bool:
    """Tell whether a module maps features to outputs without looking at neighbours."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, (nn.Linear, NoHead))

"""What the record of a run tells of the way from the input to the output."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import attrs

from torchgraft.graph.deep.axes import Layout, follow, has_places, layout_of
from torchgraft.graph.deep.record import Op, Record

MIXING = frozenset(("convolution", "mm", "addmm", "bmm", "baddbmm"))
"""Operations that mix channels."""

ACTIVATIONS = frozenset(
    (
        "relu", "silu", "gelu", "hardswish", "hardtanh", "leaky_relu", "elu", "mish", "sigmoid", "tanh",
        "hardsigmoid", "prelu", "rrelu", "softplus", "clamp",
    )
)  # fmt: skip

NORMS = frozenset(("native_batch_norm", "native_layer_norm", "native_group_norm", "_native_batch_norm_legit"))
"""Operations that normalise."""


@attrs.frozen
class Map:
    """A map that a module gives: an image of features, or tokens that stand for one.

    Args:
        path: where the module stands.
        call: which of its calls gives the map.
        item: the way to the map in what the module returns; empty where it returns the map.
        layout: channels, grid, stride and order of the axes.
    """

    path: str
    call: int
    item: tuple[int | str, ...]
    layout: Layout
    value: int = attrs.field(eq=False, repr=False)

    @property
    def stride(self) -> int:
        """Pixels of the input for each place."""
        return self.layout.stride[0] if self.layout.stride else 0


class Trunk:
    """The values on the way to the output, and the calls of modules that make them.

    Args:
        record: a run on an image.
    """

    def __init__(self, record: Record) -> None:
        self.ops = record.ops
        self.scopes = record.scopes
        axes = follow(record)
        self.layouts = {value: layout_of(held) for value, held in axes.items()}
        self.placed = {value for value, held in axes.items() if has_places(held)}
        self.children: list[list[int]] = [[] for _ in self.scopes]
        for number, scope in enumerate(self.scopes[1:], 1):
            self.children[scope.parent].append(number)
        self.made = {value: i for i, op in enumerate(self.ops) for value in reversed(op.outputs)}
        mixing = (i for i, op in enumerate(self.ops) if op.name in MIXING and op.outputs[0] in self.placed)
        self.begins = next(mixing, 0)
        """Number of the first operation that mixes channels: before it there is but the image."""
        self.reaching = self._reaching(record)
        self.cuts = self._cuts(record)
        self.depth = functools.cache(self._depth)
        self.merges = functools.cache(self._merges)

    def maps(self, number: int) -> list[Map]:
        """List the maps that a call gives, the first one of each stride.

        A call whose output the model never uses gives none; where a class token alone goes
        on, the map beside it counts.
        """
        scope = self.scopes[number]
        found: dict[tuple[int, int], Map] = {}
        if self.reaching.isdisjoint(value for _, value in scope.outputs):
            return []
        for way, value in scope.outputs:
            layout = self.layouts.get(value)
            if layout is not None and layout.stride is not None and layout.stride[0] == layout.stride[1]:
                found.setdefault(layout.stride, Map(scope.path, scope.number, way, layout, value))
        return list(found.values())

    def taken(self, number: int) -> list[Layout]:
        """List the layouts of the maps that a call is given."""
        layouts = [self.layouts.get(value) for value in self.scopes[number].inputs]
        return [layout for layout in layouts if layout is not None and layout.stride is not None]

    def inside(self, number: int) -> Iterator[int]:
        """Yield the calls made in a call, inner ones first."""
        for child in self.children[number]:
            yield from self.inside(child)
            yield child

    def inside_of(self, number: int) -> list[int]:
        """List a call and those made in it."""
        return [*self.inside(number), number]

    def run_in(self, number: int) -> tuple[Op, ...]:
        """Return the operations that run in a call."""
        return self.ops[self.scopes[number].start : self.scopes[number].end]

    def _depth(self, number: int) -> int:
        """Count the operations that mix channels of maps, on the longest way through a call."""
        longest: dict[int, int] = {}
        for op in self.run_in(number):
            before = max((longest.get(value, 0) for value in op.inputs), default=0)
            mixes = op.name in MIXING and op.outputs[0] in self.placed
            longest.update((value, before + mixes) for value in op.outputs)
        return max((longest.get(value, 0) for _, value in self.scopes[number].outputs), default=0)

    def _merges(self, number: int) -> bool:
        """Return True if ways part and meet again in a call."""
        return any(sum(v in self.layouts for v in set(op.inputs)) > 1 for op in self.run_in(number))

    def is_last(self, number: int) -> bool:
        """Tell whether what a call gives runs to the output with nothing joining it."""
        scope = self.scopes[number]
        behind = {value for _, value in scope.outputs}
        for op in self.ops[scope.end :]:
            taken = {value for value in op.inputs if value in self.layouts}
            if not taken.isdisjoint(behind):
                if not taken <= behind:
                    return False
                behind.update(op.outputs)
        return True

    def shapes_values(self, number: int) -> bool:
        """Tell whether a call normalises or activates, and does not just pass values on."""
        names = {op.name.rstrip("_") for op in self.run_in(number)}
        return not names.isdisjoint(ACTIVATIONS | NORMS)

    def _reaching(self, record: Record) -> set[int]:
        found = set(record.outputs)
        for op in reversed(self.ops):
            if not found.isdisjoint(op.outputs):
                found.update(op.inputs)
        return found

    def _cuts(self, record: Record) -> set[int]:
        """Find the values that every way from the input to the output runs through."""
        last = dict.fromkeys(record.outputs, len(self.ops))
        for i, op in reversed(list(enumerate(self.ops))):
            if not self.reaching.isdisjoint(op.outputs):
                for value in op.inputs:
                    last.setdefault(value, i)
        live = [(self.made.get(v, -1), v) for v in self.layouts if v in self.reaching and v in last]
        found: set[int] = set()
        latest = -1
        for made, group in itertools.groupby(sorted(live), key=lambda pair: pair[0]):
            values = [value for _, value in group]
            if len(values) == 1 and latest <= made:
                found.add(values[0])
            latest = max(latest, *(last[value] for value in values))
        return found

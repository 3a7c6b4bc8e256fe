"""Parts and entries: how one tensor of a target is made of tensors of a source."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

Shape = tuple[int, ...]


def squeezed(shape: Shape) -> Shape:
    """Return a shape without its axes of one."""
    return tuple(size for size in shape if size != 1)


@attrs.frozen
class Part:
    """What is taken from one source tensor, or zeros where the source has nothing.

    The tensor is seen in the shape ``view`` (its own where that is empty), its axes are
    permuted by ``axes`` (kept where that is empty), and of the first axis that results
    ``rows`` are taken (all where that is ``None``).

    Args:
        key: name of the source tensor; empty for zeros.
        view: shape to see it in.
        axes: order of its axes.
        rows: first row, and the row after the last.
    """

    key: str
    view: Shape = ()
    axes: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it is a source tensor as it stands, whatever shape it is seen in."""
        return bool(self.key) and not self.axes and self.rows is None


@attrs.frozen
class Entry:
    """How one target tensor is made: parts joined along their first axis, seen anew.

    Args:
        target: name of the target tensor.
        parts: what is joined.
        view: shape to see the joined parts in; empty to keep it.
        axes: order of its axes then; empty to keep it. The target's shape is given last.
        rule: what decided: ``"place"`` in the structure, ``"input"`` of a run, ``"order"`` beside
            what was altered, ``"names"``; of a state dict also ``"shape"``, ``"neighbour"``,
            ``"role"``; ``"constant"`` for equal tables.
        evidence: what confirmed it: ``"behaviour"``, ``"structure"``, ``"names"``, ``"values"``;
            ``"contradicted"`` where structure says it, and the two see other things there.
    """

    target: str
    parts: tuple[Part, ...]
    view: Shape = ()
    axes: tuple[int, ...] = ()
    rule: str = ""
    evidence: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """Source tensors that it takes from, each once."""
        return tuple(dict.fromkeys(part.key for part in self.parts if part.key))

    @property
    def whole(self) -> bool:
        """Tell whether it is one source tensor as it stands, whatever its shape."""
        return len(self.parts) == 1 and self.parts[0].whole and not self.axes

    def operation(self, source: Mapping[str, Shape], shape: Shape) -> str:
        """Name what is done, in one word.

        Args:
            source: shapes of the source's tensors.
            shape: shape of the target tensor.

        Returns:
            ``"identity"``, ``"reshape"``, ``"transpose"``, ``"slice"``, ``"concat"`` or ``"zeros"``.

        Example:
            >>> Entry("fc.weight", (Part("head.weight"),)).operation({"head.weight": (5, 4, 1, 1)}, (5, 4))
            'reshape'
        """
        if not self.keys:
            return "zeros"
        if len(self.parts) > 1:
            return "concat"
        if self.parts[0].rows is not None:
            return "slice"
        if not self.whole:
            return "transpose"
        return "identity" if source[self.parts[0].key] == shape else "reshape"


@attrs.frozen
class Mismatch:
    """Two tensors that stand for the same and differ in shape: nothing is taken.

    Args:
        target: name of the target tensor.
        source: name of the source tensor.
        asked: shape of the target.
        found: shape of the source.
    """

    target: str
    source: str
    asked: Shape
    found: Shape


@attrs.frozen
class Ambiguity:
    """A target tensor for which several source tensors are as good: nothing is taken.

    Args:
        target: name of the target tensor.
        candidates: names of the source tensors, sorted.
    """

    target: str
    candidates: tuple[str, ...]


def seen_shape(part: Part, source: Mapping[str, Shape]) -> Shape:
    """Return the shape that a part's tensor is seen in before its axes are permuted."""
    return part.view or source.get(part.key, ())


def part_shape(part: Part, source: Mapping[str, Shape]) -> Shape:
    """Return the shape of a part."""
    seen = seen_shape(part, source)
    turned = tuple(seen[axis] for axis in part.axes) if part.axes else seen
    return turned if part.rows is None else (part.rows[1] - part.rows[0], *turned[1:])


def joined_shape(entry: Entry, source: Mapping[str, Shape]) -> Shape:
    """Return the shape that the joined parts are seen in before their axes are permuted.

    Parts of unequal rows are joined one after the other, in one axis.
    """
    if entry.view:
        return entry.view
    shapes = [part_shape(part, source) for part in entry.parts]
    if len(shapes) == 1:
        return shapes[0]
    if all(shape and shape[1:] == shapes[0][1:] for shape in shapes):
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return (sum(map(math.prod, shapes)),)

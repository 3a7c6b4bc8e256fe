"""Where each element of a tensor comes from, and the simplest entry that says so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch

from torchgraft.alignment.entry import Entry, Part, Shape, joined_shape, seen_shape
from torchgraft.alignment.maps.apply import seen
from torchgraft.alignment.maps.strides import Digits, Taken, digits_of, refined, taken

_MOST_PARTS = 1000


def index_map(entry: Entry, source: Mapping[str, Shape], grain: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell for each element of a target tensor where it comes from.

    Args:
        entry: how the tensor is made.
        source: shapes of the source's tensors.
        grain: count in chunks of so many elements; it divides ``grain_of(entry, source)``.

    Returns:
        Index in ``entry.keys`` of the tensor, -1 for zeros; and the flat place in it.

    Example:
        >>> entry = Entry("qk", (Part("q"), Part("k", rows=(1, 3))))
        >>> index_map(entry, {"q": (2,), "k": (3,)})
        (tensor([0, 0, 1, 1]), tensor([0, 1, 1, 2]))
    """
    which, where = [], []
    for part in entry.parts:
        count = math.prod(seen_shape(part, source)) // grain
        held = torch.arange(count) if part.key else torch.zeros(count, dtype=torch.int64)
        place = seen(_coarse(part, source, grain), held).reshape(-1)
        where.append(place)
        which.append(torch.full_like(place, entry.keys.index(part.key) if part.key else -1))
    maps = torch.cat(which), torch.cat(where)
    if not _kept(entry.axes):
        return maps
    view, axes = _coarse_view(joined_shape(entry, source), entry.axes, grain)
    return maps[0].view(view).permute(axes).reshape(-1), maps[1].view(view).permute(axes).reshape(-1)


def grain_of(entry: Entry, source: Mapping[str, Shape]) -> int:
    """Return how many elements in a row stay together, whatever an entry does with them."""
    grain = _tail(joined_shape(entry, source), entry.axes)
    for part in entry.parts:
        view = seen_shape(part, source)
        grain = math.gcd(grain, math.prod(source.get(part.key, view)), _tail(view, part.axes))
        if part.rows is not None and not _kept(part.axes):
            row = math.prod(view[1:])
            grain = math.gcd(grain, part.rows[0] * row, part.rows[1] * row)
    return grain or 1


def summarise(
    target: str,
    shape: Shape,
    keys: Sequence[str],
    shapes: Mapping[str, Shape],
    which: torch.Tensor,
    where: torch.Tensor,
    rule: str = "",
    evidence: str = "",
    grain: int = 1,
) -> Entry | None:
    """Find the simplest entry that takes each element from where it is said to come from.

    Args:
        target: name of the target tensor.
        shape: shape of the target tensor.
        keys: names of source tensors.
        shapes: their shapes.
        which: for each element the index of its tensor, -1 for zeros.
        where: for each element its flat place in that tensor.
        rule: what decided.
        evidence: what confirmed it.
        grain: number of elements in a row that each place stands for.

    Returns:
        The entry; ``None`` where no such description exists.

    Example:
        >>> where = torch.arange(12).view(3, 4).t().reshape(-1)
        >>> summarise("w", (4, 3), ["v"], {"v": (3, 4)}, torch.zeros_like(where), where).parts
        (Part(key='v', view=(), axes=(1, 0), rows=None),)
    """
    which, where = which.reshape(-1), where.reshape(-1)
    if not len(which):
        return Entry(target, (Part("", shape),), rule=rule, evidence=evidence)
    reader = _Reader(shape, keys, shapes, which, where, grain)
    found = min(reader.found(), key=_cost, default=None)
    return found and attrs.evolve(found, target=target, rule=rule, evidence=evidence)


@attrs.frozen(eq=False)
class _Reader:
    """Propose entries for one index map."""

    shape: Shape
    keys: Sequence[str]
    shapes: Mapping[str, Shape]
    which: torch.Tensor
    where: torch.Tensor
    grain: int

    def found(self) -> Iterator[Entry]:
        """Propose entries; the first is enough where it is one part and nothing is turned after."""
        alone = self._alone()
        if alone is not None:
            yield alone
            if not alone.axes:
                return
        for period in self._periods():
            count = len(self.which) // period
            which, where = self.which.view(count, period), self.where.view(count, period)
            if count > 1 and not which.eq(which[:1]).all():
                continue
            changes = _changes(which[0])
            if len(changes) >= _MOST_PARTS:
                continue
            marks: list[int] = changes.tolist()
            for unit in sorted({1, math.gcd(period, *marks)}):
                entry = self._joined(which, where, [0, *marks, period], unit)
                if entry is not None:
                    yield entry

    def _alone(self) -> Entry | None:
        if bool((self.which != self.which[0]).any()):
            return None
        if self.which[0] < 0:
            return Entry("", (Part("", self.shape),))
        digits, left = digits_of(self.where)
        made = self._taken(int(self.which[0]), int(self.where[0]), digits) if left == 1 else None
        if made is None:
            return None
        if not made.axes:
            return Entry("", (made.part,))
        return Entry("", (made.part,), *refined(made.view, made.axes, self.shape))

    def _periods(self) -> list[int]:
        """Return lengths after which the map may begin anew, the whole first."""
        size = len(self.which)
        tails = {math.prod(self.shape[axis:]) for axis in range(1, len(self.shape))}
        periods = {tail // self.grain for tail in tails if tail and tail % self.grain == 0}
        changes = _changes(self.which)
        unit = math.gcd(size, *changes[:1].tolist(), *set(changes.diff().tolist()))
        short = self.which[::unit]
        for count in range(2, len(short) // 2 + 1):
            if len(short) % count == 0 and short.view(-1, count).eq(short[:count]).all():
                periods.add(count * unit)
                break
        return sorted((periods | {size}) - {1}, reverse=True) or [size]

    def _joined(
        self, which: torch.Tensor, where: torch.Tensor, marks: Sequence[int], unit: int
    ) -> Entry | None:
        """Join one part for each stretch between marks, the chunks of ``unit`` in them kept together."""
        count, period = which.shape
        parts: list[Part] = []
        for start, stop in itertools.pairwise(marks):
            index = int(which[0, start])
            found = self._stretch(index, where[:, start:stop], unit, _MOST_PARTS - len(parts))
            if found is None:
                return None
            parts += found
        if count == 1 or period == unit:
            return Entry("", tuple(parts))
        inner = (unit * self.grain,) if unit * self.grain > 1 else ()
        axes = (1, 0, 2) if inner else (1, 0)
        return Entry("", tuple(parts), *refined((period // unit, count, *inner), axes, self.shape))

    def _stretch(self, index: int, where: torch.Tensor, unit: int, most: int) -> list[Part] | None:
        """Describe a stretch of one tensor by one part, or by the fewest that its breaks allow."""
        count, length = where.shape
        if index < 0:
            return [Part("", self._rows(where.numel() * self.grain))]
        steps = where[0].diff()
        usual = int(steps.mode().values) if len(steps) else 1
        block = length // digits_of(where[0])[1]
        ways = [
            steps[:0],
            torch.arange(block, length, block),
            (steps != max(usual, 1)).nonzero().flatten() + 1,
            (steps != 1).nonzero().flatten() + 1,
        ]
        for way in sorted(ways, key=len):
            if len(way) >= most or bool((way % unit).any()):
                continue
            cuts: list[int] = way.tolist()
            parts: list[Part] = []
            for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
                places = where[:, start:stop].reshape(count, -1, unit).transpose(0, 1).reshape(-1)
                digits, left = digits_of(places)
                made = self._taken(index, int(places[0]), digits) if left == 1 else None
                if made is None or made.axes:
                    break
                parts.append(made.part)
            else:
                return parts
        return None

    def _taken(self, index: int, start: int, digits: Digits) -> Taken | None:
        grain, key = self.grain, self.keys[index]
        fine = [(size, stride * grain) for size, stride in digits]
        if fine and fine[-1][1] == grain:
            fine[-1] = (fine[-1][0] * grain, 1)
        elif grain > 1:
            fine.append((grain, 1))
        return taken(key, self.shapes[key], start * grain, fine)

    def _rows(self, count: int) -> Shape:
        row = math.prod(self.shape[1:])
        return (count // row, *self.shape[1:]) if self.shape and count % row == 0 else (count,)


def _changes(which: torch.Tensor) -> torch.Tensor:
    """Return the places at which another tensor begins."""
    return (which.diff() != 0).nonzero().flatten() + 1


def _cost(entry: Entry) -> int:
    """Weigh how much there is to read: parts, then views, orders of axes and rows."""
    parts = sum(2 + bool(p.view and p.key) + 2 * bool(p.axes) + (p.rows is not None) for p in entry.parts)
    return parts + 3 * bool(entry.axes)


def _kept(axes: tuple[int, ...]) -> int:
    """Return the number of axes before those at the end that stay where they are."""
    kept = len(axes)
    while kept and axes[kept - 1] == kept - 1:
        kept -= 1
    return kept


def _tail(view: Shape, axes: tuple[int, ...]) -> int:
    """Return the number of elements in the axes at the end that stay where they are."""
    return math.prod(view[_kept(axes) :])


def _coarse(part: Part, source: Mapping[str, Shape], grain: int) -> Part:
    """Return a part in chunks of elements that stay together."""
    view = seen_shape(part, source)
    if _kept(part.axes):
        return Part(part.key, *_coarse_view(view, part.axes, grain), part.rows)
    row = math.prod(view[1:])
    rows = None if part.rows is None else (part.rows[0] * row // grain, part.rows[1] * row // grain)
    return Part(part.key, (math.prod(view) // grain,), rows=rows)


def _coarse_view(view: Shape, axes: tuple[int, ...], grain: int) -> tuple[Shape, tuple[int, ...]]:
    kept = _kept(axes)
    return (*view[:kept], math.prod(view[kept:]) // grain), (*axes[:kept], kept)

"""An alignment: which tensors of one model hold what the tensors of another need.

It is a plain value: keys, shapes and the way from one to the other, and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch

from torchgraft.alignment.entry import Ambiguity as Ambiguity
from torchgraft.alignment.entry import Entry as Entry
from torchgraft.alignment.entry import Mismatch as Mismatch
from torchgraft.alignment.entry import Part as Part
from torchgraft.alignment.entry import Shape as Shape
from torchgraft.alignment.files import written
from torchgraft.alignment.files.atomic import replacing
from torchgraft.alignment.maps import relate, report
from torchgraft.alignment.maps.apply import applied
from torchgraft.alignment.maps.checks import check_entry, check_places, check_shapes
from torchgraft.errors import AlignmentError
from torchgraft.text import literal, near, plural


def _copied(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    return {key: tuple(shape) for key, shape in shapes.items()}


@attrs.frozen(repr=False)
class Alignment:
    """Say for every tensor of a target where it comes from in a source.

    Every target tensor stands in exactly one of ``entries``, ``mismatched``, ``ambiguous``
    and ``missing``; every source tensor is used by an entry, stands in ``mismatched`` or
    ``ambiguous``, or is ``unused``.

    Args:
        source: shapes of the source's tensors, by name.
        target: shapes of the target's tensors, by name.
        entries: how target tensors are made, in the order of the target.
        mismatched: pairs that differ in shape.
        ambiguous: target tensors with several candidates.

    Raises:
        AlignmentError: a name is unknown or stands twice, or parts do not fit their tensor.

    Example:
        >>> shapes = {"fc.weight": (2, 3), "fc.bias": (2,)}
        >>> entry = Entry("fc.weight", (Part("head.weight"),))
        >>> print(Alignment({"head.weight": (2, 3), "scale": ()}, shapes, (entry,)))
        75.0 % of 8 values aligned: 1 identity; 0 differ in shape; 1 missing; 1 unused; 0 ambiguous
          missing
            fc.bias  2
          unused
            scale  scalar
    """

    source: Mapping[str, Shape] = attrs.field(converter=_copied, hash=False)
    target: Mapping[str, Shape] = attrs.field(converter=_copied, hash=False)
    entries: tuple[Entry, ...]
    mismatched: tuple[Mismatch, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()

    def __attrs_post_init__(self) -> None:
        check_shapes(self.source, "source")
        check_shapes(self.target, "target")
        check_places(*self._fields())
        for entry in self.entries:
            check_entry(entry, self.source, self.target[entry.target])

    @property
    def missing(self) -> tuple[str, ...]:
        """Target tensors that stand in no other place, in the order of the target."""
        placed = {entry.target for entry in self.entries}
        placed |= {one.target for one in self.mismatched} | {one.target for one in self.ambiguous}
        return tuple(key for key in self.target if key not in placed)

    @property
    def unused(self) -> tuple[str, ...]:
        """Source tensors that stand in no other place, in the order of the source."""
        placed = {key for entry in self.entries for key in entry.keys}
        placed |= {one.source for one in self.mismatched}
        placed |= {key for one in self.ambiguous for key in one.candidates}
        return tuple(key for key in self.source if key not in placed)

    @property
    def coverage(self) -> float:
        """Share of the target's values that entries fill, from 0 to 1."""
        total = sum(map(math.prod, self.target.values()))
        return sum(math.prod(self.target[entry.target]) for entry in self.entries) / total if total else 1.0

    def of(self, target: str) -> Entry:
        """Return the entry for one target tensor.

        Args:
            target: name of the tensor.

        Returns:
            The entry.

        Raises:
            AlignmentError: there is none; says where the tensor stands instead.
        """
        for entry in self.entries:
            if entry.target == target:
                return entry
        places = {one.target: f"it differs in shape from {one.source!r}" for one in self.mismatched}
        places |= {one.target: f"as good are {', '.join(one.candidates)}" for one in self.ambiguous}
        places |= dict.fromkeys(self.missing, "it is missing")
        close = () if target in places else near(str(target), self.target)
        raise AlignmentError(
            f"there is no entry for {target!r}",
            asked=f".of({literal(target)})",
            found=places.get(target, plural(len(self.entries), "entry").replace("entrys", "entries")),
            near=close,
            write=f".of({literal(close[0])})" if close else "",
        )

    def operation(self, entry: Entry) -> str:
        """Name what an entry does; see ``Entry.operation``.

        Args:
            entry: one of the entries.

        Returns:
            ``"identity"``, ``"reshape"``, ``"transpose"``, ``"slice"``, ``"concat"`` or ``"zeros"``.
        """
        return entry.operation(self.source, self.target[entry.target])

    def apply(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the target's tensors out of a state dict of the source.

        Elements move and none is altered; dtype and device are those of the source. The
        result shares no memory with what is given. Tensors that no entry takes from are
        not looked at.

        Args:
            state: tensors of the source, by name.

        Returns:
            One contiguous tensor for each entry.

        Raises:
            AlignmentError: a tensor is missing or of another shape, or dtypes differ that
                would have to be joined. Nothing has been made then.

        Example:
            >>> both = Entry("kv", (Part("k"), Part("v")))
            >>> Alignment({"k": (1,), "v": (1,)}, {"kv": (2,)}, (both,)).apply(
            ...     {"k": torch.tensor([1]), "v": torch.tensor([2])}
            ... )
            {'kv': tensor([1, 2])}
        """
        return applied(self.entries, self.source, self.target, state)

    def inverse(self) -> Alignment:
        """Return the alignment of the target as a source with the source as a target.

        A source tensor that did not go into the target in full is left out.

        Returns:
            The alignment; applied after this one it gives back what was taken.

        Example:
            >>> halves = Entry("k", (Part("kv", rows=(0, 2)),)), Entry("v", (Part("kv", rows=(2, 4)),))
            >>> split = Alignment({"kv": (4,)}, {"k": (2,), "v": (2,)}, halves)
            >>> split.inverse().of("kv").parts == (Part("k"), Part("v"))
            True
        """
        return Alignment(self.target, self.source, *relate.inverted(*self._fields()))

    def compose(self, other: Alignment) -> Alignment:
        """Return the alignment that does first this one and then another.

        Args:
            other: an alignment whose source is the target of this one.

        Returns:
            The alignment of this one's source with the other's target. What the other takes
            from tensors that this one does not make is left out.

        Raises:
            AlignmentError: the other starts from tensors that the target has not.
        """
        for entry in other.entries:
            for key in entry.keys:
                if self.target.get(key) != other.source[key]:
                    raise AlignmentError(
                        "the second alignment does not start where the first one ends",
                        asked=f"{entry.target!r} takes from {key!r} with shape {other.source[key]}",
                        found=f"shape {self.target[key]}" if key in self.target else "no such tensor",
                        near=() if key in self.target else near(key, self.target),
                    )
        first, second = self._fields()[2:], other._fields()[2:]
        return Alignment(
            self.source,
            other.target,
            *relate.composed(self.source, self.target, other.target, first, second),
        )

    def to_json(self) -> str:
        """Write the alignment as text that ``from_json`` reads, one line an entry.

        Returns:
            JSON, to be read and edited by people.
        """
        return written.write(*self._fields())

    @classmethod
    def from_json(cls, text: str) -> Alignment:
        """Read an alignment back.

        Args:
            text: what ``to_json`` wrote, perhaps edited.

        Returns:
            The alignment.

        Raises:
            AlignmentError: the text is no alignment, is of another version, or does not fit.
        """
        return cls(*written.read(text))

    def save(self, path: str | Path) -> None:
        """Write the alignment to a file; the file is there in full or not at all.

        Args:
            path: the file; one that is there is replaced.
        """
        with replacing([Path(path)]) as (file,):
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read an alignment from a file.

        Args:
            path: a file that ``save`` wrote, perhaps edited.

        Returns:
            The alignment.

        Raises:
            AlignmentError: the file cannot be read, or as for ``from_json``.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise AlignmentError(f"{str(path)!r} cannot be read as text", found=str(error)) from error
        return cls.from_json(text)

    def __repr__(self) -> str:
        return f"<Alignment of {len(self.entries):,} of {plural(len(self.target), 'tensor')}>"

    def __str__(self) -> str:
        missing, unused = self.missing, self.unused
        counts = {
            "differ in shape": len(self.mismatched),
            "missing": len(missing),
            "unused": len(unused),
            "ambiguous": len(self.ambiguous),
        }
        total = sum(map(math.prod, self.target.values()))
        lines = report.groups(
            self.mismatched,
            self.ambiguous,
            {key: self.target[key] for key in missing},
            {key: self.source[key] for key in unused},
        )
        first = report.headline(self.coverage, total, map(self.operation, self.entries), counts)
        against = [entry.target for entry in self.entries if entry.evidence == "contradicted"]
        first += f"; behaviour contradicts {len(against):,}, first {against[0]}" if against else ""
        return "\n".join([first, *lines])

    def _fields(
        self,
    ) -> tuple[
        Mapping[str, Shape],
        Mapping[str, Shape],
        tuple[Entry, ...],
        tuple[Mismatch, ...],
        tuple[Ambiguity, ...],
    ]:
        return self.source, self.target, self.entries, self.mismatched, self.ambiguous

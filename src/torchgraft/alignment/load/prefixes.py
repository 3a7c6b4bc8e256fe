"""Prefixes: what stands before the names on one side only, of a checkpoint or of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import attrs

from torchgraft.alignment.alignment import Shape
from torchgraft.errors import CheckpointError
from torchgraft.text import literal


@attrs.frozen
class Prefix:
    """What to take off the names of a checkpoint, or to put before them.

    Args:
        removed: such as ``"module."``.
        added: such as ``"backbone."``.
    """

    removed: str = ""
    added: str = ""

    def rename(self, name: str) -> str:
        """Return the name in the model; one without what is removed stays as it is."""
        return self.added + name.removeprefix(self.removed)


def find_prefix(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Prefix:
    """Find the prefix with which most names of a checkpoint are names of a model, in shape too.

    Args:
        source: shapes of the checkpoint's tensors.
        target: shapes of the model's tensors.

    Raises:
        CheckpointError: several fit equally well.
    """
    votes: Counter[Prefix] = Counter()
    for one, other, adds in ((source, target, False), (target, source, True)):
        for name, shape in one.items():
            for before, rest in _cuts(name):
                if rest in other and not (adds and not before):
                    votes[Prefix(added=before) if adds else Prefix(before)] += 1 + 1000 * (
                        other[rest] == shape
                    )
    if not votes:
        return Prefix()
    most = max(votes.values())
    best = [prefix for prefix, count in votes.items() if count == most]
    if Prefix() in best:
        return Prefix()
    if len(best) > 1:
        raise CheckpointError(
            "several prefixes make as many names of the checkpoint fit the model",
            found=", ".join(literal(prefix.removed or prefix.added) for prefix in best[:4]),
            write="a state dict of the part that is meant",
        )
    return best[0]


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name cut before each of its parts."""
    yield "", name
    for position, letter in enumerate(name):
        if letter == ".":
            yield name[: position + 1], name[position + 1 :]

"""Prefixes: what stands before the names on one side only, of a checkpoint or of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import attrs

from torchgraft.alignment.alignment import Shape
from torchgraft.errors import CheckpointError
from torchgraft.text import literal

WRAPPERS = frozenset(
    ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer")
)
"""Names under which wrappers hold what they wrap: of replicas, compiled, recomputed, split and adapted."""


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

    Returns:
        The prefix; none where no prefix makes most names fit.

    Raises:
        CheckpointError: several fit equally well, and none stands inside another.
    """
    named, shaped = Counter[Prefix](), Counter[Prefix]()
    for one, other, adds in ((source, target, False), (target, source, True)):
        for name, shape in one.items():
            for before, rest in cuts(name):
                if rest in other and not (adds and not before):
                    prefix = Prefix(added=before) if adds else Prefix(before)
                    named[prefix] += 1
                    shaped[prefix] += other[rest] == shape
    fit = {p: (shaped[p], count) for p, count in named.items() if 2 * count >= min(len(source), len(target))}
    best = [prefix for prefix, counts in fit.items() if counts == max(fit.values())]
    if Prefix() in best or not best:
        return Prefix()
    said = [prefix.removed or prefix.added for prefix in best]
    best = [p for p, text in zip(best, said, strict=True) if not text.startswith(tuple({*said} - {text}))]
    if len(best) > 1:
        raise CheckpointError(
            "several prefixes make as many names of the checkpoint fit the model",
            found=", ".join(map(literal, said[:4])),
            write=f"prefix={literal(best[0].removed)}"
            if best[0].removed
            else f"into={literal(said[0][:-1])}",
        )
    return best[0]


def fit_names(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> tuple[dict[str, str], Prefix]:
    """Return what each tensor of a checkpoint is called in a model, and the prefix that was changed for it.

    Where that makes more names fit, what wrappers put into names is taken off wherever it stands.

    Raises:
        CheckpointError: several prefixes fit equally well.
    """
    prefix = find_prefix(source, target)
    names = {name: prefix.rename(name) for name in source}
    ours, theirs = ({_bare(name): name for name in side} for side in (target, source))
    lost = sum(name not in target for name in names.values())
    if not lost or len(ours) < len(target) or len(theirs) < len(source):
        return names, prefix
    inner = find_prefix({b: source[n] for b, n in theirs.items()}, {b: target[n] for b, n in ours.items()})
    renamed = {name: inner.rename(_bare(name)) for name in source}
    bare = {name: ours.get(new, new) for name, new in renamed.items()}
    return (bare, inner) if sum(new not in target for new in bare.values()) < lost else (names, prefix)


def _bare(name: str) -> str:
    """Return a name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name cut before each of its parts."""
    yield "", name
    for position, letter in enumerate(name):
        if letter == ".":
            yield name[: position + 1], name[position + 1 :]

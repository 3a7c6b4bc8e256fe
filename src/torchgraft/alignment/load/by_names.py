"""Alignment by names alone: what is called the same and has the same shape is the same."""

from __future__ import annotations

from collections.abc import Mapping

from torchgraft.alignment.alignment import Alignment, Entry, Mismatch, Part, Shape


def by_names(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Alignment:
    """Align tensors that have the same name.

    Args:
        source: shapes of the source's tensors, by name.
        target: shapes of the target's tensors, by name.

    Returns:
        An alignment of identities; two of one name that differ in shape are a mismatch.

    Example:
        >>> by_names({"a": (2,), "b": (3,)}, {"a": (2,), "b": (4,)}).mismatched
        (Mismatch(target='b', source='b', asked=(4,), found=(3,)),)
    """
    both = [name for name in target if name in source]
    return Alignment(
        source,
        target,
        tuple(
            Entry(name, (Part(name),), rule="same name", evidence="names")
            for name in both
            if source[name] == target[name]
        ),
        tuple(
            Mismatch(name, name, target[name], source[name]) for name in both if source[name] != target[name]
        ),
    )

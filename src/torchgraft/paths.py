"""Dotted paths of modules, tensors and nodes: ``layer4.0.conv1``."""

from __future__ import annotations

from collections.abc import Iterator


def join_path(*parts: str) -> str:
    """Join parts of a path; the root is the empty path.

    Example:
        >>> join_path("layer4", "0.conv1"), join_path("", "fc")
        ('layer4.0.conv1', 'fc')
    """
    return ".".join([part for part in parts if part])


def parent_of(path: str) -> str:
    """Return the path of the module that holds what stands at a path."""
    return path.rpartition(".")[0]


def last_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition(".")[2]


def parents_of(path: str) -> Iterator[str]:
    """Yield the paths of the modules around what stands at a path, the root last."""
    while path:
        path = parent_of(path)
        yield path

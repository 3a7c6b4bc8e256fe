"""Values of many paths in a few words: what is alike below a path is said once, at that path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torchgraft.paths import parent_of


def cover(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Name for each value the topmost paths below which all have it; an empty value is not named.

    Args:
        values: by dotted path, of the leaves of a tree.

    Returns:
        Paths by value, in the order given.

    Example:
        >>> cover({"stem.weight": "F16", "stem.bias": "F16", "head.weight": ""})
        {'F16': ['stem']}
    """
    below: dict[str, set[str]] = {}
    for path, value in values.items():
        for prefix in _prefixes(path):
            below.setdefault(prefix, set()).add(value)
    found: dict[str, dict[str, None]] = {}
    for path, value in values.items():
        if value:
            top = next(prefix for prefix in _prefixes(path) if below[prefix] == {value})
            found.setdefault(value, {})[top] = None
    return {value: list(tops) for value, tops in found.items()}


def spread(covers: Mapping[str, Sequence[str]], paths: Iterable[str]) -> dict[str, str]:
    """Give each path the value that a cover has for it; those that it does not reach are left out.

    Example:
        >>> spread({"F16": ["stem"]}, ["stem.weight", "head.weight"])
        {'stem.weight': 'F16'}
    """
    tops = {top: value for value, held in covers.items() for top in held}
    reached = ((path, [p for p in _prefixes(path) if p in tops]) for path in paths)
    return {path: tops[found[-1]] for path, found in reached if found}


def turns(values: Mapping[str, bool]) -> dict[str, bool]:
    """Keep of the values of all nodes of a tree those that differ from the node above.

    Example:
        >>> turns({"": True, "a": True, "a.b": False, "a.b.c": False})
        {'': True, 'a.b': False}
    """
    return {path: value for path, value in values.items() if not path or values[parent_of(path)] != value}


def turned(kept: Mapping[str, bool], paths: Iterable[str]) -> dict[str, bool]:
    """Give each node of a tree the value that is kept for it, or for the nearest node above.

    Example:
        >>> turned({"": True, "a.b": False}, ["", "a", "a.b", "a.b.c"])
        {'': True, 'a': True, 'a.b': False, 'a.b.c': False}
    """
    return {path: [kept[p] for p in _prefixes(path) if p in kept][-1] for path in paths}


def _prefixes(path: str) -> Iterator[str]:
    yield ""
    words = path.split(".") if path else []
    for end in range(1, len(words) + 1):
        yield ".".join(words[:end])

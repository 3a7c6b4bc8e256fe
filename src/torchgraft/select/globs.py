"""Patterns: ``*`` is one level of a path, ``**`` any depth, everything else itself."""

from __future__ import annotations


def matches(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match a whole path, level by level."""
    taken = {0}  # how many levels the pattern so far may have taken: all ways at once
    for part in pattern:
        if part == "**":
            taken = set(range(min(taken), len(name) + 1))
        else:
            taken = {i + 1 for i in taken if i < len(name) and fits(name[i], part)}
        if not taken:
            return False
    return len(name) in taken


def fits(word: str, pattern: str) -> bool:
    """Match one level: ``*`` stands for any characters, everything else for itself."""
    first, *others = pattern.split("*")
    if not others:
        return word == pattern
    last = others.pop()
    if not (word.startswith(first) and word.endswith(last) and len(word) >= len(first) + len(last)):
        return False
    middle = word[len(first) : len(word) - len(last)]
    for piece in others:
        position = middle.find(piece)
        if position < 0:
            return False
        middle = middle[position + len(piece) :]
    return True

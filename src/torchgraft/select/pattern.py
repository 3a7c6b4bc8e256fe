"""Patterns: ``*`` is one level of a path, ``**`` any depth, everything else itself."""

from __future__ import annotations


def matches(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match a whole path, level by level."""
    if not pattern:
        return not name
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return any(matches(name[i:], rest) for i in range(len(name) + 1))
    return bool(name) and fits(name[0], head) and matches(name[1:], rest)


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

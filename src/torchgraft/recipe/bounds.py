"""What a step may be made of, looked at token by token before anything of it is parsed.

A syntax tree of text from anywhere can be deep enough to exhaust the stack of the process,
and holds numbers that take minutes to write down; tokens cost little and nest nowhere.
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterator

from torchgraft.errors import RecipeError
from torchgraft.text import literal

LONGEST = 10_000
DEEPEST = 60
_OPERATORS = 1_000
_WORDS = frozenset(("True", "False", "None"))
_BRACKETS = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}
_PLAIN = frozenset((*_BRACKETS, ",", "=", ":"))


def check_bounds(text: object) -> str:
    """Check that a text is short, nests little, and has no word of Python that no step has.

    Args:
        text: what is given as a step.

    Returns:
        The text without the space around it.

    Raises:
        RecipeError: it is no text, too long, too deep, or holds what is never part of a step.

    Example:
        >>> check_bounds(' swap_head(10)')
        'swap_head(10)'
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        size = f" of {len(text):,} characters" if isinstance(text, str) else ""
        raise RecipeError(
            f"a step is text of at most {LONGEST:,} characters",
            asked=excerpt(text) if isinstance(text, str) else literal(text)[:80],
            found=f"{type(text).__name__}{size}",
            write="one step a line",
        )
    depth = operators = 0
    for token in _tokens(text.strip()):
        depth += _BRACKETS.get(token.string, 0) if token.type == tokenize.OP else 0
        operators += token.type == tokenize.OP and token.string not in _PLAIN
        if depth > DEEPEST or operators > _OPERATORS:
            raise _wrong(text, token, f"is nested more than {DEEPEST} deep", "steps one after the other")
        if token.type == tokenize.NAME and keyword.iskeyword(token.string) and token.string not in _WORDS:
            raise _wrong(text, token, "is not part of a step", "transforms, selectors, blocks and literals")
        computed = (
            token.type == tokenize.STRING
            and "f" in token.string[: token.string.find(token.string[-1])].lower()
        )
        if computed or tokenize.tok_name[token.type].startswith("FSTRING"):
            raise _wrong(text, token, "is text that is computed", "the text itself")
    return text.strip()


def excerpt(text: str) -> str:
    """Shorten a text for a message, on one line, without what no terminal can print."""
    said = " ".join(text[:400].split())
    said = "".join(letter if letter.isprintable() else "?" for letter in said)
    return said if len(said) <= 200 else f"{said[:197]}..."


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    try:
        yield from tokenize.generate_tokens(io.StringIO(text).readline)
    except (tokenize.TokenError, SyntaxError, ValueError) as error:
        raise RecipeError(
            "the step is no expression of Python",
            asked=excerpt(text),
            found=str(error.args[0]),
            write='wrap("layer4", se)',
        ) from error


def _wrong(text: str, token: tokenize.TokenInfo, what: str, write: str) -> RecipeError:
    return RecipeError(
        f"{excerpt(token.string)!r} {what}",
        asked=excerpt(text),
        found=f"column {token.start[1] + 1}",
        write=write,
    )

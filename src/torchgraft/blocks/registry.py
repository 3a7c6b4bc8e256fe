"""The one table of blocks by name, open to users."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.errors import OptionError
from torchgraft.text import literal, near

T = TypeVar("T")

_TABLE: dict[str, object] = {}
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def names() -> tuple[str, ...]:
    """List the names under which blocks can be given.

    Returns:
        The names in alphabetical order.

    Example:
        >>> "se" in names()
        True
    """
    return tuple(sorted(_TABLE))


def register_block(name: str) -> Callable[[T], T]:
    """Give a name to a block, so that ``wrap("layer4", "the_name")`` finds it.

    Args:
        name: an identifier that is not taken.

    Returns:
        A decorator for what a block can be made from: a factory of blocks, a module class
        with at most one required argument, or a function from a channel count to a module.

    Raises:
        OptionError: the name is taken, or no identifier.

    Example:
        >>> from torch import nn
        >>> @register_block("pointwise")
        ... def pointwise(channels: int) -> nn.Module:
        ...     return nn.Conv2d(channels, channels, 1)
        >>> "pointwise" in names()
        True
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise OptionError(
            "the name of a block is an identifier",
            asked=f"register_block({literal(name)})",
            write='register_block("my_block")',
        )

    def register(made: T) -> T:
        if name in _TABLE and _source(made) != _source(_TABLE[name]):
            raise _taken(name)
        _TABLE[name] = made
        return made

    return register


def find_block(name: str) -> object:
    """Return what is registered under a name.

    Raises:
        OptionError: nothing is.
    """
    if name not in _TABLE:
        called, bracket, _ = name.partition("(")
        plain = called.removeprefix("nn.").replace("_", "").lower()
        layers = [
            f"nn.{key}" for key, one in vars(nn).items() if isinstance(one, type) and key.lower() == plain
        ]
        close = (called,) if called in _TABLE else layers or near(_CAPITAL.sub("_", called).lower(), _TABLE)
        write = [one if one in layers else literal(one) for one in close]
        if bracket and called in _TABLE:  # quoted with its options
            write = [name if factory(called) else with_options(called)]
        raise OptionError(
            f"no block is named {literal(name)}",
            asked=literal(name),
            found=f"{len(_TABLE)} names, see torchgraft.blocks.names()",
            near=close,
            write=write[0] if write else "<block>",
        )
    return _TABLE[name]


def with_options(name: str) -> str:
    """Write how what is registered without options gets them."""
    return f"@block() on def {name}(site, *, <options>), in the place of @register_block({literal(name)})"


def factory(name: str) -> Callable[..., Block] | None:
    """Return the factory of blocks under a name, or ``None`` for what else is registered."""
    made = _TABLE.get(name)
    return made if callable(made) and hasattr(made, "kind") else None


def _source(made: object) -> object:
    """Tell which lines of which file made it: a module that is loaded again registers the same."""
    code = getattr(getattr(made, "__init__" if isinstance(made, type) else "builder", made), "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


def _taken(name: str) -> OptionError:
    return OptionError(
        f"a block named {literal(name)} is registered already",
        asked=f"register_block({literal(name)})",
        found=literal(_TABLE[name]),
        write=f"register_block({literal('my_' + name)})",
    )

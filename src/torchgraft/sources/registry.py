"""The one table of model builders by name, open to users and to installed packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

import attrs
from torch import nn

from torchgraft.errors import OptionError, SourceError
from torchgraft.text import kind, literal, near

Builder = Callable[..., nn.Module]
Preprocessing = Callable[..., object]
B = TypeVar("B", bound=Builder)

_GROUP = "torchgraft.models"
_NAME = re.compile(r"\w[\w.-]*")


@attrs.frozen(eq=False)
class _Entry:
    builder: Builder
    preprocessing: Preprocessing | None = None


_TABLE: dict[str, _Entry] = {}


def register_model(
    names: str | Sequence[str], *, preprocessing: Preprocessing | None = None
) -> Callable[[B], B]:
    """Give a builder of models one name or many, so that ``get_model`` finds it.

    A builder with a required parameter ``name`` is given the name that was asked for, so that
    one builder can make a family. Packages register theirs through entry points of the group
    ``torchgraft.models``: the name of the model, and where its builder is.

    Args:
        names: letters, digits, ``_``, ``.`` and ``-``; each may be taken once. A name of
            torchvision means the registered one from then on, unless it is asked for as
            ``"torchvision/..."``.
        preprocessing: what belongs before these models: from an image to a tensor.

    Returns:
        A decorator for a function, or a class, that returns a model; it is left as it is.

    Raises:
        OptionError: a name is taken, or is none.

    Example:
        >>> from torchgraft import get_model
        >>> @register_model(["tri_small", "tri_large"])
        ... def tri(name: str, num_classes: int = 3) -> nn.Module:
        ...     return nn.Linear(8 if name == "tri_large" else 4, num_classes)
        >>> get_model("tri_large", num_classes=5)
        Linear(in_features=8, out_features=5, bias=True)
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    for name in wanted:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError(
                "the name of a model consists of letters, digits, '_', '.' and '-'",
                asked=f"register_model({literal(names)})",
                found=literal(name),
                write='@register_model("my_model")',
            )
    if not wanted:
        raise OptionError(
            "a builder is registered under at least one name",
            asked=f"register_model({names!r})",
            write='@register_model("my_model")',
        )

    def register(builder: B) -> B:
        if not callable(builder):
            raise OptionError(
                "a builder is a function that returns a model",
                asked=f"register_model({literal(names)})",
                found=kind(builder),
                write=f"@register_model({literal(names)}) before its def",
            )
        for name in wanted:
            if name in _TABLE and _lines(_TABLE[name].builder) != _lines(builder):
                raise OptionError(
                    f"a model named {literal(name)} is registered already",
                    asked=f"register_model({literal(names)})",
                    found=literal(_TABLE[name].builder),
                    write=f"@register_model({literal('my_' + name)})",
                )
        _TABLE.update(dict.fromkeys(wanted, _Entry(builder, preprocessing)))
        return builder

    return register


@attrs.frozen
class Registered:
    """The builders of the user and of installed packages."""

    name: str = "registered"
    extra: str = ""

    def installed(self) -> bool:
        """Tell that the table is always there."""
        return True

    def names(self, *, pretrained: bool = False) -> Sequence[str]:
        """List all of them; a table of builders has no weights."""
        return [] if pretrained else sorted({*_TABLE, *(point.name for point in _points())})

    def has(self, name: str) -> bool:
        """Tell whether a builder is registered under a name."""
        return name in _TABLE or any(point.name == name for point in _points())

    def signature(self, name: str, options: Mapping[str, object] | None = None) -> inspect.Signature:  # noqa: ARG002 - a source
        """Return the options of a builder."""
        own = inspect.signature(_entry(name).builder)
        return own.replace(parameters=[p for p in own.parameters.values() if not _is_the_name(p)])

    def build(self, name: str, options: Mapping[str, object]) -> nn.Module:
        """Call the builder."""
        builder = _entry(name).builder
        own = inspect.signature(builder).parameters.values()
        given = {p.name: name for p in own if _is_the_name(p)}
        model = builder(**given, **options)
        if not isinstance(model, nn.Module):
            raise SourceError(
                f"the builder of {literal(name)} does not return a model",
                asked=f"get_model({literal(name)})",
                found=f"{kind(model)} from {literal(builder)}",
                write="return model",
            )
        return model

    def settled(self, name: str, options: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - a source
        """Return the options as they are."""
        return options

    def preprocessing(self, name: str) -> Preprocessing | None:
        """Return what was registered to stand before a model."""
        return _entry(name).preprocessing


REGISTERED = Registered()


def _entry(name: str) -> _Entry:
    """Return what is registered under a name, loaded from its package if need be.

    Raises:
        SourceError: a package offers it and cannot be loaded.
    """
    if name not in _TABLE:
        point, *others = [point for point in _points() if point.name == name]
        if others:
            raise _broken(point, "two packages offer it", f"also {others[0].value}")
        try:
            builder = point.load()
        except Exception as error:  # a package may fail in any way
            raise _broken(point, f"{type(error).__name__}: {error}", point.value) from error
        if not callable(builder):
            raise _broken(point, f"it is {kind(builder)}", point.value)
        _TABLE.setdefault(name, _Entry(cast("Builder", builder)))
    return _TABLE[name]


def _points() -> Sequence[EntryPoint]:
    return tuple(entry_points(group=_GROUP))


def _broken(point: EntryPoint, why: str, found: str) -> SourceError:
    home = point.dist.name if point.dist else "?"
    return SourceError(
        f"the model {literal(point.name)} of the package {home} cannot be loaded: {why}",
        asked=f"get_model({literal(point.name)})",
        found=f"{_GROUP}: {point.name} = {found}",
        near=near(point.name, _TABLE),
    )


def _is_the_name(parameter: inspect.Parameter) -> bool:
    required = parameter.default is parameter.empty
    return parameter.name == "name" and required and parameter.kind is not parameter.POSITIONAL_ONLY


def _lines(builder: object) -> object:
    """Tell which lines of which file made it: a module that is loaded again registers the same."""
    code = getattr(
        getattr(builder, "__init__" if isinstance(builder, type) else "", builder), "__code__", None
    )
    return builder if code is None else (code.co_filename, code.co_firstlineno, code.co_qualname)

"""Blocks from builders: a function of the place and of options becomes a factory of blocks."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, cast

import attrs
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.contract import KEEPS_SHAPE, Contract, Shape
from torchgraft.blocks.options import check_options, rules_of
from torchgraft.blocks.registry import register_block
from torchgraft.blocks.start import startable
from torchgraft.errors import GraftError, LayoutError, OptionError
from torchgraft.spec import TensorSpec, made_on
from torchgraft.text import literal, spelled

P = ParamSpec("P")
Builder = Callable[Concatenate[TensorSpec, P], nn.Module]


@attrs.frozen(eq=False)
class Kind:
    """What all blocks of one factory have in common.

    Args:
        builder: makes the module from the place and the options.
        contract: what the module does to a shape.
        maps: it needs a map with two spatial axes.
        places: it needs places, of any number of axes.
        places_with: an option with which it needs them.
        beside: it is called with the input of its target, then its output.
        any_axis: it looks at ``site.axis`` itself; otherwise it works on axis 1.
        on_weight: it can be put on the weight of a layer that is not called.
    """

    builder: Callable[..., nn.Module]
    contract: Contract
    maps: bool
    places: bool
    places_with: str
    beside: bool
    any_axis: bool
    on_weight: bool

    @property
    def name(self) -> str:
        """The name of the factory."""
        return self.builder.__name__

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The options: the parameters without the place."""
        whole = inspect.signature(self.builder)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def write(self, options: Mapping[str, object]) -> str:
        """Write the call that describes a block with some options."""
        words = []
        for name, held in self.signature.parameters.items():
            value = options.get(name, held.default)
            if held.kind is not held.KEYWORD_ONLY:
                words.append(literal(value))
            elif value != held.default or isinstance(value, bool) is not isinstance(held.default, bool):
                words.append(f"{name}={literal(value)}")
        return f"{self.name}({', '.join(words)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _kind, (self.builder.__module__, self.builder.__qualname__)


@attrs.frozen(repr=False)
class Described(Block):
    """A block of one factory with its options."""

    kind: Kind
    options: tuple[tuple[str, object], ...]

    @property
    def keeps_shape(self) -> bool:
        """Whether the output always has the shape of the input."""
        return self.kind.contract is KEEPS_SHAPE

    @property
    def needs_rank(self) -> bool:
        """Whether building it needs the number of axes."""
        return self.kind.maps or self._needs_places

    @property
    def _needs_places(self) -> bool:
        return self.kind.places or dict(self.options).get(self.kind.places_with) is not None

    @property
    def channels_first(self) -> bool:
        """Whether the module works on axis 1."""
        return not self.kind.any_axis

    @property
    def takes_input(self) -> bool:
        """Whether the module is called with the input of its target, then its output."""
        return self.kind.beside

    @property
    def contract(self) -> str:
        """What it does to a shape, in words."""
        return self.kind.contract.says

    def shape(self, given: Shape) -> Shape:
        """Return the shape that comes out when one goes in, with the channels on axis 1."""
        return self.kind.contract.shape(given, dict(self.options))

    def build(self, site: TensorSpec) -> nn.Module:
        """Make the module for a place: its channels, device and dtype.

        Raises:
            LayoutError: the value there has no places, and the block is about places.
            OptionError: its builder fails with these options.
        """
        fits = site.rank == 4 if self.kind.maps else site.rank != 2 or not self._needs_places
        if not fits:
            raise LayoutError(
                f"{self.kind.name} works on the places of a map, and this value has none"
                if self.kind.maps
                else f"{self!r} works on places, and this value has none",
                asked=repr(self),
                found=repr(site),
                write="se()",
            )
        try:
            return startable(made_on(site, lambda: self.kind.builder(site, **dict(self.options))))
        except GraftError:
            raise
        except Exception as error:
            raise OptionError(
                f"{self.kind.name} cannot be built with these options",
                asked=repr(self),
                found=f"{type(error).__name__}: {error} for {site!r}",
                write=f"{self.kind.name}()",
            ) from error

    def label(self) -> str:
        """Return the name the module gets."""
        return self.kind.name

    def __repr__(self) -> str:
        return self.kind.write(dict(self.options))


def block(
    contract: Contract = KEEPS_SHAPE,
    *,
    maps: bool = False,
    places: bool = False,
    places_with: str = "",
    beside: bool = False,
    any_axis: bool = False,
    on_weight: bool = False,
) -> Callable[[Builder[P]], Callable[P, Block]]:
    """Make a factory of blocks from a builder, and register it under the builder's name.

    The first parameter of the builder is the place; the others are the options, which are
    checked by their annotations when a block is described, before any model is seen.

    Args:
        contract: what the module does to a shape.
        maps: it needs a map with two spatial axes.
        places: it needs places, of any number of axes: a map or tokens.
        places_with: name of an option with which it needs them.
        beside: its forward takes the input of the target, then its output.
        any_axis: the builder looks at ``site.axis``; otherwise the module works on axis 1,
            and values with the channels last are turned for it.
        on_weight: the builder looks at ``site.weight``: where a layer is not called, its module is
            called with the weight.

    Returns:
        The decorator.

    Example:
        >>> from torchgraft.blocks.options import Positive
        >>> @block(maps=True)
        ... def blur(site: TensorSpec, *, kernel: Positive = 3) -> nn.Module:
        ...     return nn.AvgPool2d(kernel, 1, padding=kernel // 2, count_include_pad=False)
        >>> blur(kernel=5)
        blur(kernel=5)
    """

    def decorate(builder: Builder[P]) -> Callable[P, Block]:
        kind = Kind(builder, contract, maps, places, places_with, beside, any_axis, on_weight)
        rules = rules_of(builder)
        defaults = {n: p.default for n, p in kind.signature.parameters.items() if p.default is not p.empty}

        @functools.wraps(builder)
        def make(*args: P.args, **kwargs: P.kwargs) -> Block:
            bound = kind.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            check_options(rules, bound.arguments, defaults, kind.write)
            return Described(kind, tuple(bound.arguments.items()))

        del make.__wrapped__
        make.__doc__ = _complete_docs(builder.__doc__ or "")
        make.__signature__ = kind.signature  # type: ignore[attr-defined]  # read by inspect
        checked = spelled(make)
        checked.builder = builder  # type: ignore[attr-defined]  # read by the registry
        checked.kind = kind  # type: ignore[attr-defined]  # read by parse_block and by pickle
        register_block(kind.name)(checked)
        return checked

    return cast("Callable[[Builder[P]], Callable[P, Block]]", decorate)


_SAID = ("Returns:\n    The block.", "Raises:\n    OptionError: an option is unknown or out of range.")


def _complete_docs(text: str) -> str:
    """Leave out the place, which callers do not give, and say what every factory returns and raises."""
    parts = re.sub(r"\n +site: .*", "", inspect.cleandoc(text)).split("\n\n")
    parts = [part for part in parts if part != "Args:"]
    end = next((i for i, part in enumerate(parts) if part.startswith(("Example:", "Source:"))), len(parts))
    if not any(part.startswith("Returns:") for part in parts):
        parts[end:end] = _SAID
    return "\n\n".join(parts)


def _kind(module: str, name: str) -> Kind:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast("Kind", getattr(found, "kind"))  # noqa: B009 - no type has it

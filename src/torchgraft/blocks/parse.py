"""What users write as a block: a name, a description, a module, a class, a function."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import cast

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.registry import find_block
from torchgraft.errors import OptionError
from torchgraft.graph.clone import clone
from torchgraft.spec import TensorSpec
from torchgraft.text import class_name, function_name, kind, literal, shown

BlockLike = Block | str | nn.Module | type[nn.Module] | Callable[..., Block] | Callable[[int], nn.Module]


@attrs.frozen(repr=False)
class Ready(Block):
    """A module as it is; a copy of it is put in, and it cannot be written to a file."""

    module: nn.Module = attrs.field(eq=id)

    @property
    def ready(self) -> bool:
        """It is put in as it is."""
        return True

    def build(self, site: TensorSpec) -> nn.Module:  # noqa: ARG002 - a module is what it is
        """Copy the module."""
        return self.fixed()

    def fixed(self) -> nn.Module:
        """Copy the module."""
        return clone(self.module)

    def label(self) -> str:
        """Name the module after its class."""
        return snake(type(self.module).__name__)

    def __repr__(self) -> str:
        said = re.sub(r"\s+", " ", repr(self.module))
        home = "nn." * type(self.module).__module__.startswith("torch.nn.modules")
        return literal(self.module) if len(said) > 300 else home + said


@attrs.frozen(repr=False)
class OfClass(Block):
    """A module class, called with nothing, or with the channel count where it needs one value."""

    cls: type[nn.Module]

    def build(self, site: TensorSpec) -> nn.Module:
        """Make an instance on the device and with the dtype of the place."""
        with torch.device(site.device):
            made = self.cls(*(site.channels,) * len(_required(self.cls)))
        return made.to(site.dtype)

    def fixed(self) -> nn.Module | None:
        """Make an instance where the class needs no value."""
        return None if _required(self.cls) else self.cls()

    def label(self) -> str:
        """Name the module after its class."""
        return snake(self.cls.__name__)

    def __repr__(self) -> str:
        return class_name(self.cls)


@attrs.frozen(repr=False)
class OfFunction(Block):
    """A function that makes a module from a channel count."""

    function: Callable[[int], nn.Module]

    def build(self, site: TensorSpec) -> nn.Module:
        """Call the function on the device and with the dtype of the place."""
        with torch.device(site.device):
            made = made_by(self.function, site.channels, "def block(channels: int) -> nn.Module: ...")
        if not isinstance(made, nn.Module):
            raise OptionError(
                "the function given as a block did not return a module",
                asked=function_name(self.function),
                found=kind(made),
                write="def block(channels: int) -> nn.Module: ...",
            )
        return made.to(site.dtype)

    def label(self) -> str:
        """Name the module after the function."""
        name = getattr(self.function, "__name__", "block")
        return "block" if name == "<lambda>" else name

    def __repr__(self) -> str:
        return function_name(self.function)


@attrs.frozen(repr=False)
class OfOld(Block):
    """A function that makes a module from the one it replaces, or from that and its site."""

    function: Callable[..., object]

    def make(self, old: nn.Module, site: object) -> nn.Module:
        """Call the function.

        Raises:
            OptionError: it raises, or does not return a module.
        """
        needed = [
            p
            for p in inspect.signature(self.function).parameters.values()
            if p.kind is p.VAR_POSITIONAL
            or (p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        ]
        given = self.function if len(needed) < 2 else functools.partial(_swapped, self.function, site)
        new = made_by(given, old, "lambda old: <a module>")
        if not isinstance(new, nn.Module):
            raise OptionError(
                "the function given to replace did not return a module",
                asked=function_name(self.function),
                found=kind(new),
                write="lambda old: <a module>",
            )
        return new

    def __repr__(self) -> str:
        return function_name(self.function)


@attrs.frozen(repr=False)
class Named(Block):
    """A module class or function that users registered under a name."""

    registered: str
    made: Block = attrs.field(eq=False)

    def build(self, site: TensorSpec) -> nn.Module:
        """Make the module as what was registered does."""
        return self.made.build(site)

    def fixed(self) -> nn.Module | None:
        """Make the module where it does not depend on the place."""
        return self.made.fixed()

    def label(self) -> str:
        """Return the name it is registered under."""
        return self.registered

    def __repr__(self) -> str:
        return literal(self.registered)


def parse_block(value: object, given: str = "channels") -> Block:
    """Turn what users write into a block.

    Args:
        value: the name of a block, a block, its factory, a module, a module class, or a
            function from a channel count to a module.
        given: what functions get, for the error.

    Returns:
        The block.

    Raises:
        OptionError: the value is none of these, or a class that needs more than one value.
    """
    if isinstance(value, Block):
        return value
    if isinstance(value, str):
        made = parse_block(find_block(value))
        return made if hasattr(find_block(value), "kind") else Named(value, made)
    if isinstance(value, nn.Module):
        if any(isinstance(p, nn.UninitializedParameter) for p in value.parameters()):
            raise OptionError(
                "a lazy module cannot be put in before it knows its shape",
                asked=shown(value),
                found="a parameter without a shape",
                write="lambda channels: <the module for that many channels>",
            )
        return Ready(clone(value))
    if isinstance(value, type):
        if issubclass(value, nn.Module) and len(_required(value)) <= 1:
            return OfClass(value)
    elif hasattr(value, "kind"):
        return cast("Callable[[], Block]", value)()
    elif callable(value) and not hasattr(value, "_edit"):
        return OfFunction(cast("Callable[[int], nn.Module]", value))
    raise OptionError(
        "a block is a description such as se(), a module, a module class with at most one required "
        "argument, or a function from a channel count to a module",
        asked=shown(value),
        found=f"{type(value).__name__}{_needs(value)}",
        write=_suggestion(value, given),
    )


def made_by(function: Callable[..., object], value: object, write: str) -> object:
    """Call a function of the user on a value.

    Raises:
        OptionError: it raises.
    """
    try:
        return function(value)
    except Exception as error:
        raise OptionError(
            f"{function_name(function)} fails on {literal(value)}",
            asked=function_name(function),
            found=f"{type(error).__name__}: {error}",
            write=write,
        ) from error


def _swapped(function: Callable[..., object], site: object, old: object) -> object:
    return function(old, site)


def _suggestion(value: object, given: str) -> str:
    """Write a block that is near to what was given."""
    if isinstance(value, type) and issubclass(value, nn.GroupNorm):
        return '"group_norm"'
    if isinstance(value, type) and issubclass(value, nn.Module):
        needed = _required(value)
        words = ["channels"] * min(2, len(needed)) + ["1"] * (len(needed) - 2)
        if given == "old":
            more = [name for name in ("stride", "padding") if name in inspect.signature(value).parameters]
            words = [f"old.{name}" for name in needed] + [f"{name}=old.{name}" for name in more]
        return f"lambda {given}: {class_name(value)}({', '.join(words)})"
    if isinstance(value, int):
        return "nn.Linear(<features>, <classes>)"
    return "<block>"


def snake(name: str) -> str:
    """Turn a class name into the name of a module: ``BatchNorm2d`` gives ``batch_norm2d``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _required(cls: type[nn.Module]) -> list[str]:
    return [
        p.name
        for p in list(inspect.signature(cls).parameters.values())
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _needs(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f" {value.__name__} that needs {', '.join(_required(value))}"
    return ""

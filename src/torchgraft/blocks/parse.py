"""What users write as a block: a name, a description, a module, a class, a function."""

from __future__ import annotations

import ast
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
from torchgraft.graph.outline import named_tensors
from torchgraft.graph.portrait import portrait
from torchgraft.spec import TensorSpec, drawn, made_on
from torchgraft.text import class_name, function_name, kind, literal, shown

_LITERALS = (bool, int, float, str, tuple)
BlockLike = Block | str | nn.Module | type[nn.Module] | Callable[..., Block] | Callable[[int], nn.Module]


@attrs.frozen(repr=False)
class Ready(Block):
    """A module as it is, of which a copy is put in; a layer of torch is written as the call that makes it.

    Args:
        module: the module; without values where it was read from its call.
        make: makes it, where it was read.
    """

    module: nn.Module = attrs.field(eq=lambda module: call_of(module) or id(module))
    make: Callable[[], nn.Module] | None = attrs.field(default=None, eq=False)

    @property
    def ready(self) -> bool:
        """It is put in as it is."""
        return True

    def build(self, site: TensorSpec) -> nn.Module:
        """Copy the module, or make it; without values where the model has none."""
        with drawn(site.device):
            return self.fixed()

    def fixed(self) -> nn.Module:
        """Copy the module, or make it."""
        return clone(self.module) if self.make is None else self.make()

    def label(self) -> str:
        """Name the module after its class."""
        return snake(type(self.module).__name__)

    def __repr__(self) -> str:
        said = re.sub(r"\s+", " ", repr(self.module))
        home = "nn." * type(self.module).__module__.startswith("torch.nn.modules")
        whole = len(said) > 300 or (home and not self.module._modules)
        return call_of(self.module) or (literal(self.module) if whole else home + said)


@attrs.frozen(repr=False)
class OfClass(Block):
    """A module class, called with nothing, or with the channel count where it needs one value."""

    cls: type[nn.Module]

    def build(self, site: TensorSpec) -> nn.Module:
        """Make an instance on the device and with the dtype of the place."""
        return made_on(site, lambda: self.cls(*(site.channels,) * len(required(self.cls))))

    def fixed(self) -> nn.Module | None:
        """Make an instance where the class needs no value."""
        return None if required(self.cls) else self.cls()

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
        return made_on(site, lambda: self._made(site.channels))

    def _made(self, channels: int) -> nn.Module:
        made = made_by(self.function, channels, "def block(channels: int) -> nn.Module: ...")
        if not isinstance(made, nn.Module):
            raise OptionError(
                "the function given as a block did not return a module",
                asked=function_name(self.function),
                found=kind(made),
                write="def block(channels: int) -> nn.Module: ...",
            )
        return made

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
        if issubclass(value, nn.Module) and len(required(value)) <= 1:
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


def call_of(module: nn.Module) -> str:
    """Write the call of a layer of torch that makes a module of the same structure; empty where none does."""
    cls = type(module)
    if not is_layer(cls):
        return ""
    given = {
        name: literal(getattr(module, name))
        for name, parameter in inspect.signature(cls).parameters.items()
        if isinstance(getattr(module, name, None), _LITERALS) and getattr(module, name) != parameter.default
    }
    named = f"{cls.__name__}({', '.join(f'{name}={said}' for name, said in given.items())})"
    for said in (" ".join(repr(module).split()), named):
        try:
            call = cast("ast.Call", ast.parse(said, mode="eval").body)
            with torch.device("meta"):
                again = cls(
                    *map(ast.literal_eval, call.args),
                    **{str(key.arg): ast.literal_eval(key.value) for key in call.keywords},
                )
        except Exception:  # noqa: BLE001, S112 - what it prints is no call, or one that fails
            continue
        if _parts(again) == _parts(module):
            return f"nn.{said}"
    return ""


def is_layer(cls: type) -> bool:
    """Tell whether a class is one of the layers of ``torch.nn``."""
    return cls.__module__.startswith("torch.nn.modules") and vars(nn).get(cls.__name__) is cls


def _parts(module: nn.Module) -> tuple[object, ...]:
    """Tell what a module is made of, but for the values."""
    return portrait(module), [(t.dtype, t.requires_grad) for _, t in named_tensors(module)]


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
        needed = required(value)
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


def required(cls: type) -> list[str]:
    """Name the values that a class needs."""
    return [
        p.name
        for p in list(inspect.signature(cls).parameters.values())
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _needs(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f" {value.__name__} that needs {', '.join(required(value))}"
    return ""

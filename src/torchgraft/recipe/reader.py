"""Read a step as it is written in Python, over the syntax tree and an allow-list of names.

Nothing is evaluated: names are looked up in the list, calls are made of what stands on it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import cast

import attrs
from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.block import Block
from torchgraft.blocks.parse import Ready, is_layer, parse_block, required
from torchgraft.blocks.registry import with_options
from torchgraft.errors import GraftError, RecipeError
from torchgraft.recipe import names
from torchgraft.recipe.bounds import DEEPEST, check_bounds, excerpt
from torchgraft.select import Selector
from torchgraft.sources.skeleton import bounded_parts, skeleton
from torchgraft.text import literal, near, spelled
from torchgraft.transform import Transform

_HOMES: Mapping[str, object] = {"nn": nn, "F": F}
_REGISTERED = '@register_block("my_block") on what makes it, and "my_block" in the step'
_LARGEST = 2**63
_ROOM = 1 << 20
"""Bytes that a layer may fill while its call is read, beside its parameters."""
_BINARY: dict[type[ast.operator], Callable[[object, object], object]] = {
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.Sub: operator.sub,
    ast.RShift: operator.rshift,
}


@spelled
def parse(text: str) -> Transform:
    """Read a transform back from what it prints.

    Known are the public transforms, selectors and blocks, module classes by their dotted
    names, calls of the layers of ``torch.nn`` with literals, literals, and the operators of
    selectors and transforms.

    Args:
        text: such as ``'wrap("layer4", se(reduction=8)) >> swap_head(10)'``.

    Returns:
        The transform.

    Raises:
        RecipeError: the text is no transform; says where and what is near.

    Example:
        >>> parse('freeze("layer1") >> wrap("layer4", se)')
        compose(freeze("layer1"), wrap("layer4", se()))
    """
    made = _Reader(text).read()
    if not isinstance(made, Transform):
        raise RecipeError(
            "a step is a transform",
            asked=excerpt(text),
            found=literal(made)[:200],
            write='wrap("layer4", se), freeze("layer1"), ...',
        )
    return made


class _Reader:
    """Turn one expression into the value that it describes."""

    def __init__(self, text: str, tries: int = 3) -> None:
        self._text = text
        self._tries = tries

    def read(self) -> object:
        """Read the text."""
        text = check_bounds(self._text)
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise RecipeError(
                "the step is no expression of Python",
                asked=excerpt(text),
                found=str(error)[:200],
                write=_quoted(text),
            ) from error
        self._tree = tree.body
        try:
            return self._value(tree.body, 0)
        except GraftError:
            raise
        except Exception as error:  # a factory may raise anything for a value that no one thought of
            raise RecipeError(
                "the step cannot be made",
                asked=excerpt(text),
                found=f"{type(error).__name__}: {excerpt(str(error))}",
                write="the arguments of its docstring",
            ) from error

    def _value(self, node: ast.expr, depth: int) -> object:
        if depth > DEEPEST:
            raise self._wrong(node, f"is nested more than {DEEPEST} deep", "steps one after the other")
        below = depth + 1
        match node:
            case ast.Constant(value=value) if value is None or isinstance(value, (str, int, float, bool)):
                self._check_constant(node, value)
                return value
            case ast.Tuple(elts=items):
                return tuple(self._value(item, below) for item in items)
            case ast.List(elts=items):
                return [self._value(item, below) for item in items]
            case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
                held = [self._value(cast("ast.expr", key), below) for key in keys]
                if any(not isinstance(key, str) for key in held) or len(set(held)) < len(held):
                    raise self._wrong(node, "has a key that is no text, or one twice", '{"old": "new"}')
                return dict(zip(held, (self._value(value, below) for value in values), strict=True))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return ~self._selector(operand, below)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
                return self._joined(node, sign, self._value(left, below), self._value(right, below))
            case ast.Name(id=name):
                return self._named(node, name)
            case ast.Attribute():
                return self._attribute(node, below)
            case ast.Call(func=function, args=args, keywords=keywords):
                if isinstance(function, ast.Name):
                    self._named(function, function.id)  # what is called is told before what it is given
                given = [self._value(arg, below) for arg in args]
                options = {str(k.arg): self._value(k.value, below) for k in keywords if k.arg is not None}
                if len(options) != len(keywords):
                    raise self._wrong(node, "unpacks a mapping", "the options one by one")
                return self._called(function, given, options, below)
        raise self._wrong(node, "is not part of a step", "transforms, selectors, blocks and literals")

    def _called(
        self, function: ast.expr, given: list[object], options: dict[str, object], depth: int
    ) -> object:
        if isinstance(function, ast.Name):
            made = self._named(function, function.id)
            if isinstance(made, str):
                write = self._with(self._call_of(function), literal(made))
                write = with_options(made) if given or options else write
                raise self._wrong(function, "is registered without options, so it is not called", write)
            callee = made if callable(made) else None
        elif isinstance(function, ast.Attribute) and function.attr in names.METHODS:
            callee = getattr(self._selector(function.value, depth), function.attr)
        else:
            callee = None
        layer = names.dotted(_dotted(function))
        if isinstance(layer, type) and is_layer(layer):
            return self._layer(function, layer, given, options)
        if callee is None or isinstance(callee, type):
            plain = layer and not (given or options)
            write = self._with(self._call_of(function), _dotted(function)) if plain else _REGISTERED
            raise self._wrong(function, "is not called in a step", write)
        loose = [v for v in (*given, *options.values()) if callable(v) and not _may_be_passed(v)]
        if loose and callee is not names.SELECTORS["op"]:
            raise self._wrong(function, "takes no function here", "a block, or a module class")
        try:
            return cast("Callable[..., object]", callee)(*given, **options)
        except GraftError:
            raise
        except TypeError as error:
            raise self._wrong(
                function, f"is called wrongly: {error}", "the arguments of its docstring"
            ) from error

    def _layer(self, function: ast.expr, cls: type, given: list[object], options: dict[str, object]) -> Block:
        """Read the call of a layer of torch, which is made where it is put in."""
        held = (*given, *options.values())
        needed = ", ".join(f"<{name}>" for name in required(cls))
        write = self._with(self._call_of(function), f"{_dotted(function)}({needed})")
        if any(callable(v) or isinstance(v, (Block, Selector)) for v in held) or {"device", "dtype"} & {
            *options
        }:
            raise self._wrong(function, "takes numbers, text and flags in a step", write)
        make = functools.partial(cls, *given, **options)
        try:
            with bounded_parts():
                return attrs.evolve(cast("Ready", parse_block(skeleton(make, limit=_ROOM))), make=make)
        except TypeError as error:
            raise self._wrong(function, f"is called wrongly: {error}", write) from error

    def _attribute(self, node: ast.Attribute, depth: int) -> object:
        path = _dotted(node)
        found = names.dotted(path) if path else None
        if found is not None:
            return found
        if node.attr in names.PROPERTIES:
            return getattr(self._selector(node.value, depth), node.attr)
        if node.attr in names.METHODS:
            raise self._wrong(node, "is not called", f"{self._said(node)}(...)")
        home, _, last = path.rpartition(".")
        close = near(path, [f"{home}.{name}" for name in dir(_HOMES[home])]) if home in _HOMES else ()
        write = self._meant(node, path, ()) if last[:1].islower() and not close else ""
        raise self._wrong(node, "is no module class and no part of a selector", write, close)

    def _named(self, node: ast.expr, name: str) -> object:
        if name in names.NEVER_WRITTEN:
            raise self._wrong(
                node, f"takes {names.NEVER_WRITTEN[name]}, which cannot be written", "a step without it"
            )
        found = names.named(name)
        if found is None:
            close = near(name, names.known())
            raise self._wrong(node, "is no known name", self._meant(node, name, close), close)
        return found

    def _check_constant(self, node: ast.expr, value: object) -> None:
        """Check that a value can be written again: numbers in range, text without half characters."""
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self._wrong(node, "is no text that a file can hold", "the characters themselves")
        if isinstance(value, (int, float)) and not abs(value) < _LARGEST:  # nor NaN
            raise self._wrong(node, "is no number that a step can hold", "a number below 2**63")

    def _selector(self, node: ast.expr, depth: int) -> Selector:
        value = self._value(node, depth)
        if not isinstance(value, Selector):
            raise self._wrong(node, "is no selector", self._with(node, f"at({self._said(node)})"))
        return value

    def _joined(self, node: ast.expr, sign: ast.operator, left: object, right: object) -> object:
        fits = isinstance(left, Transform) and isinstance(right, Transform)
        if not isinstance(sign, ast.RShift):
            classes = isinstance(left, type) and isinstance(right, type)
            fits = isinstance(left, Selector) or isinstance(right, Selector) or classes
        if not fits:
            raise self._wrong(node, "joins what cannot be joined", 'at("layer3") | "layer4", or step >> step')
        return _BINARY[type(sign)](left, right)

    def _meant(self, node: ast.expr, name: str, close: tuple[str, ...]) -> str:
        """Write the step with an unknown name in quotes, or the nearest one: the first that is a step."""
        if not self._tries:
            return self._with(node, close[0]) if close else ""
        for new in (literal(name), f"at({literal(name)})", *close):
            write = self._with(node, new)
            try:
                _Reader(write, self._tries - 1).read()
            except GraftError as error:  # what that is to be may be a step
                write = error.write
            with contextlib.suppress(GraftError):
                if isinstance(_Reader(write, 0).read(), Transform):
                    return write
        return ""

    def _call_of(self, function: ast.expr) -> ast.expr:
        return next(n for n in ast.walk(self._tree) if isinstance(n, ast.Call) and n.func is function)

    def _with(self, node: ast.expr, new: str) -> str:
        """Write the step with something else in the place of a part of it."""
        lines = self._text.strip().encode().splitlines(keepends=True)
        first, last = lines[: node.lineno - 1], lines[(node.end_lineno or node.lineno) :]
        head = b"".join([*first, lines[node.lineno - 1][: node.col_offset]])
        tail = b"".join([lines[(node.end_lineno or 1) - 1][node.end_col_offset :], *last])
        return (head + new.encode() + tail).decode()

    def _said(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text.strip(), node) or ""

    def _wrong(self, node: ast.expr, what: str, write: str, close: tuple[str, ...] = ()) -> RecipeError:
        said = self._said(node)
        return RecipeError(
            f"{excerpt(said if len(said) < 60 else said[:57] + '...')!r} {what}",
            asked=excerpt(self._text),
            found=f"column {node.col_offset + 1}",
            near=close,
            write=write or (self._with(node, close[0]) if close else ""),
        )


def _quoted(text: str) -> str:
    """Put quotes around what is written like a path; a step to begin with where that is no step."""
    path = r"""(?<![\w."'])[A-Za-z_]\w*(?:\.\w+)*\.\d\w*(?:\.\w+)*(?![\w."'])"""
    quoted = re.sub(path, r'"\g<0>"', text)
    if quoted != text:
        with contextlib.suppress(GraftError):
            parse(quoted)
            return quoted
    return 'wrap("layer4", se)'


def _may_be_passed(value: object) -> bool:
    """Tell what is safe to hand over: classes, blocks, transforms; a function could do anything."""
    return isinstance(value, (type, Transform, Selector)) or hasattr(value, "kind")


def _dotted(node: ast.expr) -> str:
    """Write ``a.b.c`` where an expression is nothing else."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""

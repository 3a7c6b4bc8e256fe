"""Read a step as it is written in Python, over the syntax tree and an allow-list of names.

Nothing is evaluated: names are looked up in the list, calls are made of what stands on it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import cast

from torchgraft.errors import GraftError, RecipeError
from torchgraft.recipe import names
from torchgraft.recipe.bounds import DEEPEST, check_bounds, excerpt
from torchgraft.select import Selector
from torchgraft.text import literal, near, spelled
from torchgraft.transform import Transform

_LARGEST = 2**63
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
    names, literals, and the operators of selectors and transforms.

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

    def __init__(self, text: str) -> None:
        self._text = text

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
                write='wrap("layer4", se)',
            ) from error
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
                raise self._wrong(
                    function, "is registered without options, so it is not called", literal(made)
                )
            callee = made if callable(made) else None
        elif isinstance(function, ast.Attribute) and function.attr in names.METHODS:
            callee = getattr(self._selector(function.value, depth), function.attr)
        else:
            callee = None
        if callee is None or isinstance(callee, type):
            raise self._wrong(function, "is not called in a step", "a transform, a selector or a block")
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

    def _attribute(self, node: ast.Attribute, depth: int) -> object:
        path = _dotted(node)
        found = names.dotted(path) if path else None
        if found is not None:
            return found
        if node.attr in names.PROPERTIES:
            return getattr(self._selector(node.value, depth), node.attr)
        if node.attr in names.METHODS:
            raise self._wrong(node, "is not called", f"{self._said(node)}(...)")
        raise self._wrong(
            node, "is no module class and no part of a selector", "nn.<class>, or .first, .last, .calls"
        )

    def _named(self, node: ast.expr, name: str) -> object:
        if name in names.NEVER_WRITTEN:
            raise self._wrong(
                node, f"takes {names.NEVER_WRITTEN[name]}, which cannot be written", "a step without it"
            )
        found = names.named(name)
        if found is None:
            raise self._wrong(node, "is no known name", "", near(name, names.known()))
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
            raise self._wrong(node, "is no selector", f"at({ast.unparse(node)})")
        return value

    def _joined(self, node: ast.expr, sign: ast.operator, left: object, right: object) -> object:
        fits = isinstance(left, Transform) and isinstance(right, Transform)
        if not isinstance(sign, ast.RShift):
            classes = isinstance(left, type) and isinstance(right, type)
            fits = isinstance(left, Selector) or isinstance(right, Selector) or classes
        if not fits:
            raise self._wrong(node, "joins what cannot be joined", 'at("layer3") | "layer4", or step >> step')
        return _BINARY[type(sign)](left, right)

    def _said(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text.strip(), node) or ""

    def _wrong(self, node: ast.expr, what: str, write: str, close: tuple[str, ...] = ()) -> RecipeError:
        said = self._said(node)
        return RecipeError(
            f"{excerpt(said if len(said) < 60 else said[:57] + '...')!r} {what}",
            asked=excerpt(self._text),
            found=f"column {node.col_offset + 1}",
            near=close,
            write=write
            or (
                self._text.replace(said, close[0], 1)
                if close
                else "a name of torchgraft or a registered block"
            ),
        )


def _may_be_passed(value: object) -> bool:
    """Tell what is safe to hand over: classes, blocks, transforms; a function could do anything."""
    return isinstance(value, (type, Transform, Selector)) or hasattr(value, "kind")


def _dotted(node: ast.expr) -> str:
    """Write ``a.b.c`` where an expression is nothing else."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""

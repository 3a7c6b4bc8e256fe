"""Read a target as it is typed: a bare path, or a selector as in Python."""

from __future__ import annotations

import ast
import re

from torchgraft.edits.freeze import Freeze
from torchgraft.errors import GraftError, RecipeError
from torchgraft.recipe import names, parse
from torchgraft.recipe.bounds import check_bounds, excerpt
from torchgraft.select import Selector, at

_FREE = ("inside", "after", "before")
_PATH = re.compile(r"[\w*]+(\.[\w*]+)*")


def read_target(text: str) -> Selector:
    """Read a target.

    Beside what a step takes, ``inside(t)``, ``after(t)`` and ``before(t)`` may stand alone or be
    met with something, and names of modules need no quotes of their own.

    Args:
        text: such as ``nn.Conv2d & inside("layer4")``, ``layer4.*`` or ``head``.

    Returns:
        The selector.

    Raises:
        RecipeError: the text is no target.

    Example:
        >>> read_target('nn.Conv2d & inside("layer4")')
        at(nn.Conv2d).inside("layer4")
        >>> read_target("layer4.*")
        at("layer4.*")
    """
    text = check_bounds(text)
    if _PATH.fullmatch(text) and not _is_written(text):
        return at(text)
    try:
        asked = ast.unparse(_Joined().visit(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise RecipeError(
            "the target is no expression of Python",
            asked=excerpt(text),
            found=str(error)[:200],
            write="""nn.Conv2d & inside("layer4")""",
        ) from error
    try:
        made = parse(f"freeze({asked})")  # takes any target, and nothing that is none
    except GraftError as error:
        # What stands around the target was not typed.
        error.asked = text
        for around in ("parse(", "freeze("):
            if error.write.startswith(around):
                error.write = error.write[len(around) : -1].strip("\"'")
        error.found = "" if error.found.startswith("column") else error.found
        raise
    assert isinstance(made, Freeze)
    return made.target


class _Joined(ast.NodeTransformer):
    """Write ``x & inside(t)`` as ``at(x).inside(t)``, it alone as all that is inside, and quote paths."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Hang a relation on what it is met with."""
        for free, other in ((node.right, node.left), (node.left, node.right)):
            if isinstance(node.op, ast.BitAnd) and _is_free(free) and not _is_free(other):
                return self._hung(free, self.visit(other))
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Hang a relation that stands alone on everything."""
        if _is_free(node):
            return self._hung(node, ast.Constant("**"))
        node.func = node.func if isinstance(node.func, ast.Name) else self.visit(node.func)
        node.args = [self.visit(arg) for arg in node.args]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Leave dotted names as they are."""
        return node if isinstance(node.value, (ast.Name, ast.Attribute)) else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Take a word for a path, unless it is a selector."""
        return node if node.id in names.TIERS else _at(ast.Constant(node.id))

    def _hung(self, free: ast.expr, other: ast.expr) -> ast.expr:
        assert isinstance(free, ast.Call)
        assert isinstance(free.func, ast.Name)
        free.args = [self.visit(arg) for arg in free.args]
        free.func = ast.Attribute(_at(other), free.func.id, ast.Load())
        return free


def _is_free(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FREE


def _at(target: ast.expr) -> ast.expr:
    return ast.Call(ast.Name("at", ast.Load()), [target], [])


def _is_written(text: str) -> bool:
    """Return True if dotted words are a class or a selector, and no path."""
    first, _, rest = text.partition(".")
    tier = first in names.TIERS and (not rest or rest in names.PROPERTIES)
    return tier or first == "nn" or names.dotted(text) is not None

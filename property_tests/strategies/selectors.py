"""Selectors drawn from a drawn net: paths, patterns, classes, operations, and the algebra over them."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from strategies.functions import is_called, is_convolution, is_deep
from torchgraft import at, node, op, where
from torchgraft.select import Selector

PREDICATES = (is_convolution, is_deep, is_called)
FUNCTIONS = {
    "add": operator.add, "sub": operator.sub, "relu": F.relu, "cat": torch.cat, "flatten": torch.flatten,
    "dropout": F.dropout, "max_pool2d": F.max_pool2d, "interpolate": F.interpolate,
}  # fmt: skip
_CLASSES = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.Sequential)


def paths_of(net: nn.Module) -> list[str]:
    """List the paths of a net's modules, every name of a shared one."""
    return [path for path, _ in net.named_modules(remove_duplicate=False) if path]


def patterns_of(path: str) -> list[str]:
    """Make patterns that match a path."""
    parts = path.split(".")
    starred = [".".join((*parts[:i], "*", *parts[i + 1 :])) for i in range(len(parts))]
    return [*starred, f"**.{parts[-1]}", f"{parts[0]}.**", f"{path[:-1]}*", "**"]


@st.composite
def module_atoms(draw: st.DrawFn, net: nn.Module) -> Selector:
    """Draw a selector of modules that is not made from others; it matches the net."""
    paths = paths_of(net)
    form = draw(st.integers(0, 4))
    if form == 0:
        return at(draw(st.sampled_from(paths)))
    if form == 1:
        return at(draw(st.sampled_from(patterns_of(draw(st.sampled_from(paths))))))
    present = sorted({type(module) for _, module in net.named_modules()}, key=repr)
    if form == 2:
        return at(draw(st.sampled_from(present)))
    if form == 3:
        return at(draw(st.sampled_from(present)) | draw(st.sampled_from(_CLASSES)))
    return where(draw(st.sampled_from(PREDICATES)))


@st.composite
def modules(draw: st.DrawFn, net: nn.Module, depth: int = 1) -> Selector:
    """Draw a selector of modules, which may be an expression of others; it may match nothing."""
    if depth == 0 or draw(st.booleans()):
        return draw(module_atoms(net))
    left, right = draw(modules(net, depth - 1)), draw(modules(net, depth - 1))
    return draw(
        st.sampled_from([left | right, left & right, left - right, ~left, left.inside(right), left.maybe()])
    )


_STEPS: dict[str, Callable[[Selector, Selector], Selector]] = {
    "inside": lambda one, other: one.inside(other),
    "after": lambda one, other: one.after(other),
    "before": lambda one, other: one.before(other),
    "where": lambda one, other: one.where(is_called),
    "first": lambda one, other: one.first,
    "last": lambda one, other: one.last,
    "nth": lambda one, other: one.nth(0, -1),
    "one": lambda one, other: one.one(),
    "exactly": lambda one, other: one.exactly(2),
    "maybe": lambda one, other: one.maybe(),
    "innermost": lambda one, other: one.innermost(),
    "calls": lambda one, other: one.calls,
    "|": lambda one, other: one | other,
    "&": lambda one, other: one & other,
    "-": lambda one, other: one - other,
    "~": lambda one, other: ~one,
}


def operations_of(net: nn.Module) -> dict[str, str]:
    """Name the operations in the forwards of a net, by the qualified names of their nodes."""
    return {site.path: str(site.op) for site in op("*").on(net)}


@st.composite
def operations(draw: st.DrawFn, net: nn.Module) -> Selector:
    """Draw a selector of operations that matches the net."""
    present = operations_of(net)
    name = draw(st.sampled_from(sorted(present)))
    form = draw(st.integers(0, 3))
    if form == 0:
        return node(name)
    if form == 1:
        return op(FUNCTIONS.get(present[name], present[name]))
    return op(present[name] if form == 2 else f"{present[name][:1]}*")


def atoms(net: nn.Module) -> st.SearchStrategy[Selector]:
    """Draw a selector that is not made from others; it matches the net."""
    return st.one_of(module_atoms(net), operations(net))


@st.composite
def selectors(draw: st.DrawFn, net: nn.Module, depth: int = 3) -> Selector:
    """Draw any selector over the names that a net has; it may match nothing."""
    made = draw(atoms(net))
    for step in draw(st.lists(st.sampled_from(list(_STEPS)), max_size=depth)):
        made = _STEPS[step](made, draw(atoms(net)))
    return made


FORMS: dict[str, str] = {
    "path": r'at\("[^"*]*"\)', "glob": r'at\("[^"]*\*', "class": r"at\((nn|strategies)\.\w+(\.\w+)*\)",
    "classes": r"at\([^()]* \| ", "node": r"node\(", "operation by name": r'op\("', "operation by function": r"op\([^\"]",
    "predicate": r"(?<!\.)where\(", "where": r"\.where\(", "union": r"\) \| |\w \| ", "meet": " & ", "difference": " - ",
    "complement": "~", "inside": r"\.inside\(", "after": r"\.after\(", "before": r"\.before\(", "first": r"\.first\b",
    "last": r"\.last\b", "nth": r"\.nth\(", "one": r"\.one\(", "exactly": r"\.exactly\(", "maybe": r"\.maybe\(",
    "innermost": r"\.innermost\(", "calls": r"\.calls\b",
}  # fmt: skip
"""How each form of a selector is recognised in what it prints."""

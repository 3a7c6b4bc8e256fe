"""Targets: paths, patterns and classes, which selectors are made from."""

from __future__ import annotations

import types

import attrs
from torch import Tensor, nn

from torchgraft.errors import GraftError, OptionError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import find_heads
from torchgraft.graph.names import node_names, nodes_named
from torchgraft.paths import parent_of
from torchgraft.select.globs import matches
from torchgraft.select.query import Query
from torchgraft.select.selector import Selector, Target
from torchgraft.select.site import Site
from torchgraft.text import kind, literal, near, plural, shown, spelled


@attrs.frozen(repr=False)
class Path(Selector):
    """Point at exactly one module, or at a node by torchvision's naming."""

    path: str
    node_only: bool = False

    @property
    def single(self) -> bool:
        """A path means one module, so positions count its calls."""
        return True

    def answer(self, query: Query) -> list[Site]:
        """Return the module at the path, or the node of that name."""
        draft = query.draft
        if self.path and draft.has(self.path) and not self.node_only:
            return [Site(self.path, draft)]
        owner = parent_of(self.path)
        while owner and not draft.has(owner):
            owner = parent_of(owner)
        nodes = nodes_named(draft, owner, self.path)
        if nodes:
            return [Site(self.path, draft, owner, nodes)]
        if not query.strict:
            return []
        raise self._missing(query, owner)

    def _missing(self, query: Query, owner: str) -> TargetError:
        draft = query.draft
        modules = [name for name, _ in draft.modules() if name]
        last = self.path[len(owner) :].lstrip(".")
        if (owner or "." not in self.path) and isinstance(getattr(draft.get(owner), last, None), Tensor):
            return _is_tensor(self.path, f"{last} of {owner or 'the root'}", owner)
        close = near(self.path, [*([] if self.node_only else modules), *node_names(draft, owner)])
        if self.path in _HEADS and not any(path.endswith(f".{self.path}") for path in close):
            close = (*_heads(draft), *close)
        return TargetError(
            f"{literal(self.path)} is no {'' if self.node_only else 'module and no '}node of this model",
            wrong=self.path,
            found=plural(len(modules), "module") + f", no node of that name in {owner or 'the root'}",
            near=close,
        )

    def written(self) -> str:
        """Write the path alone."""
        return repr(self) if self.node_only else literal(self.path)

    def __repr__(self) -> str:
        return f"{'node' if self.node_only else 'at'}({literal(self.path)})"


@attrs.frozen(repr=False)
class Glob(Selector):
    """Point at modules by pattern: ``*`` is one level, ``**`` any depth, ``.`` a dot."""

    pattern: str

    def answer(self, query: Query) -> list[Site]:
        """Return the modules whose whole path matches."""
        parts = tuple(self.pattern.split("."))
        paths = [name for name, _ in query.draft.modules() if name]
        found = [Site(name, query.draft) for name in paths if matches(tuple(name.split(".")), parts)]
        if query.own and self.pattern == "**":
            return [Site("", query.draft, own=True), *found]
        if not found and query.strict:
            inner, last = parts[:-1], parts[-1]
            holders = [(n, m) for n, m in query.draft.modules() if matches(tuple(n.split(".")), inner)]
            holder = next((n for n, m in holders if isinstance(getattr(m, last, None), Tensor)), "")
            if holder:
                raise _is_tensor(self.pattern, f"{last} of {holder}", ".".join(inner))
            raise TargetError(
                f"{literal(self.pattern)} matches no module of this model",
                wrong=self.pattern,
                found=plural(len(paths), "module"),
                near=self._near(paths),
            )
        return found

    def _near(self, paths: list[str]) -> list[str]:
        """Return patterns that match and resemble this one, then paths that do."""
        close = near(self.pattern.replace("*", ""), paths)
        tails = [path.rstrip("0123456789") + "*" for path in close if self.pattern.endswith("*")]
        return [*dict.fromkeys(tail for tail in tails if tail.strip("*"))][:1] + list(close)

    def written(self) -> str:
        """Write the pattern alone."""
        return literal(self.pattern)

    def __repr__(self) -> str:
        return f"at({literal(self.pattern)})"


@attrs.frozen(repr=False)
class Instances(Selector):
    """Point at the modules of some classes."""

    classes: tuple[type[nn.Module], ...]

    def answer(self, query: Query) -> list[Site]:
        """Return the instances, a shared one once."""
        found = {
            id(module): Site(name, query.draft)
            for name, module in reversed(list(query.draft.modules()))
            if name and isinstance(module, self.classes)
        }
        if not found and query.strict:
            present = sorted({literal(type(m)) for name, m in query.draft.modules() if name})
            close = near(self._classes(), present)
            raise TargetError(
                f"this model has no {self._classes()}",
                found=plural(len(present), "class").replace("classs", "classes") + " of modules",
                near=close,
                swap=(self.written(), close[0]) if close else ("", ""),
            )
        return list(reversed(found.values()))

    def _classes(self) -> str:
        return " | ".join(literal(c) for c in self.classes)

    def written(self) -> str:
        """Write the classes alone."""
        return self._classes() if len(self.classes) == 1 else repr(self)

    def __repr__(self) -> str:
        return f"at({self._classes()})"


def parse(target: object) -> Selector:
    """Turn what users write into a selector.

    Args:
        target: a path, a glob, a module class, classes joined by ``|``, or a selector.

    Returns:
        The selector.

    Raises:
        OptionError: the target is none of these.
    """
    if isinstance(target, Selector):
        return target
    if isinstance(target, str) and target and all(target.split(".")):
        return Glob(target) if "*" in target else Path(target)
    if isinstance(target, type) and issubclass(target, nn.Module):
        return Instances((target,))
    if isinstance(target, types.UnionType):
        classes = target.__args__
        if all(isinstance(c, type) and issubclass(c, nn.Module) for c in classes):
            return Instances(tuple(classes))
    raise OptionError(
        "a target is a path, a glob, a module class or a selector",
        asked=shown(target),
        found=kind(target),
        write=_target(target),
    )


def _target(value: object) -> str:
    """Write the target that was most likely meant."""
    if isinstance(value, (tuple, list)) and len(value) > 1:
        return " | ".join([f"at({shown(value[0])})", *map(shown, value[1:])])
    if isinstance(value, (tuple, list)) and value:
        return shown(value[0])
    if isinstance(value, str) and value.strip("./"):
        return literal(".".join(part for part in value.replace("/", ".").split(".") if part))
    return "<target>"


_HEADS = frozenset(("head", "heads", "classifier", "fc", "logits"))
"""What heads are called; one that is called otherwise is found by structure."""


def _heads(draft: Draft) -> list[str]:
    """Return the paths of the heads of a model; none where they cannot be told."""
    try:
        return [found.path for found in find_heads(draft)]
    except GraftError:
        return []


def _is_tensor(said: str, found: str, holder: str) -> TargetError:
    return TargetError(
        f"{literal(said)} is a tensor of a module, and targets are modules or operations",
        wrong=said,
        found=found,
        near=[holder] if holder else [],
    )


@spelled
def at(target: Target) -> Selector:
    """Make a selector from a target, to join it with others or to see what it finds.

    Args:
        target: a path, a glob, a module class, classes joined by ``|``, or a selector.

    Returns:
        The selector.

    Raises:
        OptionError: the target is none of these.

    Example:
        >>> at("layer3") | "layer4"
        at("layer3") | "layer4"
        >>> (at(nn.Conv2d) - "layer4").first
        (at(nn.Conv2d) - "layer4").first
    """
    return parse(target)

"""Selectors: frozen questions that a draft answers with sites."""

from __future__ import annotations

import types
from collections.abc import Sequence

import attrs
from torch import Tensor, nn

from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.names import Node, node_names, nodes_named
from torchgraft.text import kind, literal, near, plural, spelled


@attrs.frozen(eq=False)
class Site:
    """One place that a selector found.

    Args:
        path: path of a module, or qualified name of a node.
        owner: for a node, path of the level it stands in; ``None`` for a module.
        nodes: for a node, the node in each graph of its level.
    """

    path: str
    owner: str | None = None
    nodes: tuple[Node, ...] = ()

    @property
    def is_module(self) -> bool:
        """Tell whether the site is a module with all its call sites."""
        return self.owner is None

    @property
    def short(self) -> str:
        """The last part of a node's name, as part of another name."""
        return self.path[len(self.owner or "") :].lstrip(".").replace(".", "_")


@attrs.frozen(repr=False)
class Selector:
    """Say which modules or nodes of a model are meant; a value that is equal by content."""

    def find(self, draft: Draft) -> list[Site]:
        """Return the sites in a draft.

        Raises:
            TargetError: nothing matches.
        """
        raise NotImplementedError(type(self).__name__)

    def covers_root(self) -> bool:
        """Tell whether the whole model is meant, with what hangs on its root."""
        return False

    def written(self) -> str:
        """Write the selector as an argument: without ``at`` where what it is made from will do."""
        return repr(self)

    def __or__(self, other: object) -> Selector:
        return union(self, parse(other))

    def __ror__(self, other: object) -> Selector:
        return union(parse(other), self)

    def __bool__(self) -> bool:
        raise OptionError(
            "a selector has no truth value", asked=f"bool({self!r})", write=f"{self!r} | other, not `or`"
        )


Target = Selector | str | type | types.UnionType


@attrs.frozen(repr=False)
class Path(Selector):
    """Point at exactly one module, or at a node by torchvision's naming."""

    path: str

    def find(self, draft: Draft) -> list[Site]:
        """Return the module at the path, or the node of that name."""
        if self.path and draft.has(self.path):
            return [Site(self.path)]
        owner = self.path.rpartition(".")[0]
        while owner and not draft.has(owner):
            owner = owner.rpartition(".")[0]
        nodes = nodes_named(draft, owner, self.path)
        if nodes:
            return [Site(self.path, owner, nodes)]
        modules = [name for name, _ in draft.modules() if name]
        close = near(self.path, [*modules, *node_names(draft, owner)])
        if owner or "." not in self.path:
            last = self.path[len(owner) :].lstrip(".")
            if isinstance(getattr(draft.get(owner), last, None), Tensor):
                raise TargetError(
                    f"{literal(self.path)} is a tensor of a module, and targets are modules or operations",
                    wrong=self.path,
                    found=f"{last} of {owner or 'the root'}",
                    near=[owner] if owner else [],
                )
        raise TargetError(
            f"{literal(self.path)} is no module and no node of this model",
            wrong=self.path,
            found=plural(len(modules), "module") + (f", no node of that name in {owner or 'the root'}"),
            near=close,
        )

    def written(self) -> str:
        """Write the path alone."""
        return literal(self.path)

    def __repr__(self) -> str:
        return f"at({literal(self.path)})"


@attrs.frozen(repr=False)
class Glob(Selector):
    """Point at modules by pattern: ``*`` is one level, ``**`` any depth, ``.`` a dot."""

    pattern: str

    def find(self, draft: Draft) -> list[Site]:
        """Return the modules whose whole path matches."""
        parts = tuple(self.pattern.split("."))
        paths = [name for name, _ in draft.modules() if name]
        found = [Site(name) for name in paths if _matches(tuple(name.split(".")), parts)]
        if not found:
            raise TargetError(
                f"{literal(self.pattern)} matches no module of this model",
                wrong=self.pattern,
                found=plural(len(paths), "module"),
                near=near(self.pattern.replace("*", ""), paths),
            )
        return found

    def covers_root(self) -> bool:
        """Tell whether the pattern is that of everything at any depth."""
        return self.pattern == "**"

    def written(self) -> str:
        """Write the pattern alone."""
        return literal(self.pattern)

    def __repr__(self) -> str:
        return f"at({literal(self.pattern)})"


@attrs.frozen(repr=False)
class Instances(Selector):
    """Point at the modules of some classes."""

    classes: tuple[type[nn.Module], ...]

    def find(self, draft: Draft) -> list[Site]:
        """Return the instances in the order of registration, a shared one once."""
        found = {
            id(module): Site(name)
            for name, module in reversed(list(draft.modules()))
            if name and isinstance(module, self.classes)
        }
        if not found:
            present = sorted({literal(type(m)) for name, m in draft.modules() if name})
            raise TargetError(
                f"this model has no {self._classes()}",
                found=plural(len(present), "class").replace("classs", "classes") + " of modules",
                near=near(self._classes(), present),
            )
        return list(reversed(found.values()))

    def _classes(self) -> str:
        return " | ".join(literal(c) for c in self.classes)

    def written(self) -> str:
        """Write the classes alone."""
        return self._classes()

    def __repr__(self) -> str:
        return f"at({self._classes()})"


@attrs.frozen(repr=False)
class Union(Selector):
    """Point at what any of several selectors points at; each of them must match."""

    parts: tuple[Selector, ...]

    def find(self, draft: Draft) -> list[Site]:
        """Return the sites of the parts, each site once."""
        return list({site.path: site for part in self.parts for site in part.find(draft)}.values())

    def covers_root(self) -> bool:
        """Tell whether one of the parts means the whole model."""
        return any(part.covers_root() for part in self.parts)

    def __repr__(self) -> str:
        first, *others = self.parts
        return " | ".join([repr(first), *(part.written() for part in others)])


def union(*parts: Selector) -> Selector:
    """Join selectors; unions are flattened, so joining is associative."""
    flat: list[Selector] = []
    for part in parts:
        flat += part.parts if isinstance(part, Union) else [part]
    return Union(tuple(flat))


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
        asked=literal(target),
        found=kind(target),
        write='"layer4", "layer4.*", nn.Conv2d or at("layer3") | "layer4"',
    )


@spelled
def at(target: Target) -> Selector:
    """Make a selector from a target, to join it with others.

    Args:
        target: a path, a glob, a module class, classes joined by ``|``, or a selector.

    Returns:
        The selector.

    Raises:
        OptionError: the target is none of these.

    Example:
        >>> at("layer3") | "layer4"
        at("layer3") | "layer4"
    """
    return parse(target)


def outermost(sites: Sequence[Site]) -> list[Site]:
    """Drop the sites that stand inside another one of them."""
    paths = {site.path for site in sites}

    def inside(path: str) -> bool:
        while path := path.rpartition(".")[0]:
            if path in paths:
                return True
        return False

    return [site for site in sites if not inside(site.path)]


def _matches(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not name
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return any(_matches(name[i:], rest) for i in range(len(name) + 1))
    return bool(name) and _fits(name[0], head) and _matches(name[1:], rest)


def _fits(word: str, pattern: str) -> bool:
    """Match one level: ``*`` stands for any characters, everything else for itself."""
    first, *others = pattern.split("*")
    if not others:
        return word == pattern
    last = others.pop()
    if not (word.startswith(first) and word.endswith(last) and len(word) >= len(first) + len(last)):
        return False
    middle = word[len(first) : len(word) - len(last)]
    for piece in others:
        position = middle.find(piece)
        if position < 0:
            return False
        middle = middle[position + len(piece) :]
    return True

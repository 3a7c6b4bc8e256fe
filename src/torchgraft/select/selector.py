"""Selectors: frozen questions that a draft answers with sites, and their algebra."""

from __future__ import annotations

import types
from collections.abc import Callable

import attrs
from torch import nn

from torchgraft.calls import tell
from torchgraft.errors import GraftError, OptionError, TargetError
from torchgraft.graph.checks import check_model
from torchgraft.graph.draft import Draft
from torchgraft.graph.probe import Example
from torchgraft.select import steps
from torchgraft.select.query import Query
from torchgraft.select.region import Region, children, within, without
from torchgraft.select.selection import Selection
from torchgraft.select.site import Site
from torchgraft.text import literal

# How tightly Python binds what a selector is written with.
_OR, _AND, _MINUS, _NOT, _ATOM = range(5)


@attrs.frozen(repr=False)
class Selector:
    """Say which modules or operations of a model are meant; a value that is equal by content.

    Selectors are joined by ``|``, met by ``&``, taken away by ``-`` and turned round by ``~``.
    A selection covers what stands inside its sites: ``at(nn.Conv2d) - "layer4"`` are the
    convolutions outside of ``layer4``, ``at(nn.Conv2d) & "layer4"`` those in it, and
    ``~at("layer4")`` is the rest of the model in its largest parts.
    """

    @property
    def binding(self) -> int:
        """How tightly Python binds the way it is written."""
        return _ATOM

    @property
    def single(self) -> bool:
        """Whether it means one module by its name, so that positions count its calls."""
        return False

    def answer(self, query: Query) -> list[Site]:
        """Return the sites, in the order of registration.

        Raises:
            TargetError: nothing matches, and the query is strict.
        """
        raise NotImplementedError(type(self).__name__)

    def find(self, draft: Draft, *, own: bool = False) -> list[Site]:
        """Return the sites in a draft.

        Args:
            draft: the model under edit.
            own: also return what hangs directly on a module of which parts were taken away.

        Raises:
            TargetError: nothing matches.
        """
        return self.answer(Query(draft, own=own))

    def on(self, model: nn.Module, *, example: Example | None = None) -> Selection:
        """Return what it finds in a model, in the order of execution.

        Args:
            model: the model; it is only read.
            example: an input, for models whose input cannot be guessed.

        Returns:
            The selection: print it, count it, iterate over its sites.

        Raises:
            TargetError: nothing matches.
        """
        check_model(model)
        query = Query(Draft(model, example))
        try:
            sites = self.answer(query)
            unknown = query.order.unknown if len(sites) > 1 else None
            sites = query.ordered(sites) if len(sites) > 1 else sites
        except GraftError as error:
            tell(error, repr(self))
            raise
        return Selection(repr(self), tuple(sites), query.draft, unknown)

    def __or__(self, other: object) -> Selector:
        return union(self, _parsed(other))

    def __ror__(self, other: object) -> Selector:
        return union(_parsed(other), self)

    def __and__(self, other: object) -> Selector:
        return Binary(self, _parsed(other), "&")

    def __rand__(self, other: object) -> Selector:
        return Binary(_parsed(other), self, "&")

    def __sub__(self, other: object) -> Selector:
        return Binary(self, _parsed(other), "-")

    def __rsub__(self, other: object) -> Selector:
        return Binary(_parsed(other), self, "-")

    def __invert__(self) -> Selector:
        return Complement(self)

    def __bool__(self) -> bool:
        raise OptionError(
            "a selector has no truth value",
            asked=f"bool({self!r})",
            found="Python asks for one at `and`, `or`, `not`",
            write=f"{self._in(_AND)} & <other>, or {self!r} | <other>, or ~{self._in(_NOT)}",
        )

    def inside(self, other: Target) -> Selector:
        """Keep what stands inside another selection, and only look there."""
        return Derived(self, steps.Inside(_parsed(other)))

    def after(self, other: Target) -> Selector:
        """Keep what runs when the last of another selection has run."""
        return Derived(self, steps.After(_parsed(other)))

    def before(self, other: Target) -> Selector:
        """Keep what has run when the first of another selection runs."""
        return Derived(self, steps.Before(_parsed(other)))

    def where(self, predicate: Callable[[Site], bool]) -> Selector:
        """Keep the sites for which a function is true."""
        return Derived(self, steps.Where(predicate))

    @property
    def calls(self) -> Selector:
        """The places where the modules are called, each as an operation of its level."""
        return Derived(self, steps.Calls())

    @property
    def first(self) -> Selector:
        """The first in the order of execution; of one path its first call."""
        return Derived(self, steps.Nth((0,), "first"))

    @property
    def last(self) -> Selector:
        """The last in the order of execution; of one path its last call."""
        return Derived(self, steps.Nth((-1,), "last"))

    def nth(self, *positions: int) -> Selector:
        """Pick by position in the order of execution, from 0; of one path its calls."""
        return Derived(self, steps.Nth(steps.positions(positions)))

    def one(self) -> Selector:
        """Ask for exactly one match."""
        return Derived(self, steps.Exactly(1, "one()"))

    def exactly(self, count: int) -> Selector:
        """Ask for a number of matches."""
        return Derived(self, steps.Exactly(steps.check_count(count)))

    def maybe(self) -> Selector:
        """Let it match nothing."""
        return Derived(self, steps.Maybe())

    def innermost(self) -> Selector:
        """Where matches stand inside each other, keep the inner ones instead of the outer ones."""
        return Derived(self, steps.Innermost())

    def written(self) -> str:
        """Write the selector as an argument: without ``at`` where what it is made from will do."""
        return repr(self)

    def _checked(self, query: Query, found: list[Site], summary: str) -> list[Site]:
        """Return the sites, which are to be some."""
        return query.require(found, summary, self.written(), self._in(_ATOM))

    def _in(self, binding: int) -> str:
        return repr(self) if self.binding >= binding else f"({self!r})"

    def _right_of(self, binding: int) -> str:
        return self.written() if self.binding > binding else f"({self!r})"


Target = Selector | str | type | types.UnionType


@attrs.frozen(repr=False)
class Derived(Selector):
    """What is left of a selection after a step."""

    source: Selector
    step: steps.Step

    def answer(self, query: Query) -> list[Site]:
        """Take the step."""
        found = self.step.take(query, self.source)
        if isinstance(self.step, (steps.Maybe, steps.Exactly)):
            return found  # they say themselves how few may be left
        return self._checked(query, found, f"nothing is left of {self!r}")

    def __repr__(self) -> str:
        return f"{self.source._in(_ATOM)}.{self.step.written()}"


@attrs.frozen(repr=False)
class Union(Selector):
    """What any of several selectors points at; each of them must match."""

    parts: tuple[Selector, ...]

    @property
    def binding(self) -> int:
        """How tightly ``|`` binds."""
        return _OR

    def answer(self, query: Query) -> list[Site]:
        """Return the sites of the parts, each site once."""
        return query.once(site for part in self.parts for site in part.answer(query))

    def __repr__(self) -> str:
        first, *others = self.parts
        return " | ".join([first._in(_OR), *(part._right_of(_OR) for part in others)])


@attrs.frozen(repr=False)
class Binary(Selector):
    """What two selections have in common, or what one has beyond the other."""

    left: Selector
    right: Selector
    sign: str

    @property
    def binding(self) -> int:
        """How tightly the sign binds."""
        return _AND if self.sign == "&" else _MINUS

    def answer(self, query: Query) -> list[Site]:
        """Meet or take away, by what the sites cover."""
        left, right = self.left.answer(query), self.right.answer(attrs.evolve(query, own=False))
        if self.sign == "-":
            found = query.once(without(left, Region(right), own=query.own))
        else:
            operations = [site for site in right if not site.is_module and Region(left).covers(site)]
            found = query.once([*within(left, Region(right)), *operations])
        return self._checked(query, found, f"nothing is left of {self!r}")

    def __repr__(self) -> str:
        return f"{self.left._in(self.binding)} {self.sign} {self.right._right_of(self.binding)}"


@attrs.frozen(repr=False)
class Complement(Selector):
    """The rest of the model, in its largest parts."""

    part: Selector

    @property
    def binding(self) -> int:
        """How tightly ``~`` binds."""
        return _NOT

    def answer(self, query: Query) -> list[Site]:
        """Break the model up around what is left out."""
        out = self.part.answer(attrs.evolve(query, own=False))
        operation = next((site for site in out if not site.is_module), None)
        if operation is not None:
            raise TargetError(
                f"~ is of modules, and {literal(operation.path)} is an operation",
                found=repr(self),
                swap=(repr(self), f'op("*") - {self.part._right_of(_MINUS)}'),
            )
        root = [Site("", query.draft, own=True)] if query.own else []
        found = without([*root, *children(query.draft, "")], Region(out), own=query.own)
        return self._checked(query, found, f"{self!r} leaves nothing of the model")

    def __repr__(self) -> str:
        return f"~{self.part._in(_NOT)}"


def union(*parts: Selector) -> Selector:
    """Join selectors; unions are flattened, so joining is associative."""
    flat: list[Selector] = []
    for part in parts:
        flat += part.parts if isinstance(part, Union) else [part]
    return Union(tuple(flat))


def _parsed(target: object) -> Selector:
    from torchgraft.select.targets import parse  # noqa: PLC0415 - targets are selectors themselves

    return parse(target)

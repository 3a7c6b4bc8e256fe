"""Steps that narrow a selection: relations, positions, counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from torchgraft.errors import GraftError, OptionError, TargetError
from torchgraft.graph.nodes import Node, name_of
from torchgraft.graph.order import NEVER
from torchgraft.select.query import Query
from torchgraft.select.region import Region, innermost
from torchgraft.select.site import Site
from torchgraft.text import function_name, kind, literal, near, plural, some


class Answers(Protocol):
    """A selector, as a step knows it."""

    @property
    def single(self) -> bool:
        """Whether it means one module by its name."""

    def answer(self, query: Query) -> list[Site]:
        """Return the sites."""

    def written(self) -> str:
        """Write it as an argument."""


class Step(Protocol):
    """Turn what a selector finds into less."""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Return the sites that are left."""

    def written(self) -> str:
        """Write the step as it follows a dot."""


@attrs.frozen
class Inside:
    """Keep what stands inside other sites."""

    other: Answers

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Look under the other sites alone."""
        around = self.other.answer(attrs.evolve(query, own=False))
        scope = tuple(p for s in around if s.is_module for p in query.draft.names(query.draft.get(s.path)))
        region, same = Region(around), {site.path for site in around if site.is_module}
        found = source.answer(attrs.evolve(query, scope=scope, strict=False))
        return [site for site in found if region.covers(site) and site.path not in same]

    def written(self) -> str:
        """Write the relation."""
        return f"inside({self.other.written()})"


@attrs.frozen
class After:
    """Keep what runs when the others have run."""

    other: Answers

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Compare the moments of a run."""
        end = max(_ran(query, self.other, self.written()), key=lambda span: span[1])[1]
        sites = [(site, query.span(site)[0]) for site in source.answer(query)]
        return [site for site, start in sites if end <= start != NEVER]

    def written(self) -> str:
        """Write the relation."""
        return f"after({self.other.written()})"


@attrs.frozen
class Before:
    """Keep what has run when the others run."""

    other: Answers

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Compare the moments of a run."""
        start = min(_ran(query, self.other, self.written()), key=lambda span: span[0])[0]
        return [site for site in source.answer(query) if query.span(site)[1] <= start]

    def written(self) -> str:
        """Write the relation."""
        return f"before({self.other.written()})"


@attrs.frozen
class Where:
    """Keep the sites for which a function is true."""

    predicate: Callable[[Site], bool]

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Ask the function about each site."""
        return [site for site in source.answer(query) if holds(self.predicate, site)]

    def written(self) -> str:
        """Write the filter."""
        return f"where({function_name(self.predicate)})"


@attrs.frozen
class Calls:
    """Take the places where modules are called."""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Return a site for each call."""
        return query.once(call for site in source.answer(query) for call in calls_of(query, site))

    def written(self) -> str:
        """Write the step."""
        return "calls"


@attrs.frozen
class Nth:
    """Pick by position in the order of execution; what never runs has none."""

    positions: tuple[int, ...]
    word: str = ""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Sort, and pick.

        Raises:
            AnalysisError: the order cannot be told, as the model does not run on meta tensors.
            TargetError: there are not as many.
        """
        sites = source.answer(query)
        if source.single and sites and sites[0].is_module:
            called = calls_of(query, sites[0])
            sites = called if len(called) > 1 else sites
        if len(sites) > 1:
            if query.order.unknown is not None:
                raise query.order.unknown
            sites = query.ordered(site for site in sites if query.span(site)[0] != NEVER)
        if not sites:
            return []
        wrong = [p for p in self.positions if not -len(sites) <= p < len(sites)]
        if wrong:
            raise TargetError(
                f"there is no match number {wrong[0]} of {source.written()}",
                found=plural(len(sites), "match").replace("matchs", "matches"),
                swap=(f".{self.written()}", ".last"),
            )
        return query.once(sites[p] for p in self.positions)

    def written(self) -> str:
        """Write the positions."""
        return self.word or f"nth({', '.join(map(str, self.positions))})"


@attrs.frozen
class Exactly:
    """Ask for a number of matches."""

    count: int
    word: str = ""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Count.

        Raises:
            TargetError: there are more or fewer.
        """
        sites = source.answer(attrs.evolve(query, strict=query.strict and self.count > 0))
        if len(sites) != self.count:
            raise TargetError(
                f"{source.written()} matches {len(sites)} times, not {self.count}",
                found=some([site.path for site in sites]),
                near=[site.path for site in sites],
                swap=(f".{self.written()}", ".first" if self.count == 1 else f".exactly({len(sites)})"),
            )
        return sites

    def written(self) -> str:
        """Write the count."""
        return self.word or f"exactly({self.count})"


@attrs.frozen
class Maybe:
    """Let it match nothing."""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Ask without insisting."""
        return source.answer(attrs.evolve(query, strict=False))

    def written(self) -> str:
        """Write the step."""
        return "maybe()"


@attrs.frozen
class Innermost:
    """Keep the inner ones of sites that stand inside each other."""

    def take(self, query: Query, source: Answers) -> list[Site]:
        """Drop the sites that hold another one."""
        return innermost(source.answer(query))

    def written(self) -> str:
        """Write the step."""
        return "innermost()"


def calls_of(query: Query, site: Site) -> list[Site]:
    """Return a site for each place where a module is called; an operation is its own."""
    if not site.is_module:
        return [site]
    found: dict[tuple[str, str], list[Node]] = {}
    for call in query.draft.calls(site.path):
        found.setdefault((call.owner, name_of(call.node, call.owner)), []).append(call.node)
    return [Site(name, query.draft, owner, tuple(nodes)) for (owner, name), nodes in found.items()]


def holds(predicate: Callable[[Site], bool], site: Site) -> bool:
    """Ask a function of the user about a site.

    Raises:
        OptionError: it raises, or does not answer yes or no.
    """
    try:
        answer = predicate(site)
    except GraftError:
        raise
    except Exception as error:
        raise OptionError(
            f"the function given to where fails on {site!r}",
            found=f"{type(error).__name__}: {error}",
            write='where(lambda site: site.path.endswith("conv2"))',
        ) from error
    if not isinstance(answer, bool):
        raise OptionError(
            f"the function given to where must answer True or False, and on {site!r} it does not",
            found=kind(answer),
            write=f"where(lambda site: bool(({function_name(predicate)})(site)))",
        )
    return answer


def positions(given: tuple[object, ...]) -> tuple[int, ...]:
    """Check positions.

    Raises:
        OptionError: there are none, or they are no whole numbers.
    """
    if not given or any(isinstance(p, bool) or not isinstance(p, int) for p in given):
        shown = ", ".join(map(literal, given))
        raise OptionError("positions are whole numbers", asked=f"nth({shown})", write="nth(0), nth(0, -1)")
    return tuple(p for p in given if isinstance(p, int))


def check_count(count: object) -> int:
    """Check a count.

    Raises:
        OptionError: it is no whole number, or negative.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise OptionError("a count is a whole number", asked=f"exactly({literal(count)})", write="exactly(1)")
    return count


def _ran(query: Query, other: Answers, asked: str) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    """Return when sites run.

    Raises:
        AnalysisError: the model does not run on meta tensors.
        TargetError: they never run.
    """
    if query.order.unknown is not None:
        raise query.order.unknown
    sites = other.answer(attrs.evolve(query, own=False))
    spans = [span for span in map(query.span, sites) if span[0] != NEVER]
    if not spans:
        names = [site.path for site in sites]
        raise TargetError(
            f"{asked} cannot be told, as {', '.join(names[:3]) or 'nothing'} never runs",
            found=plural(len(sites), "site"),
            near=near(names[0], names[1:]) if names else (),
            write="a target that is called",
        )
    return spans

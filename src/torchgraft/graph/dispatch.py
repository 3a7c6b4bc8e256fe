"""Generated code of levels, and the choice of the one that holds for a call."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import attrs
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchgraft.errors import SpecialisedError
from torchgraft.graph.arguments import spell_keywords
from torchgraft.graph.modes import enter, unwinding
from torchgraft.graph.pattern import Check, Parameters, Pattern, bind_arguments, checks_hold, parameters_of
from torchgraft.graph.proxy import tensors_in
from torchgraft.graph.settings import ADDED, spaces_of
from torchgraft.graph.watched import is_shadow

Forward = Callable[..., object]


@attrs.frozen(eq=False)
class Way:
    """The generated code of one pattern, and what its graphs check of their arguments."""

    pattern: Pattern
    parameters: Parameters
    evaluate: Forward
    train: Forward
    checks: tuple[Check, ...]
    train_checks: tuple[Check, ...]

    @classmethod
    def of(cls, pattern: Pattern) -> Way:
        """Generate the code of a pattern."""
        evaluate = generate_forward(pattern.evaluate)
        train = evaluate if pattern.train is pattern.evaluate else generate_forward(pattern.train)
        checks = pattern.checks(pattern.evaluate), pattern.checks(pattern.train)
        return cls(pattern, parameters_of(pattern.evaluate), evaluate, train, *checks)

    def forward(self, level: nn.Module) -> Forward:
        """Return the code for the mode of a level."""
        return self.train if level.training else self.evaluate

    def fits(
        self, level: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], *, sizes: bool = True
    ) -> bool:
        """Return True if it holds for a call of a level, by default for the sizes in it too."""
        checks = self.train_checks if level.training else self.checks
        if checks and not checks_hold(checks, bind_arguments(self.parameters, args, kwargs)):
            return False
        # In a run that is only looked at, what is guarded raises as it comes.
        sizes = sizes and self.pattern.sized and not is_shadow(level)
        return self.pattern.holds_for_state(level) and (
            not sizes or self.pattern.holds_for_sizes(level, args, kwargs)
        )


def generate_forward(graph: fx.Graph) -> Forward:
    """Generate the code of a graph as a function of the level and the arguments."""
    cls = type("Generated", (fx.GraphModule,), {})
    holder: fx.GraphModule = object.__new__(cls)
    spell_keywords(graph)
    vars(holder).update(_graph=graph, _modules={})
    holder.recompile()
    forward = cast("Forward", vars(cls)["forward"])
    return unwinding(forward) if any(node.target is enter for node in graph.nodes) else forward


def choose_by_pattern(ways: tuple[Way, ...], another: Callable[..., Forward]) -> Forward:
    """Make a forward that runs the code which holds for a call.

    Args:
        ways: the code of each pattern.
        another: gives the code for a call that none of them holds for.
    """

    @functools.wraps(ways[0].evaluate)
    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202 - the signature is that of the module
        for way in ways:
            if way.fits(self, args, kwargs):
                return way.forward(self)(self, *args, **kwargs)
        return another(self, args, kwargs)(self, *args, **kwargs)

    return forward


def methods_with_entries(origin: type[nn.Module]) -> Iterator[tuple[str, Forward]]:
    """Yield the methods of a class that may compute something with the children of a level."""
    seen = {"forward", *dir(nn.Module), *dir(fx.GraphModule)}
    for base in origin.__mro__:
        for name, function in vars(base).items():
            if name not in seen and inspect.isfunction(function) and not name.startswith("__"):
                yield name, function
            seen.add(name)


def names_in_forward(origin: type[nn.Module]) -> set[str]:
    """Return the names that a forward uses, and the methods and functions that it names."""
    return {name for _, names in spaces_of(origin, "forward") for name in names}


def refuse_children(function: Forward, error: Exception) -> Forward:
    """Make a method raise an error as soon as it calls a child of its level."""

    def watched(self: nn.Module, *args: object, **kwargs: object) -> object:
        children = {id(part) for part in self.modules()} - {id(self)}
        with _called_from(dict.fromkeys(children, (self, error))):  # its forward has the edits
            return function(self, *args, **kwargs)

    return watched


@contextlib.contextmanager
def _called_from(callers: Mapping[int, tuple[nn.Module, Exception]]) -> Iterator[None]:
    """Raise an error where this thread calls a module, by its identity, outside of a call of another."""
    thread, running = threading.get_ident(), Counter[int]()
    inside = {id(caller) for caller, _ in callers.values()}

    def enter(module: nn.Module, _: object) -> None:
        if threading.get_ident() != thread:
            return
        caller, error = callers.get(id(module), (None, None))
        if error is not None and not running[id(caller)]:
            raise error
        running[id(module)] += id(module) in inside

    def leave(module: nn.Module, *_: object) -> None:
        if threading.get_ident() == thread:
            running[id(module)] -= id(module) in inside

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch_grown(function: Forward, grown: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]]) -> Forward:
    """Make a method raise where it goes through the children of a level that got a new one.

    Args:
        function: the method.
        grown: gives the levels below a module with children that edits added, by path.
    """

    @functools.wraps(function)
    def watched(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202 - the signature is that of the method
        callers = {
            id(child): (level, _goes_through(function.__name__, path, level))
            for path, level in grown(self)
            for child in level.children()
        }
        with _called_from(callers) if callers else contextlib.nullcontext():
            return function(self, *args, **kwargs)

    return watched


def _goes_through(method: str, path: str, level: nn.Module) -> SpecialisedError:
    name = min(vars(level)[ADDED])
    return SpecialisedError(
        f"{method}(...) goes through the children of {path!r} one by one, where an edit put {name!r}",
        found=f"{path}.{name} is no child that it knows of",
        write="wrap(<a child that has children>, <the block>), which puts it inside of that",
    )


def make_entry(function: Forward, choose: Callable[..., Forward | None]) -> Forward:
    """Make a method that runs the edited graph of what it computes, where there is one.

    Args:
        function: the method of the class.
        choose: gives the code for a call; ``None`` where it calls no child of the level.
    """

    @functools.wraps(function)
    def entry(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202 - the signature is that of the method
        chosen = None
        if not is_shadow(self) and tensors_in([*args, *kwargs.values()]):
            chosen = choose(self, args, kwargs)
        return (function if chosen is None else chosen)(self, *args, **kwargs)

    return entry

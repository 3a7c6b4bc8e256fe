"""Follow a forward outside of any edit: when its graph is asked for, or called in another way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import fx, nn

from torchgraft.errors import SpecialisedError, TraceError
from torchgraft.graph.hooking import run_quietly
from torchgraft.graph.inputs import hints_of
from torchgraft.graph.pattern import Pattern, bind_arguments, checks_hold, parameters_of
from torchgraft.graph.probe import Arguments, Example, arguments_of
from torchgraft.graph.proxy import holds_proxy, to_meta
from torchgraft.graph.rewrites import MissingAnchorError, Rewrite
from torchgraft.graph.runs import Runs, gives_tensors
from torchgraft.graph.settings import ADDED, MISSING, read_setting, settings_hold
from torchgraft.graph.trace import Traced, trace_level
from torchgraft.paths import join_path
from torchgraft.text import kind, literal

EXAMPLE = "_torchgraft_example"
LEVEL = "_torchgraft_level"
"""Attribute of a level with what it knows of its graphs."""
Rewrites = Sequence[tuple[Rewrite, frozenset[bool]]]


def follow_alone(module: nn.Module) -> Pattern:
    """Follow the forward of a model for the arguments of its example, or those it cannot do without.

    Raises:
        TraceError: the forward cannot be followed.
    """
    example = cast("Example | None", vars(module).get(EXAMPLE))
    runs = Runs(lambda: module, example)
    given = arguments_of(example) if example is not None else ((), {})
    hints = hints_of(own_forward(module), *given)
    given_in = functools.partial(runs.arguments, module)
    traced = trace_level(module, "", given_in, hints, None, runs.gives_none)
    vars(module).update(traced.constants)
    return Pattern.of(traced)


def follow_again(
    level: nn.Module,
    first: Pattern,
    rewrites: Rewrites,
    fixed: str,
    given: Arguments | None,
    *,
    method: str = "forward",
    check: Callable[[nn.Module, Traced, Arguments, str], None] | None = None,
) -> tuple[Pattern, bool]:
    """Follow the forward of an edited level for another way of calling it, and edit the graph again.

    Args:
        level: the level; no module is made, and no random number drawn.
        first: the graphs that were edited first.
        rewrites: what was done to them.
        fixed: why that cannot be done again, if so.
        given: the arguments of the call; ``None`` for those that can be left out.
        method: another method to follow; edits that have no place in it are left out.
        check: compares the graphs, before the edits, with the method on the arguments of the call.

    Returns:
        The pattern, and whether an edit shows in it.

    Raises:
        SpecialisedError: an edit has no place in the forward for these arguments.
        TraceError: the forward cannot be followed for them.
    """
    name, is_forward = type(level).__name__, method == "forward"
    said = _difference(level, first, given) if is_forward else f"{method}(...)"
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or (given and holds_proxy(given))
    ):
        raise SpecialisedError(
            f"{name} was edited for another way of calling it, and is not followed again inside a compiler "
            "or a tracer",
            found=said,
            write="torch.fx.symbolic_trace(model, concrete_args={<its optional arguments>: None})"
            if given is not None and holds_proxy(given)
            else "model(<these arguments>) once before",
        )
    if fixed and is_forward:
        raise _fixed(name, fixed, said)
    origin = cast("type[nn.Module]", vars(type(level))["_origin"])
    meta = None if given is None else cast("Arguments", to_meta(given))
    function = own_forward(level) if is_forward else getattr(origin, method)
    hints = hints_of(function if is_forward else function.__get__(level), *(meta or ((), {})))
    with torch.inference_mode(mode=False), torch.random.fork_rng(devices=[]):
        try:
            traced = run_quietly(
                trace_level,
                level,
                "",
                lambda _: meta,
                hints,
                hidden_in(level),
                lambda child: not gives_tensors(child),
                method,
            )
            if check is not None and given is not None:
                run_quietly(check, level, traced, given, method)
        except TraceError as error:
            error.summary = error.summary.replace("the root ", "")  # which may stand anywhere
            error.found = f"{error.found}; {said}"
            error.write = "the call that it was edited for; or the edit inside of a module that it calls"
            raise
    pattern = Pattern.of(traced)
    if not is_forward:
        calls = any(node.op == "call_module" for graph in pattern.graphs for node in graph.nodes)
        if fixed and calls:
            raise _fixed(name, fixed, said)
    shown = False
    for rewrite, modes in rewrites:
        if not is_forward and rewrite.at.kind == "output":
            continue  # what another method returns is not what the level returns
        for graph in {id(g): g for g in (pattern.graph(training=mode) for mode in modes)}.values():
            try:
                rewrite.apply(graph)
                shown = True
            except MissingAnchorError as error:
                if is_forward:
                    raise SpecialisedError(
                        f"an edit has no place in the forward of {name} for this way of calling it",
                        found=f"{error} is not there, or not once; {said}",
                        write="the edit with example=<arguments of this call>, or the call it was made for",
                    ) from error
    vars(level).update(traced.constants)
    for graph in pattern.graphs:
        graph.owning_module = cast("fx.GraphModule", level)
    return pattern, shown


def _fixed(name: str, fixed: str, said: str) -> SpecialisedError:
    return SpecialisedError(
        f"{name} was edited for another way of calling it, and {fixed}",
        found=said,
        write="the call that it was edited for; or example=<arguments of this call> at the edit",
    )


def own_forward(module: nn.Module) -> Callable[..., object]:
    """Return the forward that a module had before it became a level whose graph runs."""
    own = vars(module).get("forward") or getattr(type(module), "_origin", type(module)).forward.__get__(
        module
    )
    return cast("Callable[..., object]", own)


def hidden_in(level: nn.Module) -> dict[str, frozenset[str]]:
    """Name the children that edits added below a level, by the path of their parent."""
    return {
        path: cast("frozenset[str]", vars(part)[ADDED])
        for path, part in level.named_modules()
        if ADDED in vars(part)
    }


def _difference(level: nn.Module, first: Pattern, given: Arguments | None) -> str:
    """Say in what a call differs from the one that the graphs of a level were made for."""
    setting = settings_hold(level, first.settings)
    if setting is not None:
        now = read_setting(level, setting)
        where = join_path(setting.path, setting.name)
        return f"{where} was {literal(setting.value)} and is now {'gone' if now is MISSING else literal(now)}"
    for path in sorted(first.inlined):
        if level.get_submodule(path).training is not level.training:
            return f"{path} is in another mode than what is around it"
    if given is not None:
        graph = first.graph(training=level.training)
        bound = bind_arguments(parameters_of(graph), *given)
        for check in first.checks(graph):
            if not checks_hold((check,), bound):
                _, name, _, expected = check
                now = bound.get(name)
                then = "data" if expected is None and now is None else literal(expected)
                return f"{name} was {then} and is now {literal(now) if now is None else kind(now)}"
    return "sizes of which the forward decides otherwise"

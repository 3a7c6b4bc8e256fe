"""The explanation: what was done to a model and how it stands, as a value that prints well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs
from torch import nn

from torchgraft.errors import AnalysisError, GraftError
from torchgraft.graph.clone import clone
from torchgraft.graph.draft import Draft
from torchgraft.graph.history import history_of
from torchgraft.graph.outline import Outline, outline_of
from torchgraft.graph.probe import Example, probe
from torchgraft.graph.reading import guards_of, levels_of
from torchgraft.graph.tiers.tiers import Tiers, find_tiers
from torchgraft.paths import parent_of
from torchgraft.spec import shape_text
from torchgraft.text import plural, some, write_dims


@attrs.frozen
class Explanation:
    """Tell what was done to a model and how it stands.

    Args:
        model: class of the model.
        parameters: number of parameters, each tensor counted once.
        trainable: number of those that get a gradient.
        tensors: number of trainable tensors.
        steps: the transforms that made it, as written.
        opened: paths of the modules whose forward is a graph.
        levels: how the root, and what was opened, runs: ``"Python"``, ``"graph"``,
            ``"graph, 2 patterns"``, with ``"not checked"`` where a graph could not be compared.
        unfollowed: why the root is no GraphModule; empty where it is one.
        guards: what a traced forward checks at each call.
        modules_added: paths of new modules.
        modules_removed: paths that are gone.
        modules_exchanged: path, old class and new class.
        parameters_added: keys of new parameters.
        parameters_removed: keys that are gone.
        parameters_reshaped: key, old shape and new shape.
        new_parameters: number of parameters under new keys.
        frozen: keys of parameters that no longer get a gradient.
        unfrozen: keys of parameters that now do.
        nodes_added: names of new calls and operations.
        nodes_removed: names that are gone.
        shapes_changed: path, old output shape and new one; told by ``t.explain(model)`` alone.
        tiers: stem, stages and head; told by ``explain(model)`` alone, ``None`` where there are no maps.
    """

    model: str
    parameters: int
    trainable: int
    tensors: int
    steps: tuple[str, ...]
    opened: tuple[str, ...]
    levels: tuple[tuple[str, str], ...]
    unfollowed: str
    guards: tuple[str, ...]
    modules_added: tuple[str, ...] = ()
    modules_removed: tuple[str, ...] = ()
    modules_exchanged: tuple[tuple[str, str, str], ...] = ()
    parameters_added: tuple[str, ...] = ()
    parameters_removed: tuple[str, ...] = ()
    parameters_reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    new_parameters: int = 0
    frozen: tuple[str, ...] = ()
    unfrozen: tuple[str, ...] = ()
    nodes_added: tuple[str, ...] = ()
    nodes_removed: tuple[str, ...] = ()
    shapes_changed: tuple[tuple[str, str, str], ...] = ()
    tiers: Tiers | None = None

    def __str__(self) -> str:
        lines = [
            (
                f"{self.model}: {self.parameters:,} parameters, {self.trainable:,} trainable "
                f"in {plural(self.tensors, 'tensor')}"
            )
        ]
        lines += [f"  {line}" for line in (str(self.tiers).splitlines() if self.tiers else ())]
        lines += [f"  step {i:<5} {step}" for i, step in enumerate(self.steps, 1)]
        said = [
            ("runs", some([f"{path or 'the root'} {how}" for path, how in self.levels], 8)),
            ("root", f"stays {self.model} alone: {self.unfollowed}" * bool(self.unfollowed)),
            ("added", some(_tops(self.modules_added))),
            ("new", f"{self.new_parameters:,} parameters" if self.new_parameters else ""),
            ("removed", some(_tops(self.modules_removed))),
            ("exchanged", some([_change(*item) for item in self.modules_exchanged])),
            (
                "reshaped",
                some([f"{k} {write_dims(a)} -> {write_dims(b)}" for k, a, b in self.parameters_reshaped]),
            ),
            ("frozen", plural(len(self.frozen), "tensor") if self.frozen else ""),
            ("unfrozen", plural(len(self.unfrozen), "tensor") if self.unfrozen else ""),
            ("nodes", some([*(f"+{n}" for n in self.nodes_added), *(f"-{n}" for n in self.nodes_removed)])),
            ("shape", some([_change(*item) for item in self.shapes_changed])),
        ]
        lines += [f"  {label:<10} {text}" for label, text in said if text]
        lines += [f"  guard      {guard}" for guard in self.guards]
        return "\n".join(lines)


def explain_model(model: nn.Module) -> Explanation:
    """Tell what was done to a model since its history begins, how it stands, and its tiers."""
    return attrs.evolve(_stands(model), tiers=_tiers(model))


def _tiers(model: nn.Module) -> Tiers | None:
    try:
        return find_tiers(Draft(model))
    except GraftError:
        return None


def _stands(model: nn.Module) -> Explanation:
    history, now = history_of(model), outline_of(model)
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    stands = Explanation(
        type(model).__name__,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in trainable),
        len(trainable),
        history.steps,
        history.opened,
        levels_of(model),
        history.unfollowed,
        guards_of(model),
    )
    return _changed(stands, history.outline, now) if history.outline is not None else stands


def explain_change(
    model: nn.Module, result: nn.Module, steps: Sequence[object], example: Example | None
) -> Explanation:
    """Tell what a transform did to a model.

    Args:
        model: the model.
        result: what the transform made of it.
        steps: the steps of the transform.
        example: an input, where it cannot be guessed.
    """
    stands, before, known = _stands(result), outline_of(model), history_of(result).outline
    opened = [path for path in stands.opened if path not in history_of(model).opened]
    nodes = {**(known.nodes if known else {}), **before.nodes}
    told = _changed(stands, attrs.evolve(before, nodes=nodes), outline_of(result))
    return attrs.evolve(
        told,
        steps=tuple(map(repr, steps)),
        opened=tuple(opened),
        shapes_changed=tuple(_shapes(model, result, example)),
    )


def _changed(stands: Explanation, old: Outline, now: Outline) -> Explanation:
    both = [path for path in now.modules if path in old.modules]
    kept = [key for key in now.tensors if key in old.tensors]
    added = [k for k, (_, grad) in now.tensors.items() if k not in old.tensors and grad is not None]
    nodes = {path: (old.nodes.get(path, names), names) for path, names in now.nodes.items()}
    sizes = [now.tensors[key][0] for key in added]
    return attrs.evolve(
        stands,
        modules_added=tuple(p for p in now.modules if p not in old.modules),
        modules_removed=tuple(p for p in old.modules if p not in now.modules),
        modules_exchanged=tuple(
            (p, old.modules[p], now.modules[p]) for p in both if old.modules[p] != now.modules[p]
        ),
        parameters_added=tuple(added),
        parameters_removed=tuple(
            k for k, (_, g) in old.tensors.items() if k not in now.tensors and g is not None
        ),
        parameters_reshaped=tuple(
            (k, old.tensors[k][0], now.tensors[k][0]) for k in kept if old.tensors[k][0] != now.tensors[k][0]
        ),
        new_parameters=sum(map(math.prod, sizes)),
        frozen=tuple(k for k in kept if old.tensors[k][1] and now.tensors[k][1] is False),
        unfrozen=tuple(k for k in kept if old.tensors[k][1] is False and now.tensors[k][1]),
        nodes_added=tuple(n for was, names in nodes.values() for n in names if n not in set(was)),
        nodes_removed=tuple(n for was, names in nodes.values() for n in was if n not in set(names)),
    )


def _shapes(model: nn.Module, result: nn.Module, example: Example | None) -> Iterable[tuple[str, str, str]]:
    """Yield the modules whose output changed its shape, outer ones for the inner ones."""
    try:
        was, runs = probe(clone(model), example), probe(clone(result), example)
    except AnalysisError:
        return
    old: dict[str, list[str]] = {}
    for call in was.calls:
        old.setdefault(call.path, []).append(shape_text(call.output))
    changed: dict[str, tuple[str, str, str]] = {}
    for call in runs.calls:  # a layer may be called often: the n-th call is compared with the n-th
        texts = old.get(call.path, [])
        before, now = texts.pop(0) if texts else "", shape_text(call.output)
        if call.path and before and before != now:
            changed.setdefault(call.path, (call.path, before, now))
    yield from changed.values()


def _tops(paths: Sequence[str]) -> list[str]:
    """Keep the paths that stand in none of the others."""
    held = set(paths)
    return [path for path in paths if parent_of(path) not in held]


def _change(name: str, before: str, after: str) -> str:
    return f"{name} {before} -> {after}"

"""Align two models: say for every tensor of the target where it comes from in the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import attrs
import torch
from torch import nn

from torchgraft.alignment.alignment import Alignment, Ambiguity, Entry, Part, Shape
from torchgraft.alignment.match.behaviour import DriftError, Seen, confirmed, settled
from torchgraft.alignment.match.finder import find_places
from torchgraft.alignment.match.from_state import proposed_from
from torchgraft.alignment.match.ledger import Ledger
from torchgraft.alignment.match.naming import alike
from torchgraft.alignment.match.places import Places
from torchgraft.alignment.match.rest import aliases, by_name, constants, counters, unreached
from torchgraft.alignment.match.structure import proposed
from torchgraft.alignment.match.units import places_of
from torchgraft.errors import AnalysisError, OptionError
from torchgraft.graph.checks import check_model
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import record
from torchgraft.graph.probe import Arguments, Example, arguments_of, guessed
from torchgraft.text import literal, near, spelled

EVIDENCE = ("behaviour", "structure")
POLICIES = ("same_function", "same_shape")


@spelled
def align(
    source: nn.Module | Mapping[str, torch.Tensor],
    target: nn.Module,
    *,
    example: Example | None = None,
    evidence: str = "behaviour",
    policy: str = "same_function",
) -> Alignment:
    """Say for every tensor of a model where it comes from in another model.

    Both models are followed down to primitive operations, whatever their modules are called.
    Structure proposes which use of a parameter is which; then both run on one input, and
    what sees the same is the same. Neither model is changed.

    Args:
        source: the model that has the weights; or its state dict alone, which says less: what
            neither shapes nor names nor an order that holds elsewhere decide is ambiguous.
        target: the model that needs them.
        example: an input that both take; one is made up where there is none.
        evidence: ``"behaviour"`` to run both; ``"structure"`` where they cannot be run, as
            on the meta device. With a state dict nothing is run, and the entries say so.
        policy: ``"same_function"`` to pair what does the same in both; ``"same_shape"`` to
            give layers that the source does not have the weights of their like before them.

    Returns:
        The alignment: entries, and what is missing, unused, mismatched or ambiguous.

    Raises:
        AnalysisError: a model does not run on the example, not even on meta tensors.
        OptionError: an option has no such value, or none that a state dict could follow.

    Example:
        >>> from torch import nn
        >>> one = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 2))
        >>> two = nn.ModuleDict({"stem": one[0], "head": one[2]})
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         return self.head(self.stem(x.flatten(1)))
        >>> found = align(one, Net(), example=torch.randn(2, 3, 1, 1))
        >>> [(entry.target, *entry.keys) for entry in found.entries][:2]
        [('stem.weight', '0.weight'), ('stem.bias', '0.bias')]
    """
    for name, value, known in (("evidence", evidence, EVIDENCE), ("policy", policy, POLICIES)):
        if value not in known:
            raise OptionError(
                f"there is no {name} of that name",
                asked=f"align(..., {name}={literal(value)})",
                found=", ".join(map(literal, known)),
                near=near(str(value), known),
                write=f"align(..., {name}={literal(known[0])})",
            )
    check_model(target, "align")
    if isinstance(source, Mapping) and policy != POLICIES[0]:
        raise OptionError(
            "a state dict has no order of layers in which they could stand for those that follow",
            asked=f"align(<a state dict>, ..., policy={literal(policy)})",
            found="a source without a model",
            write=f"align(<a model with these weights>, ..., policy={literal(policy)})",
        )
    if isinstance(source, Mapping):
        return _from_state(source, _Side.of(target), arguments_for(target, target, example))
    check_model(source, "align")
    sides = _Side.of(source), _Side.of(target)
    arguments = arguments_for(source, target, example)
    return _aligned(sides, arguments, evidence, policy, given=example is not None)


@attrs.frozen(eq=False)
class _Side:
    """One of the two models, with its tensors and their shapes by name."""

    model: nn.Module
    tensors: Mapping[str, torch.Tensor]
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, model: nn.Module) -> _Side:
        held = model.state_dict(keep_vars=True)
        tensors = {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
        return cls(model, tensors, {key: tuple(value.shape) for key, value in tensors.items()})

    def places(self, arguments: Arguments, *, meta: bool) -> Places:
        """Run the model and find its places."""
        made = record(self.model, arguments) if meta else record_live(self.model, arguments)
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        mapped = [k for k, t in self.tensors.items() if t.is_floating_point() or t.is_complex()]
        return find_places(made, {**buffers, **self.tensors}, mapped)


def _aligned(
    sides: tuple[_Side, _Side], arguments: Arguments, evidence: str, policy: str, *, given: bool
) -> Alignment:
    meta = evidence == "structure" or any(t.is_meta for side in sides for t in side.tensors.values())
    if not meta:
        with suppress(DriftError):  # what cannot be run can be followed, and the entries say so
            return _by_behaviour(sides, arguments, policy)
    found = _followed(sides, arguments, meta=True, given=given)
    proposals = proposed(*found, (found[0].keys, found[1].keys), stretch=policy == "same_shape")
    seen = {t: Seen(p.source, p.rule, "structure", p.others) for t, p in proposals.items()}
    return _written(sides, found, seen)


def _by_behaviour(sides: tuple[_Side, _Side], arguments: Arguments, policy: str) -> Alignment:
    found = _followed(sides, arguments, meta=False)
    proposals = proposed(*found, (found[0].keys, found[1].keys), stretch=policy == "same_shape")
    if not proposals:  # the first layers of any two models see the same image
        return _written(sides, found, {})
    ledger, ready = Ledger(*found, (sides[0].shapes, sides[1].shapes)), settled(found[1], proposals)
    ledger.enter_all(ready)
    made = Alignment(sides[0].shapes, sides[1].shapes, tuple(ledger.entries()))
    models = (sides[0].model, found[0]), (sides[1].model, found[1])
    seen = confirmed(*models, arguments, proposals, made.apply(sides[0].tensors))
    if any(pair.others for pair in seen.values()) or _sources(seen) != _sources(ready):
        return _written(sides, found, seen)
    ledger.restate(seen)
    return _written(sides, found, seen, ledger)


def _sources(pairs: Mapping[int, Seen]) -> dict[int, int]:
    return {number: pair.source for number, pair in pairs.items()}


def _from_state(source: Mapping[str, torch.Tensor], target: _Side, arguments: Arguments) -> Alignment:
    """Align a state dict, of which there is no model, with a model."""
    tensors = {
        key: value
        for key, value in source.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    floats = {key: shape for key, shape in shapes.items() if tensors[key].is_floating_point()}
    try:
        found = target.places(arguments, meta=True)
    except Exception as error:
        raise _unfollowed(error) from error
    change = alike(shapes, target.shapes)
    units, proposals = proposed_from(floats, found, change)
    held = places_of(units, floats)
    seen = {t: Seen(p.source, p.rule, "names", p.others) for t, p in proposals.items()}
    made = _written((_Side(nn.Module(), tensors, shapes), target), (held, found), seen)
    if change is None:
        return made
    names = {change(key): key for key in shapes}
    open_ = {one.target for one in made.ambiguous}.union(
        key for key in made.missing if isinstance(target.tensors[key], nn.Parameter)
    )  # what cannot be followed, or is left open, goes by its name, as most do
    told = {key for key in open_ if key in names and shapes[names[key]] == target.shapes[key]}
    entries = {entry.target: entry for entry in made.entries}
    entries |= {key: Entry(key, (Part(names[key]),), rule="names", evidence="names") for key in told}
    return attrs.evolve(
        made,
        entries=tuple(entries[key] for key in target.shapes if key in entries),
        ambiguous=tuple(one for one in made.ambiguous if one.target not in told),
    )


def _followed(
    sides: tuple[_Side, _Side], arguments: Arguments, *, meta: bool, given: bool = True
) -> tuple[Places, Places]:
    try:
        return sides[0].places(arguments, meta=meta), sides[1].places(arguments, meta=meta)
    except Exception as error:
        if not meta:
            raise DriftError from error
        if not given:  # one of them takes other inputs, as one with more channels does
            with suppress(Exception):
                return _alone(sides[0]), _alone(sides[1])
        raise _unfollowed(error) from error


def _unfollowed(error: Exception) -> AnalysisError:
    text = str(error).splitlines()
    return AnalysisError(
        "the models do not both run on the example",
        found=f"{type(error).__name__}: {text[0] if text else ''}"[:200],
        write="align(source, target, example=torch.zeros(<an input both models take>))",
    )


def _alone(side: _Side) -> Places:
    return side.places(arguments_for(side.model, side.model, None), meta=True)


def _written(
    sides: tuple[_Side, _Side],
    found: tuple[Places, Places],
    seen: Mapping[int, Seen],
    ledger: Ledger | None = None,
) -> Alignment:
    """Write the alignment that a pairing of places is, from a ledger of it if there is one."""
    (source, target), tensors = sides, (sides[0].tensors, sides[1].tensors)
    if ledger is None:
        ledger = Ledger(*found, (source.shapes, target.shapes))
        ledger.enter_all(seen)
    entries = {entry.target: entry for entry in ledger.entries()}
    mismatched = {key: m for key, m in ledger.mismatched.items() if key not in entries}
    ambiguous = {
        key: a for key, a in ledger.ambiguous.items() if key not in entries and key not in mismatched
    }
    if not seen:
        return Alignment(source.shapes, target.shapes, ())
    _sort(counters(*found, seen, tensors), entries, ambiguous)
    _sort(list(aliases(tensors, entries, ambiguous)), entries, ambiguous)
    reached = [one.used(range(len(one.places))) for one in found]
    known = {*entries, *mismatched, *ambiguous} | reached[1]
    tables = [k for k in source.shapes if k not in reached[0]], [k for k in target.shapes if k not in known]
    entries.update((e.target, e) for e in constants(tensors, tables))
    known |= {*entries}
    taken = reached[0] | {key for entry in entries.values() for key in entry.keys}
    left = (
        [k for k, t in source.tensors.items() if k not in taken and by_name(k, t)],
        [k for k, t in target.tensors.items() if k not in known and by_name(k, t)],
    )
    _sort(unreached(tensors, left), entries, ambiguous)
    return Alignment(
        source.shapes,
        target.shapes,
        tuple(entries[key] for key in target.shapes if key in entries),
        tuple(mismatched[key] for key in target.shapes if key in mismatched),
        tuple(ambiguous[key] for key in target.shapes if key in ambiguous),
    )


def _sort(
    found: Iterable[Entry | Ambiguity], entries: dict[str, Entry], ambiguous: dict[str, Ambiguity]
) -> None:
    for one in found:
        if isinstance(one, Entry):
            entries[one.target] = one
        else:
            ambiguous[one.target] = one


def arguments_for(source: nn.Module, target: nn.Module, example: Example | None) -> Arguments:
    """Return what to run two models on: the example, or what the target, or else the source, takes.

    Raises:
        AnalysisError: there is no example, and no guess runs.
    """
    device = next((p.device for p in target.parameters()), torch.device("cpu"))
    if isinstance(example, torch.Tensor) and example.is_meta:
        return (_drawn(example, device),), {}
    if example is not None:
        return arguments_of(example)
    first: AnalysisError | None = None
    for model in (target, source):
        try:
            guess = guessed(model)
        except AnalysisError as error:
            first = first or error
            continue
        return (_drawn(guess, device),), {}
    assert first is not None
    raise first


def _drawn(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Make up values for a tensor of which only the shape is known."""
    if device.type == "meta" or not like.is_floating_point():
        return torch.zeros_like(like, device=device)
    draws = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=draws, dtype=torch.float32).to(device, like.dtype)

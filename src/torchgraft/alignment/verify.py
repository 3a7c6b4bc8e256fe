"""Say whether two models compute the same, and if not, where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from torchgraft.alignment.align import arguments_for
from torchgraft.alignment.alignment import Alignment
from torchgraft.alignment.check.comparing import Both
from torchgraft.alignment.check.cones import diverged
from torchgraft.alignment.check.divergence import Difference as Difference
from torchgraft.alignment.check.divergence import Divergence as Divergence
from torchgraft.alignment.check.divergence import Site as Site
from torchgraft.alignment.check.trail import Runner, Trail
from torchgraft.alignment.match.structure import proposed
from torchgraft.errors import AnalysisError, OptionError
from torchgraft.graph.checks import check_model
from torchgraft.graph.probe import Arguments, Example
from torchgraft.text import literal, plural

Way = tuple[int | str, ...]
# Within this, two runs agree: in double precision, and in single.
_LEAST, _ROUGH = 1e-9, 1e-5
# A first difference smaller than this share of the whole is not what matters most.
_MINOR, _COARSE = 1e-2, 1e-2


@attrs.frozen
class Output:
    """One output of both models.

    Args:
        name: the way to it: ``logits``, ``0``; empty for a plain tensor.
        shape_a: its shape in the first model.
        shape_b: its shape in the second.
        error: the largest difference, as a share of the largest value of the first.
    """

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    error: float


@attrs.frozen
class Verdict:
    """Say whether two models compute the same; as a truth value, it is just that.

    Args:
        error: the largest difference of outputs, as a share of the largest value.
        tolerance: what it may be.
        outputs: the outputs that were compared.
        structure: the outputs of both, by name, if they return different things.
        divergence: where the models part, if they do and it was found.
        larger: where they part for another reason that matters far more, if they do.
    """

    error: float
    tolerance: float
    outputs: tuple[Output, ...]
    structure: Difference | None = None
    divergence: Divergence | None = None
    larger: Divergence | None = None

    @property
    def same(self) -> bool:
        """Whether the models return the same, within the tolerance."""
        return self.structure is None and self.error <= self.tolerance

    def __bool__(self) -> bool:
        return self.same

    def __str__(self) -> str:
        if self.same:
            return f"same: {plural(len(self.outputs), 'output')}, {self.error:.2g} apart (relative)"
        shapes = [
            f"{o.name or 'the output'} {o.shape_a} against {o.shape_b}"
            for o in self.outputs
            if o.shape_a != o.shape_b
        ]
        if self.structure is not None:
            said = f"differ in what they return: {self.structure.a} against {self.structure.b}"
        elif shapes:
            said = f"differ in shape: {'; '.join(shapes)}"
        elif math.isinf(self.error):
            said = "differ: one gives no numbers where the other does"
        else:
            said = f"differ by {self.error:.2g} (relative)"
        if self.divergence is not None:
            more = "" if self.larger is None else f"; far more at {self.larger.place}: {self.larger.why}"
            return f"{said}: first at {self.divergence}{more}"
        agree = self.structure is not None and self.error <= self.tolerance
        if agree:
            return said + "".join(f"; {o.name} is the same" for o in self.outputs if o.name)
        return f"{said}; no site was found where they part"


def verify(
    a: nn.Module,
    b: nn.Module,
    example: Example | None = None,
    *,
    alignment: Alignment | None = None,
    tolerance: float = 1e-4,
) -> Verdict:
    """Say whether two models compute the same, and if not, where they part and why.

    Both run in evaluation mode on one input. If their outputs differ, the runs are compared
    from the first operation on, in double precision, each model with its own weights.
    Neither model is changed.

    Args:
        a: the one model.
        b: the other; it may be written otherwise.
        example: an input that both take; one is made up where there is none.
        alignment: of ``a`` with ``b``: the second then runs with the weights of the first.
        tolerance: how far outputs may be apart, as a share of the largest value of the first.

    Returns:
        The verdict: print it, or read its fields.

    Raises:
        AnalysisError: a model does not run on the example, or is on the meta device.
        OptionError: the tolerance is no positive number.

    Example:
        >>> one = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> two = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, eps=0.1))
        >>> _ = two.load_state_dict(one.state_dict())
        >>> bool(verify(one, one))
        True
        >>> verify(one, two).divergence.reasons
        (Difference(what='eps', a=1e-05, b=0.1, apart=None),)
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise OptionError(
            "a tolerance is a positive number",
            asked=f"verify(..., tolerance={literal(tolerance)})",
            write="verify(..., tolerance=1e-4)",
        )
    for name, model in (("a", a), ("b", b)):
        check_model(model, "verify")
        _check_values(name, model)
    arguments = arguments_for(a, b, example)
    one = Runner(a, _fitted(arguments, a))
    state = {} if alignment is None else alignment.apply(one.tensors())
    other = Runner(b, _fitted(arguments, b), state)
    outputs, structure = _compared(_outputs("a", one), _outputs("b", other))
    verdict = Verdict(max((o.error for o in outputs), default=0.0), float(tolerance), outputs, structure)
    if verdict.error <= tolerance:
        return verdict
    runs = _Runs(one, other)
    first = runs.parting(runs.least)
    if first is None or not first.reasons or not _MINOR * verdict.error > first.made:
        return attrs.evolve(verdict, divergence=first)
    larger = runs.parting(min(_MINOR * verdict.error, _COARSE))
    told = {reason.what for reason in first.reasons}
    more = larger is not None and any(reason.what not in told for reason in larger.reasons)
    return attrs.evolve(verdict, divergence=first, larger=larger if more else None)


class _Runs:
    """Two runs in which every value is known by its fingerprint, in double precision where that runs."""

    def __init__(self, one: Runner, other: Runner) -> None:
        # Two of one class hold their values in one layout; then what has another order is another value.
        self._orders = (True,) if type(one.model) is type(other.model) else (False, True)
        self.least = _LEAST
        try:
            a, b = (Trail(attrs.evolve(runner, double=True)) for runner in (one, other))
        except (RuntimeError, TypeError, ValueError):
            self.least = _ROUGH
            a, b = Trail(one), Trail(other)
        self._sides = a, b
        self._proposals = proposed(a.places, b.places, (a.places.keys, b.places.keys))

    def parting(self, least: float) -> Divergence | None:
        """Find where they part for a reason; without any, where they part."""
        first: Divergence | None = None
        for ordered in self._orders:
            found = diverged(Both(*self._sides, self._proposals, least, ordered))
            if found is not None and found.reasons:
                return found
            first = first or found
        return first


def _outputs(name: str, runner: Runner) -> dict[Way, torch.Tensor]:
    """Run a model and return its outputs by the way to them."""
    try:
        record, values = runner.look(_copy, ())
        ways = dict(record.scopes[0].outputs)
        used = {value for value in ways.values() if value not in values}
        values |= runner.look(_copy, used)[1] if used else {}
    except Exception as error:
        text = str(error).splitlines()
        raise AnalysisError(
            f"model {name}, a {type(runner.model).__name__}, does not run on the example",
            found=f"{type(error).__name__}: {text[0] if text else ''}"[:200],
            write="verify(a, b, torch.zeros(<an input both models take>))",
        ) from error
    return {way: values[value] for way, value in ways.items() if value in values}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _compared(
    a: Mapping[Way, torch.Tensor], b: Mapping[Way, torch.Tensor]
) -> tuple[tuple[Output, ...], Difference | None]:
    """Compare the outputs that both have; a single one may be wrapped differently."""
    pairs = [(way, way) for way in a if way in b]
    if 1 in (len(a), len(b)) and not pairs:  # it is the nearest of several
        made = [(way, one) for way in a for one in b]
        pairs = sorted(made, key=lambda pair: _error(a[pair[0]], b[pair[1]]))[:1]
    names = [one if len(a) < len(b) else way for way, one in pairs]
    outputs = tuple(
        Output(".".join(map(str, name)), tuple(a[way].shape), tuple(b[one].shape), _error(a[way], b[one]))
        for name, (way, one) in zip(names, pairs, strict=True)
    )
    if a.keys() == b.keys() or len(a) == len(b) == 1:
        return outputs, None
    first, second = (
        ", ".join(".".join(map(str, way)) or "a tensor" for way in held) or "nothing" for held in (a, b)
    )
    return outputs, Difference("outputs", first, second)


def _error(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    if not one.numel():
        return 0.0
    first, second = (
        t.detach().cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (one, other)
    )
    if first.isnan().any() or second.isnan().any() or first.isinf().any() or second.isinf().any():
        return 0.0 if bool(torch.isclose(first, second, rtol=0, equal_nan=True).all()) else math.inf
    far, size = (first - second).abs().max().item(), first.abs().max().item()
    return far / size if size else (0.0 if far == 0 else math.inf)


def _fitted(arguments: Arguments, model: nn.Module) -> Arguments:
    """Give floating-point inputs the dtype and the device that a model has."""
    kept = next((p for p in model.parameters() if p.is_floating_point()), None)
    if kept is None:
        return arguments
    device, dtype = kept.device, kept.dtype
    fitted: Arguments = tree_map_only(
        torch.Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), arguments
    )
    return fitted


def _check_values(name: str, model: nn.Module) -> None:
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise AnalysisError(
                f"model {name}, a {type(model).__name__}, is on the meta device and computes nothing",
                found=f"{key} has no values",
                write="verify(a, b) with weights loaded in both",
            )

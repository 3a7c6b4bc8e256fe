"""The account of a loading: what became of every tensor of the model and of the checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs
from torch import nn

from torchgraft.alignment.alignment import Ambiguity, Mismatch
from torchgraft.errors import ModelError
from torchgraft.text import kind, plural, spelled, write_dims

_KEY = "_torchgraft_loaded"
_SHOWN = 4


@attrs.frozen
class LoadReport:
    """Tell what a loading did.

    Every tensor of the model stands in one of ``loaded``, ``mismatched``, ``missing``,
    ``ambiguous``, ``excluded``, ``apart`` and ``counters``; every tensor of the checkpoint was loaded, was
    meant for one of these, or is ``unexpected``.

    Args:
        loaded: tensors of the model that hold what the checkpoint holds.
        mismatched: pairs that stand for the same and differ in shape.
        missing: tensors of the model that the checkpoint does not have.
        ambiguous: tensors for which several of the checkpoint's are as good.
        excluded: tensors that were to stay as they are.
        counters: counts of batches, which old checkpoints do not have; they stay as they are.
        unexpected: tensors of the checkpoint for which the model has no use.
        initialised: of those that were not loaded, the ones that were initialised anew.
        converted: name, dtype in the checkpoint, and dtype in the model.
        evidence: what the places of loaded tensors were found by, with their number.
        nan: loaded tensors with values that are not finite.
        unwrapped: keys of wrappers that were entered in the checkpoint.
        left: other weights in the checkpoint, such as a running average.
        prefix: what was taken off the checkpoint's names.
        added: what was put before the checkpoint's names.
        inside: names of wrappers that were taken off inside of the checkpoint's names.
        apart: tensors that steps added or put in the place of the base's, which the checkpoint
            does not have.
    """

    loaded: tuple[str, ...]
    mismatched: tuple[Mismatch, ...] = ()
    missing: tuple[str, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()
    excluded: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    converted: tuple[tuple[str, str, str], ...] = ()
    evidence: tuple[tuple[str, int], ...] = ()
    nan: tuple[str, ...] = ()
    unwrapped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    prefix: str = ""
    added: str = ""
    inside: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()

    @property
    def wanted(self) -> int:
        """Number of tensors that were to be loaded: all but those excluded, and those of steps alone."""
        return len(self.loaded) + len(self.mismatched) + len(self.missing) + len(self.ambiguous)

    @property
    def ratio(self) -> float:
        """Share of those that were loaded; 0 where nothing was to be loaded."""
        return len(self.loaded) / max(1, self.wanted)

    @property
    def summary(self) -> str:
        """One line for people."""
        counts = (
            (len(self.mismatched), "differ in shape"),
            (len(self.missing), "new"),
            (len(self.ambiguous), "ambiguous"),
            (len(self.excluded), "excluded"),
            (len(self.unexpected), "unexpected"),
            (len(self.nan), "not finite"),
            (len(self.apart), "of steps alone"),
            (dict(self.evidence).get("contradicted", 0), "contradicted by behaviour"),
        )
        share = f"{100 * self.ratio:.1f} % of parameters ({len(self.loaded)} of {self.wanted} tensors)"
        return "; ".join([f"loaded {share}", *(f"{n} {what}" for n, what in counts if n)])

    def __str__(self) -> str:
        names = all(what == "names" for what, _ in self.evidence)
        kinds = Counter((was, now) for _, was, now in self.converted)
        said = (
            ("unwrapped", ".".join(self.unwrapped)),
            ("left", _some(self.left)),
            ("prefix", _prefix(self)),
            ("found by", "" if names else ", ".join(f"{what} {n}" for what, n in self.evidence)),
            ("differ", _some([f"{m.target} {_change(m)}" for m in self.mismatched])),
            ("new", _some(self.missing)),
            ("ambiguous", _some([f"{a.target} ({' | '.join(a.candidates)})" for a in self.ambiguous])),
            ("excluded", _some(self.excluded)),
            ("unexpected", _some(self.unexpected)),
            ("not finite", _some(self.nan)),
            ("of steps", _some(self.apart)),
            ("initialised", _some(self.initialised)),
            (
                "converted",
                _some([f"{plural(n, 'tensor')} {was} -> {now}" for (was, now), n in kinds.items()]),
            ),
            ("counters", f"{len(self.counters)} as they were" if self.counters else ""),
        )
        return "\n".join([self.summary, *(f"  {label:<11} {text}" for label, text in said if text)])


@spelled
def load_report(model: nn.Module) -> LoadReport:
    """Return the account of the last loading of weights into a model.

    It stays with what further transforms make of the model.

    Args:
        model: what ``load_weights``, ``partial_load`` or ``transfer`` gave.

    Returns:
        The account: print it, or read its fields.

    Raises:
        ModelError: no weights were loaded into it.

    Example:
        >>> from torchgraft import partial_load
        >>> model = partial_load(nn.Linear(3, 2), {"weight": nn.Linear(3, 2).weight})
        >>> print(load_report(model))
        loaded 50.0 % of parameters (1 of 2 tensors); 1 new
          new         bias
    """
    known = vars(model).get(_KEY) if isinstance(model, nn.Module) else None
    if not isinstance(known, LoadReport):
        raise ModelError(
            "no weights were loaded into this model",
            found=kind(model),
            write='pipe(model, load_weights("weights.safetensors"))',
        )
    return known


def keep_report(model: nn.Module, report: LoadReport) -> None:
    """Keep the account on the model that was loaded."""
    vars(model)[_KEY] = report


def _prefix(report: LoadReport) -> str:
    inside = ((f"{part}.", "removed inside") for part in report.inside)
    parts = ((report.prefix, "removed"), (report.added, "added"), *inside)
    return ", ".join(f'"{text}" {what}' for text, what in parts if text)


def _some(items: Sequence[str]) -> str:
    more = f" ... and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _change(one: Mismatch) -> str:
    return f"{write_dims(one.found)} -> {write_dims(one.asked)}"

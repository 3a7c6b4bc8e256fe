"""Diff: what differs between two models, as a value that prints, and writes itself as JSON and HTML."""

from __future__ import annotations

import json

import attrs
from torch import nn

from torchgraft.graph.checks import check_model
from torchgraft.graph.probe import Example
from torchgraft.show.difference.costs import measure_costs
from torchgraft.show.difference.overlay import ModuleDiff, TensorDiff, compare_models
from torchgraft.show.difference.page import make_page
from torchgraft.show.difference.snapshot import Side, Snapshot
from torchgraft.show.difference.view import print_diff
from torchgraft.text import spelled


@attrs.frozen(repr=False)
class Diff:
    """What differs between two models.

    Args:
        before: the one in figures.
        after: the other in figures.
        tree: every module of both, laid over each other.
        tensors: the parameters and buffers that differ.
    """

    before: Side
    after: Side
    tree: ModuleDiff
    tensors: tuple[TensorDiff, ...]

    @property
    def same(self) -> bool:
        """Whether there is no difference: neither in structure nor in values, modes or dtypes."""
        return not (self.tree.touched or self.tree.spread or self.tensors)

    @property
    def added(self) -> tuple[str, ...]:
        """Paths of the modules that are new."""
        return tuple(m.path for m in self.tree.walk() if m.status == "added")

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths of the modules that are gone."""
        return tuple(m.path for m in self.tree.walk() if m.status == "removed")

    @property
    def changed(self) -> tuple[str, ...]:
        """Paths of the modules that differ themselves, whatever is below them."""
        return tuple(m.path for m in self.tree.walk() if m.changes and m.after)

    @property
    def moved(self) -> tuple[tuple[str, str], ...]:
        """Paths of the modules that stand elsewhere: before and after."""
        found = [(m.before, m.after) for m in self.tree.walk() if m.status == "moved"]
        return tuple((a.path, b.path) for a, b in found if a and b)

    def to_json(self) -> str:
        """Write it as strict JSON: keys in a fixed order, what is the same left out.

        Returns:
            An object with ``same``; ``before`` and ``after``, the fields of ``Side``; ``modules``,
            each with ``status``, ``before``, ``after`` (the fields of ``Look`` or null), ``changes``
            (the fields of ``Change``) and ``spread`` (the fields of ``Spread``); and ``tensors``,
            each with ``before``, ``after`` (the fields of ``TensorLook`` or null), ``values`` and
            ``changed``.
        """
        fields = attrs.fields(ModuleDiff)
        alone = attrs.filters.exclude(fields.under, fields.touched)
        modules = [module for module in self.tree.walk() if module.status != "same" or module.spread]
        plain = {
            "same": self.same,
            "before": attrs.asdict(self.before),
            "after": attrs.asdict(self.after),
            "modules": [attrs.asdict(module, filter=alone) for module in modules],
            "tensors": [attrs.asdict(tensor) for tensor in self.tensors],
        }
        return json.dumps(plain, indent=1)

    def to_html(self) -> str:
        """Write it as one page that needs nothing else: the two trees side by side.

        Returns:
            The page; every name in it is escaped.
        """
        return make_page(self.before, self.after, self.tree, self.tensors)

    def __str__(self) -> str:
        return print_diff(self.before, self.after, self.tree, self.tensors)

    __repr__ = __str__


@spelled
def diff(before: nn.Module, after: nn.Module, *, example: Example | None = None) -> Diff:
    """Tell what differs between two models, usually before and after some edits.

    Modules belong together by their paths. Those left over belong together where class and
    tensors are the same bit by bit. Multiply-adds are those of convolutions and matrix products
    in one run on meta tensors; each tensor and each module counts once.

    Args:
        before: any module; it is only read.
        after: any module; it is only read.
        example: an input that both take; guessed if missing, as for ``pipe``.

    Returns:
        The difference: print it, read its fields, or write it with ``to_json`` and ``to_html``.

    Raises:
        ModelError: one of them is no model.

    Example:
        >>> from torchgraft import swap_head
        >>> net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> print(diff(net, swap_head(3)(net)))
        Sequential -> Sequential
          + step 1        swap_head(3)
          parameters      37  ->   43   +6  +16.2 %
          trainable       37  ->   43   +6  +16.2 %
          bytes          148  ->  172  +24  +16.2 %
          multiply-adds   30  ->   35   +5  +16.7 %
          modules        2 changed
          tensors        2 changed
        ~ the root  Sequential  gives n 2 -> n 3
          0 ... 1   2 modules
        ~ 2         Linear      out_features 2 -> 3; weight 2 5 -> 3 5; bias 2 -> 3; gives n 2 -> n 3
    """
    for model in (before, after):
        check_model(model, "diff")
    costs = measure_costs(before, after, example)
    was, now = (Snapshot(model, cost) for model, cost in zip((before, after), costs, strict=True))
    return Diff(was.side(), now.side(), *compare_models(was, now))

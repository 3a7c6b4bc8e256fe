"""What runs of a model on meta tensors told, made when somebody asks and kept."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn

from torchgraft.errors import AnalysisError
from torchgraft.graph.deep.atoms import Axes
from torchgraft.graph.deep.axes import follow
from torchgraft.graph.deep.record import Record, record
from torchgraft.graph.probe import Arguments, Example, arguments_of, probe
from torchgraft.graph.run import ModuleCall, Run, calls_until


class Runs:
    """Run a model in both modes at most once each.

    Args:
        root: gives the model as it is when the run is made.
        example: an input for it; guessed if missing.
        edited: the model ran before it was edited.
    """

    def __init__(
        self, root: Callable[[], nn.Module], example: Example | None, *, edited: bool = False
    ) -> None:
        self._edited = edited
        self._root = root
        self._example = example
        self._made: dict[bool, Run | AnalysisError] = {}
        self._deep: dict[bool, Record] = {}
        self._fresh: set[bool] = set()
        self._axes: tuple[Record, dict[int, Axes]] | None = None
        self._given: Record | None = None

    def run(self, *, training: bool) -> Run:
        """Return the run in a mode, as it was before any edit.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        if training not in self._made:
            self._record(self._root(), training)
        return self._taken(training)

    def known(self, *, training: bool) -> Run | None:
        """Return the run in a mode if it was made."""
        return self._taken(training) if isinstance(self._made.get(training), Run) else None

    def _taken(self, training: bool) -> Run:
        made = self._made[training]
        if isinstance(made, AnalysisError):
            raise made
        return made

    def _record(self, root: nn.Module, training: bool) -> None:
        try:
            made = probe(root, self._example, training=training)
        except AnalysisError as error:
            self._made[training] = error
            return
        self._made[training] = self._deep[training] = made
        self._fresh.add(training)

    def of(self, module: nn.Module) -> list[ModuleCall]:
        """Return the calls of a module in evaluation mode, or where there are none in training.

        Raises:
            AnalysisError: the model does not run on meta tensors, and stops before such a call.
        """
        return self._of(module, training=False) or self._of(module, training=True)

    def _of(self, module: nn.Module, *, training: bool) -> list[ModuleCall]:
        try:
            return self.run(training=training).of(module)
        except AnalysisError as error:
            found = [call for call in calls_until(error.__cause__) if call.module is module]
            if not found:
                raise
            return found

    def gives_none(self, module: nn.Module) -> bool:
        """Tell whether a call of a module gave ``None``, or something with ``None`` in it."""
        if gives_tensors(module):
            return False
        try:
            return any(_holds_none(call.output) for call in self.of(module))
        except AnalysisError:
            return False

    def deep(self, *, training: bool = False, fresh: bool = True) -> Record:
        """Record the run in a mode down to primitive operations.

        Args:
            training: the mode to run in.
            fresh: of the model as it is now; ``False`` for as it was before the last edits.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        if training in self._deep and (training in self._fresh or not fresh):
            return self._deep[training]
        root = self._root()
        try:
            if training not in self._made:
                self._record(root, training)
                self._taken(training)
            else:
                usual = self._taken(training).calls[-1]
                self._deep[training] = record(root, (usual.args, usual.kwargs), training=training)
        except Exception as error:
            if isinstance(error, AnalysisError) and not self._edited:
                raise
            raise AnalysisError(
                f"{type(root).__name__} as edited so far does not run, so its tiers are unknown",
                found=error.found
                if isinstance(error, AnalysisError)
                else f"{type(error).__name__}: {error}".splitlines()[0],
                write="the edits that make its shapes fit again, and this one behind them",
            ) from error
        self._fresh.add(training)
        return self._deep[training]

    def axes(self) -> tuple[Record, dict[int, Axes]]:
        """Return a record in evaluation mode with the axes of its values, from before the last edit at times.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        made = self._given or self.deep(fresh=False)
        if self._axes is None or self._axes[0] is not made:
            self._axes = made, follow(made)
        return self._axes

    def adopt(self, made: Record) -> None:
        """Take a record of the model that was made before; axes of values are read off it in any mode."""
        self._made[made.training] = self._deep[made.training] = self._given = made
        self._fresh.add(made.training)

    def renew(self) -> None:
        """Take it that the model was edited since it was recorded."""
        self._fresh.clear()

    def arguments(self, module: nn.Module, training: bool) -> Arguments | None:
        """Return the arguments of the first call of a module, or ``None`` if they are unknown."""
        for mode in (training, not training):  # a detector in training has to be told what there is
            with contextlib.suppress(AnalysisError):
                if calls := self._of(module, training=mode):
                    return calls[0].args, calls[0].kwargs
            if module is self._root():
                return None if self._example is None else arguments_of(self._example)
        return None


def gives_tensors(module: nn.Module) -> bool:
    """Tell whether a module can be seen, without a run, to give nothing but tensors."""
    while type(module).forward is nn.Sequential.forward and module._modules:
        module = next(reversed(module._modules.values()))  # type: ignore[assignment]  # it could not be called
    forward = type(module).forward
    told = getattr(inspect.unwrap(forward), "__annotations__", {}).get("return", "")
    if forward.__module__.startswith("torch.nn.") and forward is not nn.Sequential.forward:
        return "None" not in str(told)
    return told in (torch.Tensor, "Tensor", "torch.Tensor")


def _holds_none(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return value is None or (isinstance(value, (tuple, list)) and any(_holds_none(item) for item in value))

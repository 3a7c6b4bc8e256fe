"""What runs of a model on meta tensors told, made when somebody asks and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from torchgraft.errors import AnalysisError
from torchgraft.graph.deep.record import Record, record
from torchgraft.graph.probe import Arguments, Example, arguments_of, probe
from torchgraft.graph.run import ModuleCall, Run, run_on_meta


class Runs:
    """Run a model in both modes at most once each.

    Args:
        root: gives the model as it is when the run is made.
        example: an input for it; guessed if missing.
    """

    def __init__(self, root: Callable[[], nn.Module], example: Example | None) -> None:
        self._root = root
        self._example = example
        self._made: dict[bool, Run | AnalysisError] = {}
        self._larger: Run | None = None
        self._deep: Record | None = None

    def run(self, *, training: bool) -> Run:
        """Return the run in a mode.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        known = self._made.get(training)
        if known is None:
            try:
                known = probe(self._root(), self._example, training=training)
            except AnalysisError as error:
                known = error
            self._made[training] = known
        if isinstance(known, AnalysisError):
            raise known
        return known

    def of(self, module: nn.Module) -> list[ModuleCall]:
        """Return the calls of a module in evaluation mode, or where there are none in training."""
        return self.run(training=False).of(module) or self.run(training=True).of(module)

    def resized(self) -> Run:
        """Run on an input that is larger along its last two axes.

        Raises:
            AnalysisError: the model takes no other size.
        """
        usual = self.run(training=False).calls[-1]
        if self._larger is None:
            grown = tuple(_grown(a) for a in usual.args), {k: _grown(v) for k, v in usual.kwargs.items()}
            try:
                self._larger = run_on_meta(self._root(), *grown, training=False)
            except Exception as error:
                raise AnalysisError(f"the model takes no larger input: {error}") from error
        return self._larger

    def deep(self) -> Record:
        """Record the run in evaluation mode down to primitive operations.

        Raises:
            AnalysisError: the model does not run on meta tensors.
        """
        if self._deep is None:
            usual = self.run(training=False).calls[-1]
            root = self._root()
            try:
                self._deep = record(root, (usual.args, usual.kwargs))
            except Exception as error:
                raise AnalysisError(
                    f"{type(root).__name__} as edited so far does not run, so its tiers are unknown",
                    found=f"{type(error).__name__}: {error}".splitlines()[0],
                    write="the edits that make its shapes fit again, and this one behind them",
                ) from error
        return self._deep

    def renew(self) -> None:
        """Forget the record: the model was edited since."""
        self._deep = None

    def arguments(self, module: nn.Module, training: bool) -> Arguments | None:
        """Return the arguments of the first call of a module, or ``None`` if they are unknown."""
        try:
            calls = self.run(training=training).of(module)
        except AnalysisError:
            if module is self._root() and self._example is not None:
                return arguments_of(self._example)
            return None
        return (calls[0].args, calls[0].kwargs) if calls else None


def _grown(value: object) -> object:
    if isinstance(value, torch.Tensor) and value.ndim == 4:
        # Twice the size fits whatever strides and windows the model has.
        return value.new_empty((*value.shape[:2], *(2 * side for side in value.shape[2:])))
    return value

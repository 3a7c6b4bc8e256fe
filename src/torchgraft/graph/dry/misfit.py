"""Say why a model does not run on an input: which layer refused what, and an input that does fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
import torch
from torch import nn

from torchgraft.errors import AnalysisError, GraftError, ShapeError
from torchgraft.graph.dry.nested import Shape, dims
from torchgraft.graph.layout_rules import taken
from torchgraft.graph.probe import probe
from torchgraft.graph.proxy import tensors_in
from torchgraft.graph.run import ModuleCall

_DOUBLINGS = 5


@attrs.frozen(eq=False)
class Misfit:
    """Describe a run that failed.

    Args:
        asked: the call as written.
        retry: the call with another input shape, as written.
        name: what did not run.
        shape: shape of the input; ``None`` where there are several or none.
        runs: tells whether another input shape does run.
        failed: the innermost call that failed; ``None`` where no module was called.
        stage: the model or callable that takes the input.
    """

    asked: str
    retry: Callable[[Shape], str]
    name: str
    shape: Shape | None
    runs: Callable[[Shape], bool]
    failed: ModuleCall | None
    stage: object

    def error(self, error: BaseException) -> GraftError:
        """Build the error to raise in the place of the one that torch raised."""
        found = f"{self._where()}{short(error)}"
        if self.shape is not None:
            for build in (self._axes, self._channels, self._size):
                told = build(self.shape, found)
                if told is not None:
                    return told
        inner = self._mismatch()
        if inner is not None:
            where, wanted, got = inner
            summary = f"{where} takes {wanted} channels, it gets {got}"
            return ShapeError(summary, asked=self.asked, found=found)
        return AnalysisError(f"{self.name} does not run on meta tensors", asked=self.asked, found=found)

    def _axes(self, shape: Shape, found: str) -> ShapeError | None:
        other = self._first([(1, *shape), shape[1:]])
        if other is None:
            return None
        summary = f"{self.name} takes inputs with {len(other)} axes, this one has {len(shape)}"
        return ShapeError(summary, asked=self.asked, found=found, write=self.retry(other))

    def _channels(self, shape: Shape, found: str) -> ShapeError | None:
        inner = self._mismatch()
        if inner is None or inner[2] not in shape[1:]:
            return None
        where, wanted, got = inner
        places = [axis for axis in range(1, len(shape)) if shape[axis] == got]
        other = self._first([(*shape[:axis], wanted, *shape[axis + 1 :]) for axis in places])
        if other is None:
            return None
        summary = f"{where} takes {wanted} channels, the input has {got}"
        images = len(shape) == 4 and other[2:] == shape[2:]
        write = f"adapt_input({got})" if images else self.retry(other)
        return ShapeError(summary, asked=self.asked, found=found, write=write)

    def _size(self, shape: Shape, found: str) -> ShapeError | None:
        other = self._first(self._sizes(shape))
        if other is None:
            return None
        summary = f"{self.name} does not run on an input of {dims(shape)}"
        return ShapeError(summary, asked=self.asked, found=found, write=self.retry(other))

    def _sizes(self, shape: Shape) -> Iterator[Shape]:
        if len(shape) > 2:
            for power in range(1, _DOUBLINGS + 1):
                yield (*shape[:-2], *(side * 2**power for side in shape[-2:]))
        if isinstance(self.stage, nn.Module):
            try:
                usual = tensors_in(probe(self.stage, None).calls[-1].args)[0].shape
            except (AnalysisError, IndexError):
                return
            yield (*shape[:1], *usual[1:])

    def _first(self, shapes: Sequence[Shape] | Iterator[Shape]) -> Shape | None:
        return next((shape for shape in shapes if self.runs(shape)), None)

    def _mismatch(self) -> tuple[str, int, int] | None:
        """Name the layer that got another number of channels than it takes."""
        fact = taken(self.failed.module) if self.failed is not None else None
        given = self._given()
        if fact is None or self.failed is None or not given or given[0].ndim < 2:
            return None
        got = given[0].shape[fact.axis]
        where = self.failed.path or type(self.failed.module).__name__
        return (where, fact.channels, got) if got != fact.channels else None

    def _given(self) -> list[torch.Tensor]:
        return tensors_in((self.failed.args, self.failed.kwargs)) if self.failed is not None else []

    def _where(self) -> str:
        if self.failed is None:
            return ""
        kind = type(self.failed.module).__name__
        place = f"{self.failed.path} ({kind})" if self.failed.path else kind
        got = ", ".join(dims(tensor.shape) for tensor in self._given()[:3])
        return f"{place} got {got}: " if got else f"{place}: "


def short(error: BaseException) -> str:
    """Write an error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]

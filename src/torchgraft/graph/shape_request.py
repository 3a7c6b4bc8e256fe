"""The request for shapes: what is run and on which inputs, checked and written as it was asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeGuard, cast

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map

from torchgraft.errors import AnalysisError, GraftError, ModelError, OptionError, ShapeError
from torchgraft.graph.checks import check_model
from torchgraft.graph.deep.record import Record, record
from torchgraft.graph.layout_rules import taken
from torchgraft.graph.probe import needed_by, probe
from torchgraft.graph.proxy import UnfollowableError, tensors_in
from torchgraft.graph.run import ModuleCall, failed_call
from torchgraft.graph.shadow import Chain, Stage
from torchgraft.text import check_flags, kind, literal, near, write_dims, write_error

Shape = tuple[int, ...]

_DOUBLINGS = 5


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Return True if a value is a shape: a sequence of integers."""
    return isinstance(value, (tuple, list)) and all(type(side) is int for side in value)


def _fill(value: object, dtype: torch.dtype) -> object:
    """Put meta tensors in the place of the shapes of a nested value."""
    return tree_map(
        lambda item: torch.empty(tuple(item), dtype=dtype, device="meta") if is_shape(item) else item,
        value,
        is_leaf=is_shape,
    )


@attrs.frozen(eq=False)
class Request:
    """What was asked for: the stages to run, and what the first of them is given.

    Args:
        function: name of the function that asks, for messages.
        stages: what is run, one after another.
        inputs: shapes of inputs, or values that are passed as they are.
        named: the same for inputs that are passed by name.
        dtype: dtype of the inputs; that of the weights if missing.
        training: the mode to run in.

    Raises:
        OptionError: an input is given in a way that cannot be meant.
    """

    function: str
    stages: list[Stage]
    inputs: tuple[object, ...]
    named: dict[str, object]
    dtype: torch.dtype | None
    training: bool

    def __attrs_post_init__(self) -> None:
        check_flags(training=self.training)
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise OptionError(
                "dtype is a dtype of torch",
                asked=repr(self),
                found=kind(self.dtype),
                write="dtype=torch.uint8",
            )
        if self.inputs and all(isinstance(side, int) for side in self.inputs):
            raise OptionError(
                "the shape of an input is one tuple",
                asked=repr(self),
                found=f"{len(self.inputs)} numbers",
                write=self.retry(cast("Shape", self.inputs)),
            )
        if not self.inputs and not self.named:
            raise OptionError(
                "the shape of an input is missing", asked=repr(self), write=self.retry((1, 3, 224, 224))
            )
        self._check_names()
        for value in (*self.inputs, *self.named.values()):
            self._check_sides(value)

    def run(self) -> Record:
        """Run the stages.

        Raises:
            ShapeError: they run, but not on these inputs.
            AnalysisError: they do not run on meta tensors.
        """
        try:
            return self._record(self.args(), self.kwargs())
        except GraftError as error:
            error.asked = error.asked or repr(self)
            raise
        except (Exception, UnfollowableError) as error:
            told = _Misfit(self, failed_call(error)).error(error)
            if not told.write and isinstance(error, TypeError) and isinstance(self.stages[0], nn.Module):
                told.write = f"{self.function}(model, {', '.join(needed_by(self.stages[0].forward))})"
            raise told from error

    def runs(self, shape: Shape) -> bool:
        """Return True if the stages run on an input of another shape."""
        try:
            self._record((_fill(shape, self._dtype()),), {})
        except (Exception, UnfollowableError):  # noqa: BLE001 - a forward may fail in any way
            return False
        return True

    def _record(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Record:
        return record(Chain(self.stages), (args, kwargs), training=self.training, strict=True)

    def args(self) -> tuple[object, ...]:
        """Make the positional arguments."""
        dtype = self._dtype()
        return tuple(_fill(value, dtype) for value in self.inputs)

    def kwargs(self) -> dict[str, object]:
        """Make the keyword arguments."""
        dtype = self._dtype()
        return {name: _fill(value, dtype) for name, value in self.named.items()}

    def retry(self, shape: Shape) -> str:
        """Write the call with another shape."""
        words = [literal(shape), *self._flags()]
        return f"{self.function}({self._model('model')}, {', '.join(words)})"

    def __repr__(self) -> str:
        words = [_said(value) for value in self.inputs]
        words += [f"{name}={_said(value)}" for name, value in self.named.items()]
        return f"{self.function}({', '.join([self._model(), *words, *self._flags()])})"

    @property
    def name(self) -> str:
        """Names of the stages."""
        return " >> ".join(_name(stage) for stage in self.stages)

    def _model(self, said: str = "") -> str:
        names = [said if isinstance(stage, nn.Module) and said else _said(stage) for stage in self.stages]
        return names[0] if len(names) == 1 else f"[{', '.join(names)}]"

    def _flags(self) -> list[str]:
        words = [f"dtype={self.dtype}"] if self.dtype is not None else []
        return [*words, "training=True"] if self.training else words

    def _dtype(self) -> torch.dtype:
        """Return the dtype of inputs: images are given in that of the weights."""
        owners = [getattr(stage, "__self__", stage) for stage in self.stages]
        weights = (p for owner in owners if isinstance(owner, nn.Module) for p in owner.parameters())
        floating = (p.dtype for p in weights if p.is_floating_point())
        return self.dtype or next(floating, torch.get_default_dtype())

    def _check_names(self) -> None:
        stage = self.stages[0]
        try:
            taken = inspect.signature(stage.forward if isinstance(stage, nn.Module) else stage).parameters
        except (TypeError, ValueError):  # some callables have no signature
            return
        known = [*taken, "dtype", "training"]
        for name in self.named:
            if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                raise OptionError(
                    f"{_name(stage)} takes no input named {name!r}",
                    asked=repr(self),
                    found=", ".join(taken) or "no inputs",
                    near=near(name, known),
                )

    def _check_sides(self, value: object) -> None:
        if is_shape(value):
            if any(side < 0 for side in value):
                raise OptionError(
                    "the sides of a shape are not negative", asked=repr(self), found=_said(value)
                )
        elif isinstance(value, (tuple, list, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                self._check_sides(item)


@attrs.frozen(eq=False)
class _Misfit:
    """Say why a request does not run: which layer refused what, and an input that does fit.

    Args:
        asked: the request.
        failed: the innermost call that failed; ``None`` where no module was called.
    """

    asked: Request
    failed: ModuleCall | None

    def error(self, error: BaseException) -> GraftError:
        """Build the error to raise in the place of the one that torch raised."""
        asked, found = repr(self.asked), f"{self._where()}{write_error(error)}"
        given = self.asked.inputs[0] if len(self.asked.inputs) == 1 and not self.asked.named else None
        shape = tuple(given) if is_shape(given) else None
        for summary, others in self._ways_out(shape) if shape is not None else ():
            other = next(filter(self.asked.runs, others), None)
            if other is not None and shape is not None:
                adapts = len(other) == len(shape) == 4 and other[2:] == shape[2:]
                write = f"adapt_input({shape[1]})" if adapts else self.asked.retry(other)
                return ShapeError(summary, asked=asked, found=found, write=write)
        inner = self._mismatch()
        if inner is not None:
            summary = f"{inner[0]} takes {inner[1]} channels, it gets {inner[2]}"
            return ShapeError(summary, asked=asked, found=found)
        return AnalysisError(f"{self.asked.name} does not run on meta tensors", asked=asked, found=found)

    def _ways_out(self, shape: Shape) -> Iterator[tuple[str, Iterable[Shape]]]:
        """Yield what may be wrong with a shape, each with shapes of which one runs if it is so."""
        name = self.asked.name
        for other in ((1, *shape), shape[1:]):
            yield f"{name} takes inputs with {len(other)} axes, this one has {len(shape)}", [other]
        where, wanted, got = self._mismatch() or ("", 0, 0)
        places = [axis for axis in range(1, len(shape)) if where and shape[axis] == got]
        if places:
            others = [(*shape[:axis], wanted, *shape[axis + 1 :]) for axis in places]
            yield f"{where} takes {wanted} channels, the input has {got}", others
        yield f"{name} does not run on an input of {write_dims(shape)}", self._sizes(shape)

    def _sizes(self, shape: Shape) -> Iterator[Shape]:
        if len(shape) > 2:
            for power in range(1, _DOUBLINGS + 1):
                yield (*shape[:-2], *(side * 2**power for side in shape[-2:]))
        stage = self.asked.stages[0]
        if isinstance(stage, nn.Module):
            try:
                usual = tensors_in(probe(stage, None).calls[-1].args)[0].shape
            except (AnalysisError, IndexError):
                return
            yield (*shape[:1], *usual[1:])

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
        got = ", ".join(write_dims(tensor.shape) for tensor in self._given()[:3])
        return f"{place} got {got}: " if got else f"{place}: "


def stages_of(model: object) -> list[Stage]:
    """List what is to be run.

    Raises:
        ModelError: a part is nothing that can be run.
    """
    stages = list(model) if isinstance(model, (list, tuple)) else [model]
    for stage in stages:
        if isinstance(stage, nn.Module):
            check_model(stage)
        elif isinstance(stage, type) or not callable(stage):
            raise ModelError(
                "output_shape takes a model, another callable or a list of them",
                asked=f"output_shape({literal(stage)}, ...)",
                found="a class" if isinstance(stage, type) else kind(stage),
                write=f"output_shape({stage.__name__}(), ...)" if isinstance(stage, type) else "",
            )
    if not stages:
        raise ModelError("output_shape takes at least one stage", asked="output_shape([], ...)")
    return cast("list[Stage]", stages)


def _name(stage: Callable[..., object]) -> str:
    """Name a stage in a sentence."""
    return getattr(stage, "__name__", type(stage).__name__)


def _said(value: object) -> str:
    """Write a stage or an input as an argument, without its contents."""
    if isinstance(value, nn.Module) or is_shape(value) or isinstance(value, (bool, int, float, str)):
        return literal(tuple(value) if isinstance(value, list) else value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(name)}: {_said(item)}" for name, item in value.items()) + "}"
    return literal(value) if inspect.isroutine(value) or value is None else f"<{kind(value)}>"

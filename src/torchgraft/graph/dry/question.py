"""The question for shapes: what is run and on which inputs, checked and written as it was asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

import attrs
import torch
from torch import nn

from torchgraft.errors import GraftError, ModelError, OptionError
from torchgraft.graph.checks import check_model
from torchgraft.graph.dry.misfit import Misfit
from torchgraft.graph.dry.nested import Shape, is_shape, made
from torchgraft.graph.dry.stages import DryRecorder, Stage, dry_run
from torchgraft.graph.probe import Example, needed_by
from torchgraft.graph.proxy import UnfollowableError
from torchgraft.graph.run import Run
from torchgraft.text import check_flags, kind, literal, near


@attrs.frozen(eq=False)
class Question:
    """What was asked of a dry run: stages, and what the first of them is given.

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

    def run(self) -> Run:
        """Run the stages.

        Raises:
            ShapeError: they run, but not on these inputs.
            AnalysisError: they do not run on meta tensors.
        """
        recorder = DryRecorder(self.training)
        try:
            return dry_run(self.stages, self.args(), self.kwargs(), recorder)
        except GraftError as error:
            error.asked = error.asked or repr(self)
            raise
        except (Exception, UnfollowableError) as error:
            only = self.inputs[0] if len(self.inputs) == 1 and not self.named else None
            misfit = Misfit(
                asked=repr(self),
                retry=self.retry,
                name=" >> ".join(_name(stage) for stage in self.stages),
                shape=tuple(only) if is_shape(only) else None,
                runs=self._runs,
                failed=recorder.failed,
                stage=self.stages[0],
            )
            told = misfit.error(error)
            if not told.write and isinstance(error, TypeError) and isinstance(self.stages[0], nn.Module):
                told.write = f"{self.function}(model, {', '.join(needed_by(self.stages[0].forward))})"
            raise told from error

    def args(self) -> tuple[object, ...]:
        """Make the positional arguments."""
        dtype = self._dtype()
        return tuple(made(value, dtype) for value in self.inputs)

    def kwargs(self) -> dict[str, object]:
        """Make the keyword arguments."""
        dtype = self._dtype()
        return {name: made(value, dtype) for name, value in self.named.items()}

    def example(self) -> Example:
        """Make the inputs as an example; by name where one is given by name."""
        args, kwargs = self.args(), self.kwargs()
        if kwargs and isinstance(self.stages[0], nn.Module):
            return dict(inspect.signature(self.stages[0].forward).bind_partial(*args, **kwargs).arguments)
        return args

    def retry(self, shape: Shape) -> str:
        """Write the call with another shape."""
        words = [literal(shape), *self._flags()]
        return f"{self.function}({self._model('model')}, {', '.join(words)})"

    def __repr__(self) -> str:
        words = [_said(value) for value in self.inputs]
        words += [f"{name}={_said(value)}" for name, value in self.named.items()]
        return f"{self.function}({', '.join([self._model(), *words, *self._flags()])})"

    def _runs(self, shape: Shape) -> bool:
        try:
            dry_run(self.stages, (made(shape, self._dtype()),), {}, DryRecorder(self.training))
        except (Exception, UnfollowableError):  # noqa: BLE001 - a forward may fail in any way
            return False
        return True

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

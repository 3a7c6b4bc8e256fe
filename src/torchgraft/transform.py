"""Transforms: frozen values that are functions from a model to a new model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, final

import attrs
import torch
from torch import nn

from torchgraft.calls import tell
from torchgraft.errors import GraftError, OptionError, TargetError
from torchgraft.explanation import Explanation, explain_change
from torchgraft.graph.checks import check_model
from torchgraft.graph.clone import clone
from torchgraft.graph.draft import Draft
from torchgraft.graph.history import Deferred, History, history_of, set_history
from torchgraft.graph.level import check_followed
from torchgraft.graph.outline import named_tensors, outline_of
from torchgraft.graph.probe import Example
from torchgraft.text import call, kind, literal, shown, spelled


@attrs.frozen(repr=False)
class Transform:
    """Describe an edit; calling it with a model applies it to a clone.

    A transform prints as the call that made it, is equal by content, hashes and pickles.
    """

    name: ClassVar[str] = "transform"

    @final
    def __call__(
        self, model: nn.Module, *, example: Example | None = None, seed: int | None = None
    ) -> nn.Module:
        """Return the edited model; see ``pipe``."""
        return pipe(model, self, example=example, seed=seed)

    def explain(
        self, model: nn.Module, *, example: Example | None = None, seed: int | None = None
    ) -> Explanation:
        """Tell what it would do to a model; the result is not kept.

        Args:
            model: the model; it is only read.
            example: as for ``pipe``.
            seed: as for ``pipe``.

        Returns:
            The explanation: print it, or read its fields.

        Raises:
            GraftError: it cannot be done.

        Example:
            >>> from torchgraft import swap_head
            >>> print(swap_head(3).explain(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))))
            Sequential: 43 parameters, 43 trainable in 4 tensors
              step 1     swap_head(3)
              runs       the root Python
              reshaped   1.weight 2 5 -> 3 5, 1.bias 2 -> 3
              shape      1 n 2 -> n 3
        """
        result = pipe(model, self, example=example, seed=seed)
        return explain_change(model, result, self.steps(), example)

    def __rshift__(self, other: Transform) -> Transform:
        return compose(self, other)

    def _edit(self, draft: Draft) -> None:
        raise NotImplementedError(type(self).__name__)

    def steps(self) -> tuple[Transform, ...]:
        """Return the single edits it consists of."""
        return (self,)

    def __repr__(self) -> str:
        return call(self.name, self)


@attrs.frozen(repr=False)
class Compose(Transform):
    """Apply several transforms, the first one first."""

    name: ClassVar[str] = "compose"
    parts: tuple[Transform, ...] = ()

    def _edit(self, draft: Draft) -> None:
        for part in self.parts:
            part._edit(draft)

    def steps(self) -> tuple[Transform, ...]:
        """Return the parts, which are single edits."""
        return self.parts

    def __repr__(self) -> str:
        if not self.parts:
            return "identity()"
        return f"compose({', '.join(map(repr, self.parts))})"


@spelled
def compose(*transforms: Transform) -> Transform:
    """Join transforms into one that applies them from left to right.

    Args:
        transforms: any number; compositions among them are flattened.

    Returns:
        One transform; a single one is returned as it is, none gives the identity.

    Raises:
        OptionError: something is not a transform.

    Example:
        >>> from torchgraft import freeze, swap_head
        >>> compose(freeze("layer1"), swap_head(10))
        compose(freeze("layer1"), swap_head(10))
    """
    steps = tuple(step for transform in _checked(transforms) for step in transform.steps())
    return steps[0] if len(steps) == 1 else Compose(steps)


def identity() -> Transform:
    """Return the transform that changes nothing.

    Returns:
        The transform; its result is a clone.

    Example:
        >>> identity()
        identity()
    """
    return Compose()


@spelled
def pipe(
    model: nn.Module, *transforms: Transform, example: Example | None = None, seed: int | None = None
) -> nn.Module:
    """Apply transforms to a clone of a model, the first one first.

    The model is only read. Untouched weights are shared copy-on-write, so the result is
    independent of the model and costs no memory until one of the two is written to.

    Args:
        model: any module that is not a wrapper.
        transforms: what to do.
        example: an input, a tuple of arguments or a mapping of keyword arguments, for
            forwards that decide on sizes and models whose input cannot be guessed.
        seed: seed for new parameters; the global generator is then left where it was.

    Returns:
        A ``torch.fx.GraphModule`` that is also of the class of the model. A forward that no step
        edited runs as it stands, with all that Python decides in it; its ``graph`` is traced when
        somebody reads it. An edited one runs its graph, and is followed again for every new way
        of calling it. A model that uses a name which a GraphModule needs keeps its class alone.

    Raises:
        ModelError: the model is a wrapper or no module.
        OptionError: something is not a transform.
        GraftError: a step cannot be done; the error has a note with the step.

    Example:
        >>> from torchvision.models import resnet18
        >>> from torchgraft import swap_head
        >>> pipe(resnet18(), swap_head(10)).fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise OptionError("a seed is an integer", found=f"seed={shown(seed)}", write="seed=0")
    with seeded(seed):
        return _made(model, transforms, example)


def replayed(model: nn.Module, transforms: Sequence[Transform], example: Example | None = None) -> nn.Module:
    """Do to a model without values what was done to one with values: set up the structure alone.

    Steps that do nothing but fill tensors are kept in its history and leave the tensors alone.

    Args:
        model: the model, with its parameters on the meta device; it is only read.
        transforms: what was done.
        example: as for ``pipe``.

    Returns:
        As for ``pipe``.

    Raises:
        GraftError: a step cannot be done; the error has a note with the step.

    Example:
        >>> from torchgraft import freeze
        >>> model = nn.Sequential(nn.Linear(4, 3, device="meta"))
        >>> replayed(model, [freeze("0")])[0].weight.device
        device(type='meta')
    """
    return _made(model, tuple(transforms), example, values=False)


def _made(
    model: nn.Module, transforms: tuple[object, ...], example: Example | None, *, values: bool = True
) -> nn.Module:
    steps = [step for transform in _checked(transforms) for step in transform.steps()]
    check_model(model)
    outline, drawn = outline_of(model), torch.get_rng_state()
    with torch.inference_mode(mode=False):
        draft = Draft(model, example, values=values)
        given = draft.example
        for number, step in enumerate(steps, 1):
            try:
                draft.changed()
                draft.steps.append(repr(step))
                step._edit(draft)
            except GraftError as error:
                _explain(error, step, number, len(steps))
                raise
        result = draft.seal()
    before = history_of(model)
    history = History.of(draft, (*before.steps, *map(repr, steps)), before, outline, given)
    if values and any(tensor.is_meta for _, tensor in named_tensors(model)):
        base = before.deferred.base or clone(model)
        edits = (*before.deferred.edits, (tuple(steps), drawn, example))
        history = attrs.evolve(history, deferred=Deferred(base, edits))
    set_history(result, history)
    return result


def done(deferred: Deferred, base: nn.Module) -> nn.Module:
    """Do to a model with values what was done to it without them.

    Args:
        deferred: what was done.
        base: the model that it was done to, with values; it is only read.

    Returns:
        The model that the same pipes make of one with values, new parameters included.
    """
    with torch.random.fork_rng(devices=[]):
        for steps, drawn, example in deferred.edits:
            torch.set_rng_state(drawn)
            base = _made(base, steps, example)
    return base


@spelled
def trace(model: nn.Module, *, example: Example | None = None) -> nn.Module:
    """Return a clone of a model whose forward can be read as a graph, and edited by hand.

    The forward of the class is run until ``recompile()`` is called or ``graph`` is set.

    Args:
        model: any module that is not a wrapper.
        example: as for ``pipe``; it is remembered for later edits.

    Returns:
        As for ``pipe``.

    Raises:
        ModelError: the model is a wrapper or no module.
        TraceError: torch.fx cannot follow the root's forward.

    Example:
        >>> from torch import nn
        >>> print(trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU())).code.strip())
        def forward(self, input):
            input_1 = input
            _0 = getattr(self, "0")(input_1);  input_1 = None
            _1 = getattr(self, "1")(_0);  _0 = None
            return _1
    """
    result = pipe(model, example=example)
    unfollowed = history_of(result).unfollowed_error
    if unfollowed is not None:
        raise unfollowed
    check_followed(result)
    return result


def _checked(transforms: tuple[object, ...]) -> tuple[Transform, ...]:
    for item in transforms:
        if not isinstance(item, Transform):
            raise OptionError(
                "a step of a pipe must be a transform",
                asked=shown(item),
                found=kind(item),
                write=f"*{shown(item)}" if isinstance(item, (list, tuple)) else "<a transform>",
            )
    return transforms  # type: ignore[return-value]  # all were checked


def _explain(error: GraftError, step: Transform, number: int, count: int) -> None:
    """Fill in the call as written, and the same call with the nearest right name."""
    target = literal(getattr(step, "target", ""))
    if isinstance(error, TargetError) and error.outside is not None and target != literal(error.wrong):
        error.swap = (
            target,
            f"{f'({target})' if ' ' in target else f'at({target})'} - {literal(error.outside)}",
        )
    tell(error, repr(step))
    error.step = number
    error.add_note(f"while applying step {number} of {count}: {step!r}")


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let what is made depend on a seed alone, where there is one, and leave the generator where it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

"""Transfer: weights from a file, a state dict or a model into a new model, in one call."""

from __future__ import annotations

from torch import nn

from torchgraft.edits.load_weights import LoadWeights, Source, load_weights
from torchgraft.errors import GraftError
from torchgraft.graph.probe import Example
from torchgraft.select import Target
from torchgraft.text import spelled
from torchgraft.transform import pipe


@spelled
def partial_load(
    model: nn.Module,
    source: Source,
    *,
    exclude: Target | tuple[Target, ...] = (),
    min_coverage: float = 0.5,
    init: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Return a model with the weights that a file or a state dict has for it.

    Args:
        model: the model; it is only read.
        source: as for ``load_weights``.
        exclude: what stays as it is: targets, or paths and globs of tensors.
        min_coverage: share of the model's tensors, but those excluded, that has to be loaded.
        init: initialiser for what is not loaded, such as ``"kaiming_normal"``; it keeps its
            values without one.
        seed: seed for the initialiser; the global generator is then left where it was.

    Returns:
        A new model, as ``pipe`` gives it; ``load_report`` gives the account of it.

    Raises:
        CheckpointError: the source holds no weights, or some that cannot be loaded.
        CoverageError: less of the model is filled.
        TargetError: what is to be excluded is not there.

    Example:
        >>> from torchgraft import load_report
        >>> weights = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)).state_dict()
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
        >>> load_report(partial_load(model, weights, exclude="1", init="zeros")).summary
        'loaded 100.0 % of parameters (2 of 2 tensors); 2 excluded'
    """
    step = load_weights(source, exclude=exclude, min_coverage=min_coverage, init=init)
    return _filled(model, step, seed=seed)


@spelled
def transfer(
    source: nn.Module,
    target: nn.Module,
    *,
    example: Example | None = None,
    policy: str = "same_function",
    min_coverage: float = 0.5,
    allow_contradicted: bool = False,
) -> nn.Module:
    """Return the target with the weights of a model that does the same and may be written otherwise.

    Args:
        source: the model that has the weights; it is only read.
        target: the model that gets them; it is only read.
        example: an input, where it cannot be guessed.
        policy: as for ``align``.
        min_coverage: share of the target's tensors that has to be filled.
        allow_contradicted: fill also what sees other values in the target than in the source.

    Returns:
        A new model, as ``pipe`` gives it; ``load_report`` gives the account of it.

    Raises:
        AlignmentError: layers of the target see other values than those of the source that
            they stand for: the two do not do the same.
        CoverageError: less of the target is filled.

    Example:
        >>> source, target = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> transfer(source, target).weight.equal(source.weight)
        True
    """
    step = load_weights(
        source,
        by="structure",
        policy=policy,
        min_coverage=min_coverage,
        allow_contradicted=allow_contradicted,
    )
    return _filled(target, step, example=example)


@spelled
def transfer_weights(
    source: nn.Module,
    target: nn.Module,
    *,
    exclude: Target | tuple[Target, ...] = (),
    min_coverage: float = 0.5,
    example: Example | None = None,
    allow_contradicted: bool = False,
) -> nn.Module:
    """Return the target with the weights of another model, but for what is excluded.

    Args:
        source: the model that has the weights; it is only read.
        target: the model that gets them; it is only read.
        exclude: what stays as it is in the target: targets, or paths and globs of tensors.
        min_coverage: share of the target's tensors, but those excluded, that has to be filled.
        example: an input, where it cannot be guessed.
        allow_contradicted: as for ``transfer``.

    Returns:
        A new model, as ``pipe`` gives it; ``load_report`` gives the account of it.

    Raises:
        AlignmentError: as for ``transfer``.
        CoverageError: less of the target is filled.
        TargetError: what is to be excluded is not there.

    Example:
        >>> from torchgraft import load_report
        >>> source, target = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(2))
        >>> load_report(transfer_weights(source, target, exclude="1")).excluded
        ('1.weight', '1.bias')
    """
    step = load_weights(
        source,
        by="structure",
        exclude=exclude,
        min_coverage=min_coverage,
        allow_contradicted=allow_contradicted,
    )
    return _filled(target, step, example=example)


def _filled(
    model: nn.Module, step: LoadWeights, *, example: Example | None = None, seed: int | None = None
) -> nn.Module:
    """Do the one step; an error is about the call that was written, and not about the step."""
    try:
        return pipe(model, step, example=example, seed=seed)
    except GraftError as error:
        error.asked, error.step = "", 0
        raise

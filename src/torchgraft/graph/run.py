"""What a run of a model told: what every module got and gave, with meta tensors in place of tensors."""

from __future__ import annotations

import attrs
from torch import nn

Arguments = tuple[tuple[object, ...], dict[str, object]]
"""Positional and keyword arguments."""


@attrs.frozen(eq=False)
class ModuleCall:
    """What one call of a module got and gave, with meta tensors in place of tensors.

    Args:
        path: where the module stands.
        module: the module itself.
        args: positional arguments.
        kwargs: keyword arguments.
        output: what it returned.
        started: when it began, on the clock of the run.
        ended: when it returned.
    """

    path: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    output: object
    started: int = 0
    ended: int = 0


@attrs.frozen(eq=False)
class Run:
    """What a run did.

    Args:
        calls: what the calls of modules got and gave, in the order in which they ended.
        output: what the model returned; ``None`` of a run on real values.
        training: the mode.
    """

    calls: tuple[ModuleCall, ...] = attrs.field(default=(), repr=False, kw_only=True)
    output: object = attrs.field(default=None, repr=False, kw_only=True)
    training: bool = attrs.field(default=False, kw_only=True)

    def of(self, module: nn.Module) -> list[ModuleCall]:
        """Return the calls of one module."""
        return [call for call in self.calls if call.module is module]


UNTIL, FAILED = "_torchgraft_calls", "_torchgraft_failed"
"""Where an error of a run keeps the calls that ended before it, and the one that failed."""


def calls_until(error: BaseException | None) -> tuple[ModuleCall, ...]:
    """Return the calls that ended in a run before it failed with an error."""
    return getattr(error, UNTIL, ())


def failed_call(error: BaseException) -> ModuleCall | None:
    """Return the innermost call that failed with an error; its tensors are those of the run."""
    return getattr(error, FAILED, None)

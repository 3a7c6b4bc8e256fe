"""Run a model on meta tensors and note what every module got and gave.

The run happens on shadows, so only the model's own hooks fire, nothing is allocated, and what
a forward writes on itself is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from typing import TypeVar, cast

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from torchgraft.graph.caches import fresh_caches
from torchgraft.graph.clone import clone
from torchgraft.graph.dry.known import Constants, reads_values, shapes_only
from torchgraft.graph.modes import no_autocast_on_meta
from torchgraft.graph.proxy import to_meta
from torchgraft.graph.shadow import Shadows, mark


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
    """The calls of one run, in the order in which they ended."""

    calls: tuple[ModuleCall, ...]
    output: object
    training: bool

    def of(self, module: nn.Module) -> list[ModuleCall]:
        """Return the calls of one module."""
        return [call for call in self.calls if call.module is module]


def run_on_meta(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object] | None = None,
    *,
    training: bool,
    recorder: Recorder | None = None,
) -> Run:
    """Run a model on meta tensors; values of constants are known where the forward reads them.

    Args:
        model: any module; it is only read.
        args: positional arguments; their tensors are moved to the meta device.
        kwargs: keyword arguments, likewise.
        training: ``False`` for evaluation mode everywhere; ``True`` for training mode.
        recorder: what takes note of the calls, if that is more than the usual.

    Returns:
        The calls and the output.
    """
    if recorder is None:
        return knowing(
            lambda known: run_on_meta(
                model, args, kwargs, training=training, recorder=Recorder(training, known)
            )
        )
    shadow = Shadows(recorder).of(model)
    given = tuple(to_meta(a) for a in args)
    named = {name: to_meta(a) for name, a in (kwargs or {}).items()}
    python = random.getstate()
    try:  # what a forward draws or seeds is not part of the model
        quiet = torch.random.fork_rng(devices=[])
        known = shapes_only(recorder.constants) if recorder.constants else contextlib.nullcontext()
        meta = torch.device("meta")
        with fresh_caches(model), quiet, torch.no_grad(), no_autocast_on_meta(), meta, known:
            output = shadow(*given, **named)
    except Exception as error:
        vars(error)[_UNTIL] = tuple(recorder.calls)
        raise
    finally:
        random.setstate(python)
    return Run(tuple(recorder.calls), output, training)


_UNTIL = "_torchgraft_calls"


def calls_until(error: BaseException | None) -> tuple[ModuleCall, ...]:
    """Return the calls that ended in a run before it failed with an error."""
    return getattr(error, _UNTIL, ())


def output_of(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object] | None = None) -> object:
    """Return what the output of a module looks like, by a run on meta tensors, else on zeros."""
    try:
        return run_on_meta(module, args, kwargs, training=False).output
    except Exception as error:
        if not reads_values(error):
            raise
    return on_zeros(module, args, kwargs or {})


def on_zeros(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Run a clone of a module once on zeros, and return what its output looks like."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    trial = clone(module).eval()
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        given, named = tree_map_only(
            torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (args, kwargs)
        )
        return to_meta(trial(*given, **named))


_T = TypeVar("_T")


def knowing(run: Callable[[Constants | None], _T]) -> _T:
    """Make a run; one that reads values is made again, with small constants known."""
    try:
        return run(None)
    except Exception as error:
        if not reads_values(error):
            raise
    return run(Constants())


class Recorder:
    """Take note of every call in a run.

    Args:
        training: the mode that forwards read.
        constants: what is known of small tensors; nothing by default.
    """

    def __init__(self, training: bool, constants: Constants | None = None) -> None:
        self.calls: list[ModuleCall] = []
        self.constants = constants
        self.modal: set[str] = set()
        self.mode = training
        self._clock = 0
        self._meta: dict[int, torch.Tensor] = {}

    def call(self, shadow: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the forward of a shadow."""
        hooked = shadow._forward_hooks or shadow._forward_pre_hooks
        forward: Callable[..., object] = shadow._call_impl if hooked else shadow.forward
        # Containers are copied: a caller may go on to fill the list that it passed.
        given = cast("tuple[object, ...]", self.noted(args)), cast("dict[str, object]", self.noted(kwargs))
        me = mark(shadow)
        self._clock = started = self._clock + 1
        try:
            output = forward(*args, **kwargs)
        except Exception as error:
            # What has no weights, as monitors and quantisers have none, may look at values.
            if not reads_values(error) or any(p.ndim > 1 for p in me.source.parameters()):
                error.add_note(f"in {me.path or 'the root'}, a {type(me.source).__name__}")
                raise
            output = self.hidden(args, kwargs, on_zeros(me.source, args, kwargs))
        self._clock += 1
        self.calls.append(ModuleCall(me.path, me.source, *given, self.noted(output), started, self._clock))
        return output

    def hidden(self, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:  # noqa: ARG002 - for those who look at operations
        """Take note of a call whose operations cannot be seen."""
        return output

    def noted(self, value: object) -> object:
        """Keep of an argument or a result what it looks like."""
        return to_meta(value)

    def tensor(self, shadow: nn.Module, name: str, value: torch.Tensor) -> object:  # noqa: ARG002 - protocol
        """Give the meta tensor of a tensor."""
        return self.convert(value)

    def assign(self, shadow: nn.Module, name: str, value: object) -> None:
        """Let a forward write on its shadow."""
        for store in ("_parameters", "_buffers"):
            if name in mark(shadow).source.__dict__[store]:
                getattr(shadow, store)[name] = value

    def training(self, shadow: nn.Module) -> bool:
        """Give the mode of the run, and note who asks."""
        self.modal.add(mark(shadow).path)
        return self.mode

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the meta tensor of a tensor, one for each."""
        known = self._meta.get(id(tensor))
        if known is None:
            known = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                known = nn.Parameter(known, requires_grad=tensor.requires_grad)
            self._meta[id(tensor)] = known
            if self.constants is not None:
                self.constants.learn(known, tensor)
        return known

"""Say where a forward was followed, and where it could not be."""

from __future__ import annotations

import dis
import functools
import sys
import traceback
import types
from collections.abc import Mapping

import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.proxy import NeedsValues, UnfollowableError, tensors_in


def place(module: nn.Module, path: str) -> str:
    """Name a module and where it stands."""
    return f"{type(module).__name__} at {path!r}" if path else f"the root {type(module).__name__}"


def traced_for(module: nn.Module, path: str, values: Mapping[fx.Node, object]) -> str:
    """Say what input a forward was traced for, and the line that decided."""
    frame = user_frame(traceback.extract_stack())
    given = [value for node, value in values.items() if node.op == "placeholder"]
    sizes = ", ".join("x".join(str(side) for side in tensor.shape) for tensor in tensors_in(given))
    where = f"{frame.filename}:{frame.lineno}" if frame else "its forward"
    return f"{place(module, path)} was traced for an input of {sizes} ({where})"


def cannot_follow(error: BaseException, module: nn.Module, path: str) -> TraceError:
    """Turn what stopped a trace into an error that names module, file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = user_frame(frames) or frames[-1]
    undecided = isinstance(error, NeedsValues)
    what = (
        "decides on a value, and no input runs on meta tensors to tell it"
        if undecided
        else f"{type(error).__name__}: {error}"
    )
    return TraceError(
        f"the forward of {place(module, path)} cannot be followed by torch.fx",
        module=path,
        filename=frame.filename,
        lineno=frame.lineno or 0,
        found=f"{frame.filename}:{frame.lineno}: {frame.line} ({what})",
        write="pipe(model, ..., example=<an input>)"
        if undecided
        else "an edit at a place outside this forward, or the line without that decision",
    )


_OURS = str(__file__).rpartition("/")[0].rpartition("/")[0]
_TORCH = str(torch.__file__).rpartition("/")[0]


def user_frame(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
    """Return the innermost frame of the forward that is not torch's or ours."""
    for frame in reversed(frames):
        if not frame.filename.startswith((_OURS, _TORCH)):
            return frame
    return None


def line_of_forward() -> tuple[str, int]:
    """Return file and line of the forward that is being followed."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((_OURS, _TORCH)):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)


def check_forward(module: nn.Module, *, has_values: bool) -> None:
    """Check, before a forward is followed, what its proxies could not notice.

    Raises:
        UnfollowableError: it was replaced on the instance by a function of something else.
        NeedsValues: it compares a value that it computes with ``None``.
    """
    if not has_values and compares_with_none(module):
        raise NeedsValues
    own = vars(module).get("forward")
    if own is not None and getattr(own, "__self__", None) is not module:
        raise UnfollowableError("its forward was replaced on the instance")


def names_asked_for_none(module: nn.Module) -> frozenset[str]:
    """Name the local variables that a forward compares with ``None``, which no proxy can answer."""
    code = getattr(type(module).forward, "__code__", None)
    return _asked_for_none(code) if code is not None else frozenset()


def compares_with_none(module: nn.Module) -> bool:
    """Tell whether a forward compares a value that it computed with ``None``."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None:
        return False
    count = code.co_argcount + code.co_kwonlyargcount
    return bool(_asked_for_none(code) - set(code.co_varnames[:count]))


@functools.lru_cache(maxsize=4096)
def _asked_for_none(code: types.CodeType) -> frozenset[str]:
    found, last = set(), ""
    for step in dis.get_instructions(code):
        if last and ("NONE" in step.opname or step.opname == "IS_OP"):
            found.add(last)
        if step.opname == "LOAD_FAST":
            last = str(step.argval)
        elif not (step.opname == "LOAD_CONST" and step.argval is None):
            last = ""
    return frozenset(found)

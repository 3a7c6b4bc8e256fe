"""Say where a forward was followed, and where it could not be."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import traceback
import types
from collections.abc import Iterator, Mapping

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


def line_of_forward(last: types.CodeType) -> tuple[tuple[str, int], ...]:
    """Return files and lines of the forward that is being followed, the innermost first.

    Args:
        last: the code that calls forwards, where the walk up the stack ends.
    """
    frame: types.FrameType | None = sys._getframe(2)
    found: list[tuple[str, int]] = []
    while frame is not None and frame.f_code is not last:
        if not frame.f_code.co_filename.startswith((_OURS, _TORCH)):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def check_forward(module: nn.Module, *, has_values: bool) -> None:
    """Check, before a forward is followed, what its proxies could not notice.

    Raises:
        UnfollowableError: it was replaced on the instance by a function of something else.
        NeedsValues: it compares a value that it computes with ``None``.
    """
    asked = {_compares(code, main=main) for code, main in _codes(module)}
    if "identity" in asked:
        raise UnfollowableError("it compares a value by identity")
    if not has_values and "none" in asked:
        raise NeedsValues
    own = vars(module).get("forward")
    if own is not None and getattr(own, "__self__", None) is not module:
        raise UnfollowableError("its forward was replaced on the instance")


def names_asked_for_none(module: nn.Module) -> frozenset[str]:
    """Name the local variables that a forward compares with ``None``, which no proxy can answer."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return _asked_for_none(code) if code is not None else frozenset()


def _codes(module: nn.Module) -> Iterator[tuple[types.CodeType, bool]]:
    """Yield the code of a forward, and that of the methods it names."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is not None:
        yield code, True
        for name in code.co_names:
            method = getattr(type(module), name, None)
            inner = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if inner is not None and not inner.co_filename.startswith((_OURS, _TORCH)):
                yield inner, False


@functools.lru_cache(maxsize=4096)
def _compares(code: types.CodeType, *, main: bool) -> str:
    """Tell what code asks by identity: ``"none"``, ``"identity"`` for another value, or nothing.

    Arguments of the forward itself that are compared with ``None`` are guarded.
    """
    count = code.co_argcount + code.co_kwonlyargcount
    arguments = set(code.co_varnames[:count]) if main else {"self"}
    root, path, answer, last = "", 0, "", None
    touched: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD_FAST"):
            names = (
                step.argval if isinstance(step.argval, tuple) else (step.argval,)
            )  # newer Pythons load pairs
            root, path = str(names[-1]), 0
            touched.update(map(str, names))
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path += 1
        elif "NONE" in step.opname or step.opname == "IS_OP":
            if step.opname == "IS_OP" and not (last is not None and last.argval is None):
                if touched - {"self"}:
                    return "identity"
            elif root not in arguments or (path and root != "self"):
                answer = "none"
        elif not (step.opname == "LOAD_CONST" and step.argval is None) and step.opname != "COPY":
            root, path = "", 0
        if step.opname.startswith(("STORE", "POP_JUMP", "RETURN")):
            touched.clear()
        last = step
    return answer


@functools.lru_cache(maxsize=4096)
def _asked_for_none(code: types.CodeType) -> frozenset[str]:
    found, last = set(), ""
    for step in dis.get_instructions(code):
        if last and ("NONE" in step.opname or step.opname == "IS_OP"):
            found.add(last)
        if step.opname.startswith("LOAD_FAST"):
            last = str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)
        elif not (step.opname == "LOAD_CONST" and step.argval is None):
            last = ""
    return frozenset(found)

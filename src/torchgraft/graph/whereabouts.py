"""Say where a forward was followed, and where it could not be."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
import traceback
import types
from collections.abc import Mapping

import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.proxy import UNKNOWN, NeedsValues, tensors_in


def place(module: nn.Module, path: str) -> str:
    """Name a module and where it stands."""
    return f"{type(module).__name__} at {path!r}" if path else f"the root {type(module).__name__}"


def traced_for(module: nn.Module, path: str, lines: Lines, values: Mapping[fx.Node, object]) -> str:
    """Say what input a forward was traced for, and the line that decided."""
    given = [value for node, value in values.items() if node.op == "placeholder"]
    sizes = ", ".join("x".join(str(side) for side in tensor.shape) for tensor in tensors_in(given))
    where = "{}:{}".format(*lines[0]) if lines else "its forward"
    return f"{place(module, path)} was traced for an input of {sizes} ({where})"


def cannot_follow(
    error: BaseException, module: nn.Module, path: str, values: Mapping[fx.Node, object] | None = None
) -> TraceError:
    """Turn what stopped a trace into an error that names module, file and line."""
    filename, number, line = stopped_at(error, module)
    undecided = isinstance(error, NeedsValues)
    what = (
        "decides on a value, and no input runs on meta tensors to tell it"
        if undecided
        else f"{type(error).__name__}: {shown(str(error), values or {})}"
    )
    remedy = next((line for name, line in _SWITCHES.items() if getattr(module, name, None) is True), "")
    return TraceError(
        f"the forward of {place(module, path)} cannot be followed by torch.fx",
        module=path,
        filename=filename,
        lineno=number,
        found=f"{filename}:{number}: {line} ({what})",
        write="pipe(model, ..., example=<an input>)"
        if undecided
        else remedy or "an edit at a place outside this forward, or the line without that decision",
    )


_SWITCHES = {
    "grad_checkpointing": "model.set_grad_checkpointing(False) before",
    "gradient_checkpointing": "model.gradient_checkpointing_disable() before",
}
"""Flags under which a forward is run in parts again, with the line that takes them off."""


def stopped_at(error: BaseException, module: nn.Module) -> tuple[str, int, str]:
    """Return file, number and text of the line of a forward that an error comes from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)]
    frame = next((f for f in reversed(frames) if not f.filename.startswith(_TORCH)), None)
    if frame is None and frames:
        frame = frames[-1]
    if frame is not None:
        return frame.filename, frame.lineno or 0, frame.line or ""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    name, number = (code.co_filename, code.co_firstlineno) if code is not None else ("", 0)
    return name, number, linecache.getline(name, number).strip()


NAMED = re.compile(r"Proxy\((\w+)\)")
"""What stands in a text for a value that was not known when the text was made."""


def shown(text: str, values: Mapping[fx.Node, object]) -> str:
    """Fill in, for a reader, the values that a text was made with, as far as they are known."""
    known = {node.name: value for node, value in values.items()}

    def show(found: re.Match[str]) -> str:
        value = known.get(found[1], UNKNOWN)
        return "x".join(map(str, value.shape)) if isinstance(value, torch.Tensor) else str(value)

    return NAMED.sub(show, text).replace("immutable_list", "list").replace("immutable_dict", "dict")


_OURS = str(__file__).rpartition("/")[0].rpartition("/")[0] + "/"
_TORCH = str(torch.__file__).rpartition("/")[0] + "/"
Lines = tuple[tuple[str, int], ...]


def line_of_forward(last: types.CodeType, ran: dict[types.CodeType, dict[str, object]]) -> Lines:
    """Return files and lines of the forward that is being followed, the innermost first.

    Args:
        last: the code that calls forwards, where the walk up the stack ends.
        ran: takes note of the functions that run, with their globals.
    """
    frame: types.FrameType | None = sys._getframe(2)
    found: list[tuple[str, int]] = []
    while frame is not None and frame.f_code is not last:
        if not frame.f_code.co_filename.startswith((_OURS, _TORCH)):
            found.append((frame.f_code.co_filename, frame.f_lineno))
            ran[frame.f_code] = frame.f_globals
        frame = frame.f_back
    return tuple(found)

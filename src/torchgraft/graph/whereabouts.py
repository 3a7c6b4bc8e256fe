"""Say where a forward was followed, and where it could not be."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import torch
from torch import fx, nn

from torchgraft.errors import TraceError
from torchgraft.graph.proxy import DataDependentError


def place(module: nn.Module, path: str) -> str:
    """Name a module and where it stands."""
    return f"{type(module).__name__} at {path!r}" if path else f"the root {type(module).__name__}"


def traced_for(module: nn.Module, path: str, values: Mapping[fx.Node, object]) -> str:
    """Say what input a forward was traced for, and the line that decided."""
    frame = user_frame(traceback.extract_stack())
    sizes = ", ".join(
        "x".join(str(side) for side in value.shape)
        for node, value in values.items()
        if node.op == "placeholder" and isinstance(value, torch.Tensor)
    )
    where = f"{frame.filename}:{frame.lineno}" if frame else "its forward"
    return f"{place(module, path)} was traced for an input of {sizes} ({where})"


def cannot_follow(error: Exception, module: nn.Module, path: str) -> TraceError:
    """Turn what stopped a trace into an error that names module, file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = user_frame(frames) or frames[-1]
    what = "data of a tensor" if isinstance(error, DataDependentError) else type(error).__name__
    return TraceError(
        f"the forward of {place(module, path)} cannot be followed by torch.fx",
        module=path,
        filename=frame.filename,
        lineno=frame.lineno or 0,
        found=f"{frame.filename}:{frame.lineno}: {frame.line} ({what}: {error})",
        write="edit at a place outside this forward, or rewrite the line without that decision",
    )


_OURS = str(__file__).rpartition("/")[0]
_TORCH = str(torch.__file__).rpartition("/")[0]


def user_frame(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
    """Return the innermost frame of the forward that is not torch's or ours."""
    for frame in reversed(frames):
        if not frame.filename.startswith((_OURS, _TORCH)):
            return frame
    return None

"""What is checked when a draft is sealed: names that graphs use, and shapes changed on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torchgraft.errors import AnalysisError, ShapeError, TargetError
from torchgraft.graph.clone import clone
from torchgraft.graph.deep.record import record
from torchgraft.graph.level import Level
from torchgraft.graph.probe import Example, probe
from torchgraft.spec import shape_text
from torchgraft.text import write_error


def check_names(level: Level) -> None:
    """Check that all that the graphs of a level read and call is there.

    Raises:
        TargetError: something was taken out that a graph uses.
    """
    for graph in level.graphs:
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and not _resolves(level, str(node.target)):
                raise TargetError(
                    f"the forward of {type(level).__name__} uses {node.target!r}, which was taken out",
                    found=f"{node.name!r} reads it",
                    write="an edit of what reads it as well",
                )


def check_runs(root: nn.Module, original: nn.Module, example: Example | None, steps: Sequence[str]) -> None:
    """Run an edited model on what the original runs on, where that is known.

    Raises:
        ShapeError: it does not run.
    """
    for training in (False, True):
        try:
            taken = probe(clone(original), example, training=training).calls[-1]
        except AnalysisError:
            continue  # a model that does not run on meta tensors cannot be checked on them
        try:
            record(root, (taken.args, taken.kwargs), training=training)
        except Exception as error:
            mode = " in training" if training else ""
            raise ShapeError(
                f"the edited model does not run on {shape_text(taken.args)}{mode}, "
                "on which the original runs",
                asked=" >> ".join(steps),
                found="; ".join([write_error(error), *error.__notes__[:1]]),
                write="an edit that keeps the shape, or one more edit where the new shape goes",
            ) from error


def _resolves(level: nn.Module, target: str) -> bool:
    parent, _, name = target.rpartition(".")
    try:
        return hasattr(level.get_submodule(parent), name)
    except AttributeError:
        return False

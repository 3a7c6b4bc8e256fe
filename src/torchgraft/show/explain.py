"""Explain: what was done to a model, as a value that prints well."""

from __future__ import annotations

import attrs
from torch import nn

from torchgraft.graph.checks import check_model
from torchgraft.graph.history import history_of
from torchgraft.graph.reading import guards_of
from torchgraft.text import plural


@attrs.frozen
class Explanation:
    """Tell how a model stands.

    Args:
        model: class of the model.
        parameters: number of parameters, each tensor counted once.
        trainable: number of those that get a gradient.
        tensors: number of trainable tensors.
        steps: the transforms that made it, as written.
        opened: paths of the modules whose forward is a graph.
        unfollowed: why the root is a clone of its class; empty where it is a graph.
        guards: what a traced forward checks at each call.
    """

    model: str
    parameters: int
    trainable: int
    tensors: int
    steps: tuple[str, ...]
    opened: tuple[str, ...]
    unfollowed: str
    guards: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            (
                f"{self.model}: {self.parameters:,} parameters, {self.trainable:,} trainable "
                f"in {plural(self.tensors, 'tensor')}"
            )
        ]
        lines += [f"  step {i}   {step}" for i, step in enumerate(self.steps, 1)]
        shown = [path or "the root" for path in self.opened]
        if shown:
            more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            lines.append(f"  opened   {', '.join(shown[:8])}{more}")
        if self.unfollowed:
            lines.append(f"  root     stays {self.model}; torch.fx cannot follow it: {self.unfollowed}")
        lines += [f"  guard    {guard}" for guard in self.guards]
        return "\n".join(lines)


def explain(model: nn.Module) -> Explanation:
    """Tell what was done to a model and how it stands.

    Args:
        model: any module; it is only read.

    Returns:
        The explanation; print it.

    Example:
        >>> from torch import nn
        >>> from torchgraft import pipe, freeze
        >>> print(explain(pipe(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), freeze("0"))))
        Sequential: 23 parameters, 8 trainable in 2 tensors
          step 1   freeze("0")
          opened   the root
    """
    check_model(model)
    history = history_of(model)
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    return Explanation(
        type(model).__name__,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in trainable),
        len(trainable),
        history.steps,
        history.opened,
        history.unfollowed,
        guards_of(model),
    )

"""Explain: what was done to a model."""

from __future__ import annotations

from torch import nn

from torchgraft.explanation import Explanation, explain_model
from torchgraft.graph.checks import check_model


def explain(model: nn.Module) -> Explanation:
    """Tell what was done to a model and how it stands.

    ``t.explain(model)`` tells what a transform would do.

    Args:
        model: any module; it is only read.

    Returns:
        The explanation: print it, or read its fields.

    Raises:
        ModelError: it is no model.

    Example:
        >>> from torchgraft import pipe, freeze
        >>> print(explain(pipe(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), freeze("0"))))
        Sequential: 23 parameters, 8 trainable in 2 tensors
          step 1     freeze("0")
          runs       the root Python
          frozen     2 tensors
    """
    check_model(model)
    return explain_model(model)

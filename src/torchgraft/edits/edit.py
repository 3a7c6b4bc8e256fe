"""Edit: the escape hatch for what no transform does."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs

from torchgraft.errors import OptionError
from torchgraft.graph.draft import Draft
from torchgraft.text import function_name, literal, spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Edit(Transform):
    """Call a function of the user on the draft."""

    name: ClassVar[str] = "edit"
    function: Callable[[Draft], None]
    said: str = attrs.field(kw_only=True, alias="name")

    def _edit(self, draft: Draft) -> None:
        self.function(draft)
        draft.reshaped = True

    def __repr__(self) -> str:
        return f"edit({function_name(self.function)}, name={literal(self.said)})"


@spelled
def edit(function: Callable[[Draft], None], *, name: str) -> Edit:
    """Make a transform from a function that edits the draft in place.

    The draft is a private clone, so the model is safe; the result is checked to run on what
    the model runs on. Such a step is equal to itself alone, and a file has a remark in its place.

    Args:
        function: gets the draft: ``draft.get(path)``, ``draft.open(path)``,
            ``draft.exchange(path, module)``.
        name: what the step is called in reports.

    Returns:
        The transform.

    Raises:
        OptionError: the first argument cannot be called, or the name is empty.

    Example:
        >>> from torch import nn
        >>> from torchgraft import pipe
        >>> def halve(draft):
        ...     draft.get("0").weight.data.mul_(0.5)
        >>> model = pipe(nn.Sequential(nn.Linear(2, 2)), edit(halve, name="halve"))
    """
    if not callable(function) or not name or not isinstance(name, str):
        right = 'edit(lambda draft: ..., name="what it does")'
        raise OptionError("edit takes a function of the draft and a name", write=right)
    return Edit(function, name=name)

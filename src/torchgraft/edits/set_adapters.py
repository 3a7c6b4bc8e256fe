"""Set adapters: switch what adapts a model off and on."""

from __future__ import annotations

from typing import ClassVar

import attrs

from torchgraft.blocks.beside import Adapting
from torchgraft.errors import TargetError
from torchgraft.graph.draft import Draft
from torchgraft.text import check_flags, spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class SetAdapters(Transform):
    """Switch every adapter off or on."""

    name: ClassVar[str] = "set_adapters"
    enabled: bool = attrs.field(kw_only=True)

    def _edit(self, draft: Draft) -> None:
        found = [module for _, module in draft.modules() if isinstance(module, Adapting)]
        if not found:
            raise TargetError("this model has no adapters", write="wrap(<target>, lora(8))")
        for module in found:
            module.enabled = self.enabled


@spelled
def set_adapters(*, enabled: bool) -> SetAdapters:
    """Switch all LoRA and adapters of a model off or on; their weights stay.

    With all of them off, a model whose own weights were frozen computes what it did before they
    were added, to the bit.

    Args:
        enabled: whether they take part.

    Returns:
        The transform.

    Raises:
        OptionError: the flag is none.

    Example:
        >>> from torch import nn
        >>> from torchgraft import pipe, wrap
        >>> from torchgraft.blocks import lora
        >>> tuned = pipe(nn.Sequential(nn.Linear(4, 3)), wrap("0", lora(2)))
        >>> plain = set_adapters(enabled=False)(tuned)
        >>> plain.get_submodule("0_lora").enabled
        False
    """
    check_flags(enabled=enabled)
    return SetAdapters(enabled=enabled)

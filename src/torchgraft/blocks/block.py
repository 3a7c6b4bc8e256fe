"""The block: a frozen description whose ``build`` makes the module for a place."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import nn

from torchgraft.spec import TensorSpec
from torchgraft.text import call


@attrs.frozen(repr=False)
class Block:
    """Describe a module without making it; equal by content, printed as the call that made it."""

    name: ClassVar[str] = "block"
    """Name that the module gets in the model unless another one is given."""

    @property
    def keeps_shape(self) -> bool:
        """Whether the output always has the shape of the input."""
        return False

    @property
    def needs_rank(self) -> bool:
        """Whether building it needs the number of axes."""
        return False

    @property
    def channels_first(self) -> bool:
        """Whether the module works on axis 1, so that other layouts are turned for it."""
        return False

    @property
    def takes_input(self) -> bool:
        """Whether the module is called with the input of its target, then its output."""
        return False

    @property
    def ready(self) -> bool:
        """Whether it is a module that is put in as it is."""
        return False

    def build(self, site: TensorSpec) -> nn.Module:
        """Make the module for a place: its channels, device and dtype."""
        raise NotImplementedError(type(self).__name__)

    def fixed(self) -> nn.Module | None:
        """Make the module where it does not depend on the place; ``None`` where it does."""
        return None

    def label(self) -> str:
        """Return the name the module gets."""
        return self.name

    def __repr__(self) -> str:
        return call(self.name, self)

"""Blocks: descriptions of modules that are built when the channels at their place are known."""

from torchgraft.blocks.cbam import cbam as cbam
from torchgraft.blocks.eca import eca as eca
from torchgraft.blocks.se import se as se

__all__ = ["cbam", "eca", "se"]

"""Blocks: descriptions of modules that are built when the channels at their place are known."""

from torchgraft.blocks.cbam import cbam as cbam
from torchgraft.blocks.described import block as block
from torchgraft.blocks.eca import eca as eca
from torchgraft.blocks.registry import names as names
from torchgraft.blocks.registry import register_block as register_block
from torchgraft.blocks.se import se as se

__all__ = ["block", "cbam", "eca", "names", "register_block", "se"]

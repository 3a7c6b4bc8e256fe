"""Steps as text: what a transform prints is what is read back, without running any of it."""

from torchgraft.recipe.reader import parse as parse

__all__ = ["parse"]

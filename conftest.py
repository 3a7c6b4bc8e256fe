"""What holds for tests and for the examples in docstrings alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torchgraft.blocks import registry


@pytest.fixture(autouse=True)
def _registered_blocks() -> Iterator[None]:
    """Forget the blocks that a test registers."""
    held = dict(registry._TABLE)
    yield
    registry._TABLE.clear()
    registry._TABLE.update(held)

"""One thread, a fixed seed, and small nets to edit."""

from __future__ import annotations

import pytest
import torch
from nets import Residual, Small
from torch import nn


@pytest.fixture(autouse=True)
def _calm() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def small() -> nn.Module:
    """A convolutional net with a stage, a module called twice and a linear head."""
    return Small().eval()


@pytest.fixture
def residual() -> nn.Module:
    """One residual unit."""
    return Residual(4)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)

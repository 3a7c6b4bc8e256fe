"""Small nets by hand, each with one trait."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A unit with a module called twice and an addition."""

    expansion = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.conv1(x))
        return self.relu(self.bn(self.conv2(y)) + x)


class Small(nn.Module):
    """A stem, a stage of two units, a pool and a head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stage = nn.Sequential(Residual(8), Residual(8))
        self.unused = nn.Linear(3, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage(F.relu(self.stem(x)))
        return self.fc(x.mean((2, 3)))


class ByMode(nn.Module):
    """A forward that reads its mode and gives another structure in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.aux = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> object:
        x = F.dropout(self.body(x), 0.5, training=self.training).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


class BySize(nn.Module):
    """A forward that decides on the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 16 == 0:
            x = F.avg_pool2d(x, 2)
        return self.fc(self.conv(x).mean((2, 3)))


class ByData(nn.Module):
    """A forward that decides on the data, which no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = -x
        return self.fc(x.mean((2, 3)))


class Listed(nn.Module):
    """Units in a ModuleList, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList([Residual(3), Residual(3)])
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit(x)
        return self.fc(x.mean((2, 3)))


class Caching(nn.Module):
    """A forward that writes what it sees onto itself, as some attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.seen: dict[str, torch.Tensor] = {}
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        self.seen["x"] = x
        return self.fc(x)

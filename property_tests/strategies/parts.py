"""The words of the grammar: small modules that keep ``n 4 h w``, each with something that surgery meets."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 4


def conv() -> nn.Module:
    """Make a convolution of one place."""
    return nn.Conv2d(WIDTH, WIDTH, 1)


def conv3() -> nn.Module:
    """Make a convolution of three places in two groups."""
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2, bias=False)


def norm() -> nn.Module:
    """Make a layer whose statistics move in training."""
    return nn.BatchNorm2d(WIDTH)


def relu() -> nn.Module:
    """Make an activation."""
    return nn.ReLU()


def drop() -> nn.Module:
    """Make a layer that draws random numbers in training."""
    return nn.Dropout(0.5)


class InPlace(nn.Module):
    """Write over what a layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


class Twice(nn.Module):
    """Call one layer, and one activation, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(self.act(self.conv(x))))


class Tied(nn.Module):
    """Hold one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class Functional(nn.Module):
    """Use operations, a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))
        self.register_buffer("shift", torch.ones(1, WIDTH, 1, 1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(x) - self.shift
        y += self.scale
        return y.clamp(-64, 64)


class Moded(nn.Module):
    """Compute one thing in training and another in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.aside = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.conv(x), 0.5, training=self.training)
        return y + self.aside(x) if self.training else y


class Gated(nn.Module):
    """Multiply all channels by one map."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.relu(self.gate(x))


class ChannelsLast(nn.Module):
    """Work on ``n h w c`` inside."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """Work on ``n l c`` inside."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.act(self.mix(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


class Skip(nn.Module):
    """Add what a part computes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.part(x)


class SkipOfSkip(nn.Module):
    """Add what a part computes from a sum, to that sum and to what came in."""

    def __init__(self, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.inner(x)
        return x + (y + self.outer(y))


class Branches(nn.Module):
    """Run two parts and join their channels."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.join = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat([self.left(x), self.right(x)], 1))


class Pair(nn.Module):
    """Give two values."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.part(x), x


class Unpaired(nn.Module):
    """Take two values that a child gives, and pass an option by name."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.pair = Pair(part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.pair(x=x)
        return one - other


class Halved(nn.Module):
    """Run a part at half the size, and read sizes for the way back."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.max_pool2d(x, 2, ceil_mode=True)
        return x + F.interpolate(self.part(small), size=x.shape[2:])


class Listed(nn.Module):
    """Call the parts of a list one by one."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Named(nn.Module):
    """Call the parts of a dictionary, not in the order in which they stand there."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"late": nn.Conv2d(WIDTH, WIDTH, 1), "early": part})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts["late"](self.parts["early"](x))


class Again(nn.Module):
    """Call a part twice."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.part(x))


class Shared(nn.Sequential):
    """Hold one part under two names."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part, part)


class Across(nn.Module):
    """Hold one part in two places, each of which does something else with it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.near = nn.Sequential(part, nn.ReLU())
        self.far = Skip(part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.far(self.near(x))


def doubled(module: nn.Module, args: object, output: object) -> object:
    """Double what a module gives; a forward hook."""
    return output * 2 if isinstance(output, torch.Tensor) else None

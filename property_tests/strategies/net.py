"""The net that every example is: a body from the grammar, between a stem and a head.

Weights and inputs are small integers in float64: sums and products of them are exact, so
that ``torch.equal`` decides.
"""

from __future__ import annotations

import torch
from torch import nn

from strategies import parts
from strategies.parts import WIDTH, doubled

CHANNELS = 3
CLASSES = 2
SIDE = 8

_WORDS = {
    "nn": nn,
    **{name: word for name, word in vars(parts).items() if getattr(word, "__module__", "") == parts.__name__},
}


class Net(nn.Module):
    """A stem, a body, a residual branch, a smaller map, a pool and a head.

    It may have a second head that runs in training only; it has a module that the forward does
    not reach, and attributes that are no tensors.

    Args:
        body: keeps ``n 4 h w``.
        aux: also have a second head, which runs in training only.
        seed: for the weights.
        train: the mode.
        flipped: modules, by their place in the tree, that are in the other mode.
        frozen: parameters, by their place in the tree, that get no gradient.
        hooked: modules of the body, by their place in it, of which a hook doubles the output.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        aux: bool = False,
        seed: int = 0,
        train: bool = False,
        flipped: tuple[int, ...] = (),
        frozen: tuple[int, ...] = (),
        hooked: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, WIDTH, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.body = body
        self.branch = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU())
        self.down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.spare = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.aux = nn.Linear(WIDTH, CLASSES) if aux else None
        self.num_classes = CLASSES
        self.config = {"mean": [0.5]}
        self.source = ""
        _fill(self.double(), seed)
        _switch(self, train, flipped)
        for place in frozen:
            _pick(list(self.parameters()), place).requires_grad_(requires_grad=False)
        for place in hooked:
            _pick([m for m in body.modules() if parts_forward(m)], place).register_forward_hook(doubled)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.body(self.norm(self.stem(x)))
        x = self.down(x + self.branch(x))
        x = self.drop(torch.flatten(self.pool(x), 1))
        if self.training and self.aux is not None:
            return self.head(x), self.aux(x)
        return self.head(x)

    def __repr__(self) -> str:
        return self.source if type(self) is Net and self.source else super().__repr__()


def parts_forward(module: nn.Module) -> bool:
    """Tell whether a module can be called."""
    return type(module).forward is not nn.Module.forward


def built(source: str) -> Net:
    """Make the net that an expression describes."""
    net = eval(source, {"Net": Net, **_WORDS})
    net.source = source
    return net


def _pick(items: list, place: int):
    return items[place % len(items)]


def _fill(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=generator))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.fill_(0.75)
                module.eps = 0.25  # together exactly one


def _switch(net: nn.Module, train: bool, flipped: tuple[int, ...]) -> None:
    net.train(train)
    for place in flipped:
        module = _pick(list(net.modules())[1:], place)
        module.train(not module.training)


def inputs(seed: int = 0, batch: int = 2, channels: int = CHANNELS) -> torch.Tensor:
    """Make a batch of small integers, ``n c 8 8``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (batch, channels, SIDE, SIDE), generator=generator).double()

"""Small nets from a grammar, and edits that fit them.

Weights and inputs are small integers in float64, so that ``torch.equal`` decides.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torchgraft import (
    at,
    compose,
    drop_head,
    edit,
    freeze,
    identity,
    inject,
    remove,
    replace,
    swap_head,
    unfreeze,
    wrap,
)
from torchgraft.blocks import cbam, eca, se
from torchgraft.transform import Transform

WIDTH = 3
SIDE = 4


class Twice(nn.Module):
    """Call one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(self.act(self.conv(x))))


class Skip(nn.Module):
    """Add what a part computes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.part(x)


class Branches(nn.Module):
    """Run two parts and join their channels."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.join = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat([self.left(x), self.right(x)], 1))


class Functional(nn.Module):
    """Use operations, a buffer that moves, and the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(1, WIDTH, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(F.relu(x) - self.shift, 0.5, training=self.training)
        return x * 2 if self.training else x


class ChannelsLast(nn.Module):
    """Work on ``n h w c`` inside."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class Listed(nn.Module):
    """Parts in a list, called one by one."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Net(nn.Module):
    """A body, a pool and a head, with attributes and a module that the forward does not reach."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(WIDTH, WIDTH, 1)
        self.body = body
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(WIDTH, 2)
        self.config = {"mean": [0.5]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).sum((2, 3)))


def _leaf(make: Callable[[], nn.Module]) -> st.SearchStrategy[Callable[[], nn.Module]]:
    return st.just(make)


_LEAVES = st.one_of(
    _leaf(lambda: nn.Conv2d(WIDTH, WIDTH, 1)),
    _leaf(nn.ReLU),
    _leaf(lambda: nn.BatchNorm2d(WIDTH)),
    _leaf(Twice),
    _leaf(Functional),
    _leaf(Tied),
    _leaf(ChannelsLast),
    _leaf(lambda: nn.Dropout(0.5)),
)


def _nest(parts: st.SearchStrategy[Callable[[], nn.Module]]) -> st.SearchStrategy[Callable[[], nn.Module]]:
    some = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        some.map(lambda ps: lambda: nn.Sequential(*[p() for p in ps])),
        some.map(lambda ps: lambda: Listed([p() for p in ps])),
        parts.map(lambda p: lambda: Skip(p())),
        st.tuples(parts, parts).map(lambda two: lambda: Branches(two[0](), two[1]())),
        parts.map(lambda p: lambda: _shared(p())),
    )


def _shared(part: nn.Module) -> nn.Module:
    return nn.Sequential(part, part)


_BODIES = st.recursive(_LEAVES, _nest, max_leaves=4)


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    """Draw a net with integer weights and mixed modes."""
    net = Net(draw(_BODIES)()).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=generator))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.fill_(0.75)
                module.eps = 0.25  # together exactly one
    net.train(draw(st.booleans()))
    for module in list(net.modules())[1:]:
        if isinstance(module, nn.BatchNorm2d) and draw(st.booleans()):
            module.eval()
    return net


def inputs(seed: int = 0, batch: int = 2) -> torch.Tensor:
    """Make a batch of small integers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (batch, WIDTH, SIDE, SIDE), generator=generator).double()


@attrs.frozen
class Row:
    """One way to use a public transform.

    Args:
        make: makes the transform.
        neutral: leaves the function of the model as it was.
        idempotent: twice is as good as once, under one seed.
    """

    make: Callable[[], Transform] = attrs.field(repr=lambda make: repr(make()))
    neutral: bool = False
    idempotent: bool = False


ROWS = {
    "identity": Row(identity, neutral=True, idempotent=True),
    "wrap": Row(lambda: wrap("body", se, name="added"), neutral=True),
    "wrap head": Row(lambda: wrap("head", eca), neutral=True),
    "inject": Row(lambda: inject("body", cbam), neutral=True),
    "inject before": Row(lambda: inject("head", se, where="before"), neutral=True),
    "inject node": Row(lambda: inject("sum", eca), neutral=True),
    "replace": Row(lambda: replace("head", lambda old: nn.Linear(WIDTH, 2).double())),
    "replace node": Row(lambda: replace("head", nn.Linear(WIDTH, 2, bias=False).double())),
    "remove": Row(lambda: compose(inject("head", nn.Tanh, name="t"), remove("t")), neutral=True),
    "freeze": Row(lambda: freeze("body"), idempotent=True),
    "freeze all": Row(lambda: freeze(at("*") | "**"), idempotent=True),
    "unfreeze": Row(lambda: unfreeze("body"), neutral=True, idempotent=True),
    "swap_head": Row(lambda: swap_head(4), idempotent=True),
    "swap_head with dropout": Row(lambda: swap_head(4, dropout=0.5)),
    "drop_head": Row(drop_head, idempotent=True),
    "edit": Row(lambda: edit(lambda draft: None, name="nothing"), neutral=True, idempotent=True),
    "compose": Row(lambda: compose(wrap("body", se), swap_head(3))),
}


def rows() -> st.SearchStrategy[Row]:
    """Draw a row of the case table."""
    return st.sampled_from(list(ROWS.values()))


FAILING = [
    lambda: wrap("bdy", se),
    lambda: freeze("nothing.*"),
    lambda: compose(wrap("body", se), swap_head(3), freeze("zzz")),
    lambda: inject("body", nn.Conv2d(7, 7, 1).double()),
    lambda: replace("head", nn.Linear(9, 2).double()),
    lambda: compose(freeze("body"), wrap("spare", se)),
    lambda: wrap("body", se, name="head") >> wrap("head", se, name="body"),
]

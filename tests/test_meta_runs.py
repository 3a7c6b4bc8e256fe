"""Runs on meta tensors: constants that forwards read, objects as inputs and outputs, guessed inputs."""

from __future__ import annotations

import dataclasses

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft import at, freeze, pipe, shapes, stage, swap_head, tiers, wrap
from torchgraft.errors import AnalysisError, GraftError
from torchgraft.graph.draft import Draft


class Reads(nn.Module):
    """Reads constants in some way before it goes on."""

    def __init__(self, function):
        super().__init__()
        self.register_buffer("std", torch.full((3,), 0.5))
        self.body, self.down = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)),
        )
        self.head, self.function = nn.Linear(8, 5), function

    def forward(self, x):
        return self.head(self.down(self.function(self, self.body(x))).mean((2, 3)))


def check(model, x):
    if (model.std == 0).any():
        raise ValueError
    return x


CONSTANTS = {
    "a buffer is compared": check,
    "a buffer is read": lambda s, x: x * s.std[0].item(),
    "a list of numbers is read": lambda s, x: x * sum(s.std.tolist()),
    "a size as a tensor": lambda s, x: F.pad(x, (0, int(torch.tensor([x.size(2) - x.size(3)])))),
    "a tensor of sizes": lambda s, x: x.reshape(torch.tensor(x.shape).tolist()),
    "a table": lambda s, x: x[:, torch.arange(8).flip(0).tolist()],
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_known(name):
    model = Reads(CONSTANTS[name])
    assert shapes(model, (1, 3, 32, 32))["down"] == (1, 8, 8, 8)
    assert tiers(model).strides == (2, 4)
    assert at("down").on(model)[0].layout == "NCHW"
    assert pipe(model, swap_head(3), freeze(stage(0)))(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_what_depends_on_the_input_stays_unknown():
    model = Reads(lambda s, x: x * 2 if x.mean() > 0 else x)
    for ask in (lambda: shapes(model, (1, 3, 8, 8)), lambda: tiers(model), lambda: pipe(model, swap_head(3))):
        with pytest.raises(GraftError) as caught:
            ask()
        assert "meta" in str(caught.value)


class Plain:
    def __init__(self, image, mask):
        self.image, self.mask, self.name = image, mask, "a name"


@dataclasses.dataclass
class Fields:
    image: torch.Tensor
    mask: torch.Tensor


@attrs.frozen
class Slots:
    image: torch.Tensor
    mask: torch.Tensor


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, given):
        x = self.body(given.image) * given.mask[:, None, ::2, ::2]
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [Plain, Fields, Slots])
def test_an_object_as_input(kind):
    model, given = Masked(), kind(torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16))
    assert shapes(model, given)["body"] == (2, 8, 8, 8)
    for example in (given, (given,), {"given": given}):
        assert pipe(model, swap_head(3), example=example)(given).shape == (2, 3)
        new, larger = (
            pipe(model, wrap("body", "se"), example=example),
            kind(torch.rand(3, 3, 32, 32), torch.ones(3, 32, 32)),
        )
        assert torch.equal(new(larger), model(larger))
    assert not given.image.is_meta


@pytest.mark.parametrize("kind", [Plain, Fields, Slots])
def test_maps_in_an_object(kind):
    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return kind([y], self.b(y))

    found = tiers(Gives())
    assert (found.strides, len(found.stages)) == ((2, 4), 2)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, left, right, weight=None):
        return self.conv(left) + self.conv(right)


def test_two_inputs_are_named():
    with pytest.raises(AnalysisError) as caught:
        tiers(Two())
    assert caught.value.write == "pipe(model, ..., example=(left, right))"
    shape = (1, 3, 8, 8)
    with pytest.raises(AnalysisError) as caught:
        shapes(Two(), (shape, shape))
    assert caught.value.write == "shapes(model, left, right)"
    assert shapes(Two(), shape, shape)["conv"] == (1, 8, 4, 4)


@pytest.mark.parametrize(
    ("function", "most"),
    [
        (lambda s, x: x[(x > 0).nonzero()[:, 0]], 2),  # with and without constants
        (lambda s, x: x.nothing, 2),
        (lambda s, x: F.conv2d(x, s.std), 99),
    ],
)
def test_guesses_end_at_an_error_that_no_other_size_mends(function, most):
    runs = []

    def counted(model, x):
        runs.append(x.shape)
        return function(model, x)

    with pytest.raises(AnalysisError):
        Draft(Reads(counted)).runs.run(training=False)
    assert len(runs) <= most

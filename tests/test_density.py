"""What operations do in a map that became denser: at the old places they give what they gave."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchgraft import dilate, pipe, replace, wrap
from torchgraft.errors import GraftError


class Between(nn.Module):
    """A function of the module and a map, between a strided convolution and another."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.again = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.near = nn.Conv2d(6, 6, 3, padding=1)
        self.far = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 6)
        self.norm = nn.GroupNorm(2, 6)
        self.last = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self, self.again(self.down(x))))


SAME = {
    "half of it": lambda s, x: x[:, :, 1:],
    "leaky relu": lambda s, x: F.leaky_relu(x, 0.2),
    "elu": lambda s, x: F.elu(x),
    "hardtanh": lambda s, x: F.hardtanh(x),
    "power": lambda s, x: x.pow(2) + x**2,
    "in place": lambda s, x: (x * 1).mul_(2).clamp_(-1, 1),
    "softmax of channels": lambda s, x: x.softmax(1),
    "softmax of channels from the end": lambda s, x: torch.softmax(x, dim=-3),
    "mean of the map": lambda s, x: x + x.mean((2, 3), keepdim=True),
    "mean of the map from the end": lambda s, x: x + x.mean((-1, -2), keepdim=True),
    "mean of the map without its axes": lambda s, x: x * x.mean((-2, -1))[:, :, None, None],
    "mean of channels": lambda s, x: x + x.mean(1, keepdim=True),
    "mean of channels without the axis": lambda s, x: x + x.mean(-3).unsqueeze(1),
    "largest channel": lambda s, x: x + x.max(1, keepdim=True)[0] + x.amax(1, keepdim=True),
    "largest place": lambda s, x: x + x.amax((2, 3), keepdim=True),
    "largest of two": lambda s, x: torch.max(x, x * 2),
    "pooled": lambda s, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "pooled largest": lambda s, x: x * F.adaptive_max_pool2d(x, (1, 1)),
    "flat mean": lambda s, x: x * x.flatten(2).mean(-1).unsqueeze(-1).unsqueeze(-1),
    "stacked": lambda s, x: torch.stack([x, x * 2], 1).sum(1),
    "joined": lambda s, x: torch.cat([x, x], 1)[:, 3:9],
    "chunks": lambda s, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "channels last": lambda s, x: s.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "channels last by movedim": lambda s, x: s.fc(x.movedim(1, -1)).movedim(-1, 1),
    "channels last by transposes": lambda s, x: s.fc(x.transpose(1, 3)).transpose(1, 3),
    "layer norm": lambda s, x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
    "group norm": lambda s, x: s.norm(x),
    "near": lambda s, x: s.near(x) + x,
    "near by a function": lambda s, x: F.conv2d(x, s.near.weight, s.near.bias, padding=1),
    "average": lambda s, x: F.avg_pool2d(x, 3, 1, 1),
    "largest near": lambda s, x: F.max_pool2d(x, 3, stride=1, padding=1),
    "padded": lambda s, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), s.near.weight),
    "in a pair": lambda s, x: [(x, {"a": x * 2})][0][1]["a"] + 1,
    "narrowed": lambda s, x: torch.cat([x, x], dim=-3)[:, 2:8],
    "strided": lambda s, x: s.far(F.max_pool2d(s.near(x), 3, 2, 1)),
    "averaged and strided": lambda s, x: F.avg_pool2d(s.near(x), 2, 2),
    "stacked at the end": lambda s, x: torch.stack([x, x * 2], -1).sum(-1),
    "stacked first": lambda s, x: torch.stack([x, x * 2]).mean(0),
    "joined from the end": lambda s, x: torch.cat([x, x], dim=-3).narrow(1, 2, 6),
    "split": lambda s, x: sum(x.split(2, dim=1)).repeat(1, 3, 1, 1),
    "gated by an expanded mean": lambda s, x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "normalised over places": lambda s, x: F.normalize(x, dim=(2, 3)) + F.instance_norm(x),
    "tokens on their own": lambda s, x: F.layer_norm(x.flatten(2).transpose(1, 2), (6,)).transpose(1, 2).view_as(x),
    "written into": lambda s, x: _doubled(x * 1),
    "softmax of rows": lambda s, x: x.softmax(-1),
    "turned": lambda s, x: x.flip(2),
    "rolled": lambda s, x: x.roll(1, -1),
    "summed up": lambda s, x: x.cumsum(-1),
    "transposed convolution": lambda s, x: F.conv_transpose2d(x, s.near.weight, padding=1),
    "padded and cut": lambda s, x: F.pad(x, (1, 1))[..., 1:-1] + x,
}  # fmt: skip

REFUSED = {
    "mean of rows": lambda s, x: x + x.mean(2, keepdim=True),
    "products of places": lambda s, x: x @ x,
    "places by their numbers": lambda s, x: x + torch.arange(x.shape[-1], dtype=x.dtype),
    "tokens that are summed up": lambda s, x: x + x.flatten(2).cumsum(-1).reshape(x.shape),
    "written into a slice": lambda s, x: _cleared(x * 1),
}  # fmt: skip


def _doubled(x: torch.Tensor) -> torch.Tensor:
    x[:, :2] *= 2
    return x


def _cleared(x: torch.Tensor) -> torch.Tensor:
    x[..., 1:].mul_(2)
    return x


def net(function) -> nn.Module:
    torch.manual_seed(0)
    return Between(function).double().eval()


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("size", [33, 29])
def test_old_places_hold_what_they_held(name, size):
    model, x = net(SAME[name]), torch.randn(2, 3, size, size + 4, dtype=torch.float64)
    was, now = model(x), dilate(2)(model)(x)
    step = 4 if now.shape[-1] > 2.5 * was.shape[-1] else 2
    now = now[..., ::step, ::step]
    assert now.shape == was.shape
    assert torch.allclose(now, was, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_places_is_refused(name):
    model = net(REFUSED[name])
    with pytest.raises(GraftError) as caught:
        dilate(2)(model)
    assert caught.value.found


def test_later_steps_see_the_dilated_layers():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(SAME["near"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).mean((2, 3))

    model = Outer().double().eval()
    steps = dilate(2), wrap("body.again", "se"), replace("body.last", nn.Conv2d(6, 6, 1).double())
    result = pipe(model, *steps)
    apart = steps[2](steps[1](steps[0](model)))
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    assert result.body.again.stride == apart.body.again.stride == (1, 1)
    assert result(x).shape == apart(x).shape == (1, 6)
    assert result.body.near.dilation == (2, 2)


class Strided(nn.Module):
    """A level with functions of its own, after a stem."""

    def __init__(self, function) -> None:
        super().__init__()
        self.near, self.function = nn.Conv2d(4, 4, 3, padding=1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.near(x))


def strided(function, *behind: nn.Module) -> nn.Module:
    start = (nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*start, Strided(function), *behind).double().eval()


def test_a_level_under_two_names_is_edited_once():
    model = strided(lambda x: F.avg_pool2d(x, 3, 1, 1) * x.mean((2, 3), keepdim=True))
    model.append(nn.ReLU()).append(model[2])
    result, x = dilate(2)(model), torch.randn(2, 3, 37, 41, dtype=torch.float64)
    assert result[2] is result[4]
    assert [n.name for n in result[2].graph.nodes].count("take_apart") == 1
    assert torch.allclose(result(x)[..., ::2, ::2], model(x))


def test_places_behind_the_channels_are_dense_too():
    model = strided(lambda x: x.permute(0, 2, 3, 1)[:, ::2, 1::2].roll(1, 1).permute(0, 3, 1, 2))
    model.append(nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64))
    x = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    for stride, times in ((4, 2), (2, 4)):
        assert torch.allclose(dilate(stride)(model)(x)[..., ::times, ::times], model(x))


def test_a_graph_that_is_another_one_than_the_forward_is_refused():
    held = [0]

    def counts(x: torch.Tensor) -> torch.Tensor:
        held[0] += 1
        return F.avg_pool2d(x if held[0] == 1 else x * 2, 3, 1, 1)

    with pytest.raises(GraftError):
        dilate(2)(strided(counts))


def test_strides_that_do_not_divide_keep_the_places_of_the_original():
    model = strided(lambda x: F.max_pool2d(x, 3, 3), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 3, 97, 110, dtype=torch.float64)
    for stride in (2, 4):
        new, old = dilate(stride)(model)(x), model(x)
        times = 12 // stride
        assert torch.allclose(new[..., ::times, ::times], old)

"""Another number of channels: found by structure, with weights that keep what they gave."""

from __future__ import annotations

import pickle

import pytest
import torch
import torchvision.models as tv
from checks import run
from fingerprint import changes, fingerprint
from nets import BySize, Small
from torch import nn
from torch.nn import functional as F
from zoo import enliven

from torchgraft import drop_head, freeze, pipe, replace, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.edits.adapt_input import adapt_input
from torchgraft.edits.dilate import dilate
from torchgraft.errors import GraftError, OptionError, TargetError, TraceError

SOURCES = ("mean", "repeat", "sum")


class Patches(nn.Module):
    """A linear layer behind a cut into patches, the channels first or last in them."""

    def __init__(self, *, channels_last: bool = False, side: int = 4) -> None:
        super().__init__()
        self.in_chans, self.side, self.channels_last = 3, side, channels_last
        self.embed, self.fc = nn.Linear(3 * side * side, 8), nn.Linear(8, 5)

    def forward(self, x):
        n, c, h, w = x.shape
        p = self.side
        x = x.reshape(n, c, h // p, p, w // p, p)
        x = x.permute(0, 2, 4, 3, 5, 1) if self.channels_last else x.permute(0, 2, 4, 1, 3, 5)
        return self.fc(self.embed(x.reshape(n, (h // p) * (w // p), c * p * p)).mean(1))


class Sliced(nn.Module):
    """Every second place of the input, joined along the channels, in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 3)

    def forward(self, x):
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.conv(torch.cat(parts, 1)).mean((2, 3))


class TwoEyes(nn.Module):
    """Two layers take the input, at two sizes, scaled by numbers; one by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, bias=False)
        self.coarse = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        x = (x.float() - 0.5) / 0.25
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.fine(F.pad(x, (1, 1, 1, 1), mode="reflect")).mean((2, 3)) + F.conv2d(
            half, self.coarse
        ).mean((2, 3))


class Last(nn.Module):
    """Images with the channels on the last axis, for a linear layer and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.conv = nn.Linear(3, 8), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.point(x).mean((1, 2)) + self.conv(x.permute(0, 3, 1, 2)).mean((2, 3))


def images(source: str, channels: int, side: int, axis: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Make an image, and the one of another number of channels that has to give the same.

    ``mean``: grey in every channel. ``repeat``: the channels repeated in turn; where there are
    fewer, old channel ``i`` is new channel ``i mod new``. ``sum``: what is further is noise.
    """
    x = torch.randn(2, 3, side, side)
    if source == "mean":
        old, new = x[:, :1].expand(-1, 3, -1, -1), x[:, :1].expand(-1, channels, -1, -1)
    elif channels < 3:
        old, new = x[:, torch.arange(3) % channels], x[:, :channels]
    elif source == "repeat":
        old, new = x, x[:, torch.arange(channels) % 3]
    else:
        old, new = x, torch.cat([x, torch.randn(2, channels - 3, side, side)], 1)
    return old.movedim(1, axis), new.movedim(1, axis)


def agrees(model: nn.Module, counts, side: int = 32, *, axis: int = 1) -> None:
    model = enliven(model).eval()
    before, example = fingerprint(model), torch.zeros(2, 3, side, side).movedim(1, axis)
    for source in SOURCES:
        for channels in counts:
            result = pipe(model, adapt_input(channels, source=source), example=example)
            old, new = images(source, channels, side, axis)
            expected, given = run(model, old, mode=False), run(result, new, mode=False)
            assert torch.allclose(given, expected, atol=1e-4 * float(expected.abs().max())), (
                source,
                channels,
            )
            assert expected.abs().max() > 0
            shapes = {k: v.shape for k, v in result.state_dict().items()}
            others = {k: v.shape for k, v in model.state_dict().items()}
            assert list(shapes) == list(others)
            assert bool([k for k in shapes if shapes[k] != others[k]]) is (channels != 3)
    assert not changes(before, fingerprint(model))


@pytest.mark.parametrize("make", [Small, Patches, lambda: Patches(channels_last=True), Sliced, TwoEyes])
def test_every_count_and_source(make):
    agrees(make(), range(1, 14), 16)


def test_channels_on_the_last_axis():
    agrees(Last(), range(1, 14), 16, axis=3)


def test_places_taken_apart_by_layers():
    rest = [nn.Conv2d(12, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    agrees(nn.Sequential(nn.PixelUnshuffle(2), *rest), (1, 2, 5), 16)

    class Unfolded(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).transpose(1, 2)).mean(1)

    agrees(Unfolded(nn.Unfold(4, stride=4), nn.Linear(48, 8)), (1, 2, 5), 16)


def real(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        model = tv.VisionTransformer(32, 8, 2, 2, 16, 32)
        nn.init.normal_(model.heads.head.weight)  # zero at the start
        return model
    if name == "swin":
        return tv.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2])
    return tv.get_model(name, weights=None)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit", "swin", "densenet121", "efficientnet_b0", "convnext_tiny", "googlenet"]
)
def test_real_models(name):
    model = tv.googlenet(init_weights=False) if name == "googlenet" else real(name)
    agrees(model, (2, 5), 32 if name in ("vit", "swin") else 64)


def test_the_layer_keeps_key_class_dtype_format_and_what_is_frozen():
    from timm.layers import Conv2dSame, StdConv2d

    class Wide(nn.Conv2d):
        pass

    for kind in (nn.Conv2d, Wide, Conv2dSame, StdConv2d):
        model = nn.Sequential(kind(3, 4, 3, bias=True), nn.ReLU()).to(
            torch.bfloat16, memory_format=torch.channels_last
        )
        layer = pipe(model, freeze("0"), adapt_input(5))[0]
        assert type(layer) is kind
        assert layer.in_channels == 5
        assert layer.weight.shape == (4, 5, 3, 3)
        assert layer.weight.dtype == torch.bfloat16
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.requires_grad
        assert layer.bias.equal(model[0].bias)
    with torch.device("meta"):
        assert pipe(nn.Sequential(nn.Conv2d(3, 4, 3)), adapt_input(5, source="repeat"))[0].weight.is_meta


def test_the_sum_over_the_channels_stays():
    weight = nn.Conv2d(3, 2, 3).weight
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    model[0].weight = weight
    for source in SOURCES:
        for channels in range(1, 14):
            new = pipe(model, adapt_input(channels, source=source))[0].weight
            assert torch.allclose(new.sum(1), weight.sum(1), atol=1e-5)
    five = pipe(model, adapt_input(5, source="repeat"))[0].weight
    assert five[:, 3].equal(five[:, 0])
    assert five[:, 2].equal(weight[:, 2])
    assert torch.allclose(five[:, 0], weight[:, 0] / 2)
    two = pipe(model, adapt_input(2, source="repeat"))[0].weight
    assert torch.allclose(two[:, 0], weight[:, 0] + weight[:, 2])
    assert pipe(model, adapt_input(5, source="sum"))[0].weight[:, 3:].eq(0).all()


def test_the_old_number_changes_nothing_but_at_random():
    model = tv.resnet18()
    for source in SOURCES:
        assert pipe(model, adapt_input(3, source=source)).conv1.weight.equal(model.conv1.weight)
    one = pipe(model, adapt_input(3, source="random"), seed=1).conv1.weight
    assert not one.equal(model.conv1.weight)
    assert one.equal(pipe(model, adapt_input(3, source="random"), seed=1).conv1.weight)
    torch.manual_seed(7)
    expected = nn.Conv2d(8, 4, 3)
    fresh = pipe(nn.Sequential(nn.Conv2d(3, 4, 3)), adapt_input(8, source="random"), seed=7)[0]
    assert fresh.weight.equal(expected.weight)
    assert fresh.bias.equal(expected.bias)


def test_gradients_reach_every_channel():
    for source in (*SOURCES, "random"):
        result = pipe(Small(), adapt_input(5, source=source))
        result(torch.randn(2, 5, 16, 16)).sum().backward()
        assert result.stem.weight.grad.abs().sum((0, 2, 3)).gt(0).all()


def test_later_steps_know_the_new_input():
    x = torch.randn(2, 5, 64, 64)
    steps = adapt_input(5), wrap("layer4", se), swap_head(10), dilate(16), drop_head()
    result = pipe(tv.resnet18(), *steps)
    assert result(x).shape == (2, 512)
    one = pipe(result, replace("conv1", nn.Conv2d(5, 64, 7, 2, 3)), adapt_input(1), swap_head(3))
    assert one(x[:, :1]).shape == (2, 3)
    changed = replace("fc", nn.Linear(512, 4), keep_shape=False)
    assert pipe(tv.resnet18(), adapt_input(5), changed)(x).shape == (2, 4)
    given = torch.zeros(2, 3, 64, 64)
    by_size = pipe(BySize(), adapt_input(4), wrap("conv", se), example=given)
    assert by_size(torch.zeros(2, 4, 64, 64)).shape == (2, 5)
    assert given.shape[1] == 3


def test_counts_around_the_layer_are_kept_right():
    model = Patches()
    model.default_cfg = {"in_chans": 3}
    model.num_channels = 7
    result = pipe(model, adapt_input(4), example=torch.zeros(1, 3, 16, 16))
    assert (result.in_chans, result.num_channels, result.default_cfg) == (4, 7, {"in_chans": 3})
    assert (model.in_chans, result.embed.in_features) == (3, 64)


class Checked(nn.Module):
    """A forward that compares the channels with what it declares."""

    def __init__(self) -> None:
        super().__init__()
        self.num_channels, self.conv = 3, nn.Conv2d(3, 4, 3)

    def forward(self, x):
        if x.shape[1] != self.num_channels:
            raise ValueError("channels")
        return self.conv(x)


def test_a_forward_that_checks_the_channels():
    for model, path in ((Checked(), "conv"), (nn.Sequential(Checked(), nn.ReLU()), "0.conv")):
        result = pipe(model, adapt_input(4), wrap(path, se))
        assert result(torch.zeros(1, 4, 16, 16)).shape == (1, 4, 14, 14)
    with pytest.raises(TargetError, match="guard") as caught:
        pipe(pipe(Checked(), wrap("conv", se)), adapt_input(4))
    assert "when it was traced" in caught.value.found
    assert pipe(pipe(Checked()), adapt_input(4))(torch.zeros(1, 4, 16, 16)).shape == (1, 4, 14, 14)


def test_inputs_by_several_arguments_and_shared_weights():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.eye, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.other.weight = self.eye.weight

        def forward(self, left, right, weight=None):
            return self.eye(left) + self.eye(right) + self.other(right)

    given = {"left": torch.zeros(1, 3, 9, 9), "right": torch.zeros(1, 3, 9, 9)}
    result = pipe(Pair(), adapt_input(2), example=given)
    assert result.eye.weight is result.other.weight
    assert result(*torch.zeros(2, 1, 2, 9, 9)).shape == (1, 4, 7, 7)
    with pytest.raises(TargetError, match="different numbers of channels"):
        pipe(Odd(), adapt_input(2), example=(torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9)))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, x, y):
        return self.colour(x) + self.depth(y)


class Uses(nn.Module):
    """Something else takes the input."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use, self.conv = use, nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))

    def forward(self, x):
        return self.use(self, x)


@pytest.mark.parametrize(
    ("use", "name", "found"),
    [
        (lambda m, x: m.conv(torch.stack([x[:, 0], x[:, 1], x[:, 2]], 1)), "getitem", "single channels"),
        (lambda m, x: m.conv(x - m.mean), "sub", "no number"),
        (lambda m, x: m.conv(x) + x, "add", "no number"),
        (lambda m, x: torch.cat([m.conv(x), x], 1), "cat", "other values"),
        (lambda m, x: m.conv(x) * x.mean(1, keepdim=True), "mean", "as it is"),
        (lambda m, x: m.conv(x.reshape(-1, 3, 8, 8)), "reshape", "written down"),
        (lambda m, x: F.conv2d(x, m.conv.weight[:, :1], groups=3), "conv2d", "in groups"),
    ],
)
def test_what_else_takes_the_input_is_named(use, name, found):
    with pytest.raises(TargetError, match=f"'{name}' takes the model's input") as caught:
        pipe(Uses(use), adapt_input(4), example=torch.zeros(2, 3, 8, 8))
    assert found in caught.value.found


@pytest.mark.parametrize(
    "first", [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.ConvTranspose2d(3, 3, 2)]
)
def test_layers_that_cannot_are_named(first):
    with pytest.raises(TargetError, match="'0' takes the model's input"):
        pipe(nn.Sequential(first, nn.Conv2d(3, 3, 3)), adapt_input(4))


def test_other_refusals():
    with pytest.raises(TargetError, match="getitem"):
        pipe(tv.googlenet(init_weights=False, transform_input=True), adapt_input(4))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TargetError, match="no parameter of its own"):
        pipe(normed, adapt_input(4))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.back = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 3, 1)
            self.back.weight = self.conv.weight

        def forward(self, x):
            return self.back(self.conv(x))

    with pytest.raises(TargetError, match="tied") as caught:
        pipe(Tied(), adapt_input(4))
    assert caught.value.found == "back.weight"
    with pytest.raises((TargetError, TraceError, GraftError)):
        pipe(nn.Identity(), adapt_input(4))


@pytest.mark.parametrize("channels", [0, -1, 2.5, True, "3", None])
def test_bad_counts(channels):
    with pytest.raises(OptionError):
        adapt_input(channels)


def test_bad_sources_and_how_it_is_written():
    with pytest.raises(OptionError) as caught:
        adapt_input(4, source="means")
    assert caught.value.near == ("mean",)
    assert caught.value.write == 'adapt_input(4, source="mean")'
    with pytest.raises(OptionError):
        adapt_input(4, source=None)
    assert repr(adapt_input(4)) == "adapt_input(4)"
    step = adapt_input(4, source="sum")
    assert repr(step) == 'adapt_input(4, source="sum")'
    assert step == pickle.loads(pickle.dumps(step))


class Functional(nn.Module):
    """Patches by a function whose weight is a parameter, after a look at the number of axes."""

    def __init__(self, *, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.weight = nn.Parameter(torch.randn(8, 3) if linear else torch.randn(8, 3, 3, 3))

    def forward(self, x):
        if x.ndim != 4 or x.dim() != 4 or len(x.shape) != 4:
            raise ValueError
        y = F.linear(x.permute(0, 2, 3, 1), self.weight) if self.linear else F.conv2d(x, self.weight)
        return y.flatten(1).sum(1)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("example", [None, "positional", "named"])
def test_weights_that_functions_apply_are_adapted(linear, example):
    model, x = Functional(linear=linear), torch.randn(2, 3, 8, 8)
    given = {None: x, "positional": (x,), "named": {"x": x}}[example]
    result = pipe(model, adapt_input(5, source="sum"), example=given)
    assert result.weight.shape[1] == 5
    more = torch.cat([x, torch.randn(2, 2, 8, 8)], 1)
    assert torch.allclose(result(more), model(x), atol=1e-4)
    again = pipe(result, adapt_input(1))
    assert again.weight.shape[1] == 1


class Encoder(nn.Module):
    """Hands the image on beside its maps."""

    def __init__(self, give):
        super().__init__()
        self.conv, self.give = nn.Conv2d(3, 8, 3, 2, 1), give

    def forward(self, x):
        return self.give(x, self.conv(x))


class Decoder(nn.Module):
    """Takes what the encoder gives."""

    def __init__(self, take):
        super().__init__()
        self.conv, self.take = nn.Conv2d(8, 4, 3, 1, 1), take

    def forward(self, maps):
        y, size = self.take(maps)
        return nn.functional.interpolate(self.conv(y), size=size)


HANDED_ON = {
    "a list": (lambda x, y: [x, y], lambda f: (f[1], f[0].shape[2:])),
    "a list of which the rest is taken": (lambda x, y: [x, y], lambda f: (f[1:][0], f[0].shape[2:])),
    "a list from behind": (lambda x, y: [x, y], lambda f: (f[::-1][0], f[-2].shape[-2:])),
    "a tuple taken apart": (lambda x, y: (x, (y, y)), lambda f: (f[1][0], (16, 16))),
    "a dictionary": (lambda x, y: {"image": x, "maps": y}, lambda f: (f["maps"], f["image"].shape[2:])),
    "what may be missing": (
        lambda x, y: {"image": x, "maps": y},
        lambda f: (f.get("maps"), f["image"].shape[2:]),
    ),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_the_image_is_handed_on_beside_maps(name):
    give, take = HANDED_ON[name]
    model = nn.Sequential(Encoder(give), Decoder(take))
    new, grey = pipe(model, adapt_input(5)), torch.rand(1, 1, 16, 16)
    assert new[0].conv.in_channels == 5
    assert torch.allclose(new(grey.expand(1, 5, 16, 16)), model(grey.expand(1, 3, 16, 16)), atol=1e-5)


def test_an_image_that_is_handed_on_to_be_used_is_refused():
    model = nn.Sequential(
        Encoder(lambda x, y: [x, y]),
        Decoder(lambda f: (f[1] + f[0].mean(1, keepdim=True)[:, :, ::2, ::2], (8, 8))),
    )
    with pytest.raises(TargetError, match="takes the model's input"):
        pipe(model, adapt_input(5))

"""Dilation: denser maps that hold the original's, place by place."""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import pytest
import torch
import torchvision.models as tv
from fingerprint import changes, fingerprint
from nets import Residual
from torch import nn
from torch.nn import functional as F
from zoo import build, enliven

from torchgraft import compose, pipe, swap_head, wrap
from torchgraft.blocks import cbam, eca, global_context, se
from torchgraft.edits.dilate import dilate
from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.draft import Draft

# The part whose output is the last map, and the original's stride.
TRUNKS = {
    "resnet18": "layer4", "resnet50": "layer4", "mobilenet_v2": "features", "mobilenet_v3_small": "features",
    "mobilenet_v3_large": "features", "efficientnet_b0": "features", "convnext_tiny": "features",
    "regnet_x_400mf": "trunk_output", "regnet_y_400mf": "trunk_output", "shufflenet_v2_x0_5": "conv5",
    "timm/resnet26d": "layer4", "timm/tf_mobilenetv3_small_minimal_100": "blocks", "timm/convnext_atto": "stages",
}  # fmt: skip


def image(height: int, width: int | None = None, *, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(1, channels, height, width or height, generator=generator, dtype=torch.float64)


def seen(model: nn.Module, path: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a part, and of the model."""
    held = []
    hook = model.get_submodule(path).register_forward_hook(lambda m, a, output: held.append(output))
    with torch.no_grad():
        output = model(x)
    hook.remove()
    return held[0], output


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-9 * other.abs().max())


def alike(
    model: nn.Module, stride: int, *, density: int, sizes: tuple[int, ...] = (65, 66, 71, 96)
) -> nn.Module:
    """Dilate a net that gives maps, and compare them at several sizes, borders included."""
    model = enliven(model).double().eval()
    result = dilate(stride)(model)
    for size in sizes:
        x = image(size, size + 5)
        with torch.no_grad():
            assert near(result(x)[..., ::density, ::density], model(x)), size
    assert list(result.state_dict()) == list(model.state_dict())
    return result


@pytest.mark.parametrize("name", TRUNKS)
def test_the_original_lies_in_the_denser_map(name):
    model = build(name).double().eval()
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:  # scales that hide what they scale
            nn.init.normal_(parameter)
    before = fingerprint(model, values=False)
    for stride, density in ((16, 2), (8, 4)):
        result = pipe(model, dilate(stride))
        assert list(result.state_dict()) == list(model.state_dict())
        for x in (image(65), image(97, 64)):
            (old, logits), (new, same) = seen(model, TRUNKS[name], x), seen(result, TRUNKS[name], x)
            assert near(new[:, :, ::density, ::density], old)
            assert new.shape[-1] >= density * (old.shape[-1] - 1) + 1
            assert near(same, logits)
    assert not changes(before, fingerprint(model, values=False))
    result.train()
    assert result(image(65).repeat(2, 1, 1, 1)).isfinite().all()


def test_sizes_are_those_of_the_input_by_the_stride():
    for name, part in (("resnet18", "layer4"), ("convnext_tiny", "features")):
        model = tv.get_model(name, weights=None)
        maps = seen(dilate(8)(model.eval()), part, torch.zeros(1, 3, 96, 64))[0]
        assert maps.shape[-2:] == (12, 8)


def test_the_original_stays_bit_by_bit_and_the_copy_does_as_others_do():
    model = enliven(tv.resnet18()).double().eval()
    before = fingerprint(model)
    result = pipe(model, dilate(8)).eval()
    x = image(65)
    expected = result(x)
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), pipe(result)):
        assert torch.equal(other(x), expected)
    result.train()(x.repeat(2, 1, 1, 1)).sum().backward()
    torch.optim.SGD(result.parameters(), lr=0.1).step()
    assert not changes(before, fingerprint(model))
    assert repr(dilate(8)) == "dilate(8)"
    assert dilate(8) == pickle.loads(pickle.dumps(dilate(8)))


def test_a_second_time_changes_nothing_and_a_smaller_stride_goes_on():
    model = enliven(tv.resnet18()).double().eval()
    once, x = pipe(model, dilate(16)), image(65, 77)
    assert str(pipe(once, dilate(16))) == str(once)
    for result in (pipe(once, dilate(8)), pipe(model, dilate(16), dilate(8), dilate(4))):
        maps, logits = seen(result, "layer4", x)
        assert maps.shape[-1] > 1.5 * seen(once, "layer4", x)[0].shape[-1]
        assert near(logits, model(x))


def test_maps_that_were_taken_apart_go_no_further():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            parts = [nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2, 2), nn.GroupNorm(2, 4)]
            parts += [nn.MaxPool2d(3, 2, 1, ceil_mode=True), Residual(4), nn.AvgPool2d(3, 1, 1), nn.ReLU()]
            self.body, self.fc = nn.Sequential(*parts), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.body(x).mean((2, 3)))

    model = enliven(Normed()).double().eval()
    once, x = pipe(model, dilate(8)), image(65, 77)
    assert str(pipe(once, dilate(8))) == str(once)
    for stride in (2, 4, 8, 16):
        assert near(pipe(model, dilate(stride))(x), model(x))
    with pytest.raises(TargetError, match="dilated already") as caught:
        pipe(once, dilate(4))
    assert caught.value.write == "dilate(4) in the place of the first one"


@pytest.mark.parametrize("seed", range(8))
def test_any_chain_of_windows(seed):
    choose = random.Random(seed)
    layers: list[nn.Module] = []
    for stride in (2, 1, choose.choice([2, 3]), 1, 2, 1):
        size = choose.choice([1, 2, 3, 4, 5])
        padding, ceil = choose.choice([0, size // 2]), choose.random() < 0.5
        layers.append(
            choose.choice([
                nn.Conv2d(3, 3, size, stride, padding, dilation=choose.choice([1, 2])),
                nn.Conv2d(3, 3, (size, 3), stride, (padding, 1), padding_mode="zeros", groups=3),
                nn.MaxPool2d(size, stride, padding, ceil_mode=ceil),
                nn.AvgPool2d(size, stride, padding, ceil_mode=ceil, count_include_pad=choose.random() < 0.5),
            ])
        )  # fmt: skip
    model = nn.Sequential(*layers)
    whole = layers[2].stride if isinstance(layers[2].stride, int) else layers[2].stride[0]
    alike(model, 2, density=2 * whole, sizes=(90, 97, 101))
    alike(model, 2 * whole, density=2, sizes=(90, 97, 101))


@pytest.mark.parametrize("block", [se, cbam, eca, global_context])
def test_blocks_see_the_places_that_they_saw(block):
    model = tv.resnet18()
    model = pipe(model, wrap("layer3", block(neutral=False) if block is not global_context else block))
    model = pipe(model, wrap("layer4", block)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, dtype=torch.float64))
    x = image(65)
    assert near(pipe(model, dilate(8))(x), model(x))


class Functional(nn.Module):
    """Everything by functions, places at the end for a while, channels shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.second = nn.Parameter(torch.randn(4, 4, 2, 2))
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        x = F.conv2d(x, self.weight, None, 2, padding=1)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = F.conv2d(F.pad(x, (1, 0, 1, 0)), self.second)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        x = self.norm(self.mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a * b.mean((2, 3), keepdim=True), x.amax(1, keepdim=True).sigmoid() * b], 1)
        return x * F.adaptive_avg_pool2d(x, 1) + x / x.norm(p=2, dim=(2, 3), keepdim=True)


def test_functions_and_moved_axes():
    for stride, density in ((4, 2), (2, 4)):
        result = alike(Functional(), stride, density=density)
        assert result(image(64)).shape[-1] == 64 // stride


def test_paddings_of_other_kinds_line_up():
    for pad in (nn.ReflectionPad2d(1), nn.ReplicationPad2d((1, 1, 1, 1)), nn.ZeroPad2d(1)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2), pad, nn.Conv2d(4, 4, 3))
        alike(model, 2, density=2)
    for mode in ("reflect", "replicate", "circular"):
        last = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
        alike(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2), last), 2, density=2)
    even = nn.Conv2d(4, 4, 4, padding="same")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on kernels of even size
        alike(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2), even), 2, density=2)


def test_whole_maps_are_seen_as_they_were():
    class Head(nn.Module):
        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.body = nn.Sequential(*[nn.Conv2d(c, 4, 3, 2, 1) for c in (3, 4, 4)])
            self.pool, self.fc = pool, nn.LazyLinear(2)

        def forward(self, x):
            return self.fc(torch.flatten(self.pool(self.body(x)), 1))

    x = image(64)
    for pool in (nn.AvgPool2d(8), nn.AdaptiveMaxPool2d((2, 3)), nn.Identity(), nn.Conv2d(4, 4, 8)):
        model = Head(pool).double().eval()
        model(x)
        result = pipe(model, dilate(2), example=x)
        assert seen(result, "body", x)[0].shape[-1] == 32
        assert near(result(x), model(x))


def test_a_model_that_differs_by_mode_is_dilated_in_both():
    model = tv.googlenet(init_weights=False).double()
    result = pipe(model, dilate(16))
    x = image(97)
    assert near(result.eval()(x), model.eval()(x))
    assert len(result.train()(x.repeat(2, 1, 1, 1))) == 3


def test_with_other_edits():
    result = pipe(tv.resnet18(), dilate(16), wrap("layer4", se), swap_head(3)).eval()
    assert result(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    model = tv.resnet18().double().eval()
    step = compose(wrap("layer4", se), dilate(8))
    assert near(step(model)(image(65)), model(image(65)))


def test_a_layer_with_a_forward_of_its_own_sees_maps_of_the_original():
    from timm.layers import BlurPool2d, Conv2dSame, StdConv2d

    class Other(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.roll(1, -1)[..., 1:])

    start = nn.Conv2d(3, 4, 3, 2, 1)
    alike(
        nn.Sequential(start, StdConv2d(4, 4, 3, 2), Conv2dSame(4, 4, 3, 2), Conv2dSame(4, 4, 4)), 2, density=4
    )
    alike(nn.Sequential(start, BlurPool2d(4), nn.Conv2d(4, 4, 3)), 2, density=2)
    alike(nn.Sequential(start, nn.MaxPool2d(2), Other(4, 4, 3)), 2, density=2)


def test_strides_are_those_that_the_model_has():
    for stride, written in ((12, "dilate(8)"), (64, "dilate(32)"), (1, "dilate(2)")):
        with pytest.raises(OptionError, match=f"no maps of stride {stride}") as caught:
            pipe(tv.resnet18(), dilate(stride))
        assert caught.value.found == "strides 2, 4, 8, 16, 32"
        assert caught.value.write == written
    with pytest.raises(OptionError) as caught:
        pipe(tv.convnext_tiny(), dilate(2))
    assert caught.value.found == "strides 4, 8, 16, 32"
    with pytest.raises(TargetError, match="nothing to dilate"):
        pipe(nn.Linear(3, 3), dilate(8))
    for wrong in (0, -8, 2.0, True, "8", None):
        with pytest.raises(OptionError):
            dilate(wrong)


class Attends(nn.Module):
    """Attention over the places of a map of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        x = self.body(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.last(x + tokens.transpose(1, 2).reshape(x.shape))


def test_what_mixes_places_is_named():
    alike(Attends(), 4, density=2)
    with pytest.raises(TargetError, match="'attention' mixes places") as caught:
        pipe(Attends(), dilate(2))
    assert caught.value.found == "add on a map of stride 4, 2 x 2 times as dense"
    assert caught.value.write.startswith("dilate(4)")
    last = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d((3, 4)))
    alike(last, 2, density=1)


@pytest.mark.parametrize("layer", [
    nn.ConvTranspose2d(4, 4, 3, padding=1), nn.LayerNorm([4, 16, 16]), nn.Softmax(2), nn.Upsample(scale_factor=2),
])  # fmt: skip
def test_what_works_on_whole_maps_gets_those_of_the_original(layer):
    model = enliven(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), layer)).double().eval()
    x = image(64)
    new, old = pipe(model, dilate(2), example=x)(x), model(x)
    step = new.shape[-1] // old.shape[-1]
    assert near(new[..., ::step, ::step], old)


def test_a_table_of_places_is_added_to_each_map_of_the_original():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
            self.table = nn.Parameter(torch.randn(4, 16, 16))

        def forward(self, x):
            return self.body(x) + self.table

    model, x = Placed().double().eval(), image(64)
    assert near(pipe(model, dilate(2), example=x)(x)[..., ::2, ::2], model(x))


def test_nothing_is_changed_where_something_cannot_be():
    model = Attends()
    draft = Draft(model)
    with pytest.raises(TargetError):
        dilate(2)._edit(draft)
    assert not draft.opened
    assert draft.get("body.1").stride == (2, 2)


def test_slices_with_gaps_are_strides():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.conv(x) + x[..., ::2, ::2]

    alike(Cut(), 2, density=2)


def test_a_layer_is_dilated_in_one_way():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.down, self.same = (
                nn.Conv2d(3, 4, 3, 2, 1),
                nn.MaxPool2d(2),
                nn.Conv2d(4, 4, 3, 1, 1),
            )

        def forward(self, x):
            return self.same(self.down(self.same(self.stem(x))))

    alike(Shared(), 4, density=1)
    with pytest.raises(TargetError, match="'same' is used at several places"):
        pipe(Shared(), dilate(2))


def test_stages_that_merge_patches_have_strides_too():
    swin = tv.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4]).eval()
    x = image(64).float()
    assert torch.equal(dilate(8)(swin)(x), swin(x))
    with pytest.raises(TargetError, match=r"'features.3.0.attn.view' mixes places"):
        dilate(4)(swin)

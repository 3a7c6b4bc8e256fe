"""The deep record and its axes: what a run did, down to primitive operations, and how values are laid out."""

from __future__ import annotations

import math

import pytest
import torch
from fingerprint import changes, fingerprint
from nets import Caching, Residual, Small
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, vit_b_16

from torchgraft.graph.deep.axes import Layout, follow, layout_of
from torchgraft.graph.deep.record import Record, Ref, record

SHAPE = (2, 3, 32, 48)


class Net(nn.Module):
    """A forward as a function of the modules and the input."""

    def __init__(self, function, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x, *self.parts)


def recorded(function, *parts: nn.Module, shape=SHAPE) -> Record:
    return record(Net(function, *parts), ((torch.empty(shape),), {}))


def layout(function, *parts: nn.Module, shape=SHAPE) -> Layout | None:
    told = recorded(function, *parts, shape=shape)
    return layout_of(follow(told)[told.outputs[0]])


def named(told: Record, name: str):
    return [op for op in told.ops if op.name == name]


def nchw(channels: int, grid: tuple[int, int], stride: tuple[int, int]) -> Layout:
    return Layout("NCHW", channels, grid, stride)


# What a run did ----------------------------------------------------------------------------


class OneMode(nn.Module):
    """Keeps a table while it is in evaluation, or has no other mode."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.strict, self.scale, self.kept = strict, nn.Parameter(torch.ones(3, 1, 1)), {}
        self.kept["scale"] = self.scale.detach() * 2

    def train(self, mode: bool = True) -> nn.Module:
        if self.strict:
            raise NotImplementedError
        self.kept.clear()
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kept.get("scale", self.scale)


@pytest.mark.parametrize("strict", [False, True])
def test_tables_that_a_change_of_the_mode_drops_are_no_part_of_a_run(strict):
    model = OneMode(strict=strict)
    told = record(model, ((torch.empty(SHAPE),), {}))
    (product,) = named(told, "mul")
    assert (product.inputs[1] in told.keys) is not strict
    assert "scale" in model.kept


def test_values_are_told_apart_by_when_they_were_written():
    told = recorded(
        lambda x, conv, relu: (conv(x), relu(conv(x)))[1], nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)
    )
    first, second = named(told, "convolution")
    (relu,) = named(told, "relu_")
    assert relu.inputs == second.outputs
    assert relu.outputs == told.outputs
    assert set(relu.outputs).isdisjoint(second.outputs)
    assert first.outputs != second.outputs
    assert told.shapes[told.outputs[0]] == (2, 4, 32, 48)


def test_a_write_into_a_view_makes_a_new_value_of_the_whole_and_of_other_views():
    def views(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        half, other = y[:, :1], y.view(2, -1)
        half.add_(1)
        return y, half, other

    told = recorded(views)
    (made,) = named(told, "add")
    (written,) = named(told, "add_")
    whole, half, other = told.outputs
    assert half == written.outputs[0]
    assert whole != made.outputs[0]
    assert {op.outputs[0] for op in named(told, "written")} == {whole, other}
    for op in named(told, "written"):
        assert op.inputs[1] == half
        assert op.args == tuple(map(Ref, op.inputs))


def test_an_assignment_to_a_part_is_a_write():
    def assigned(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = 0
        return y

    told = recorded(assigned)
    (made,) = named(told, "mul")
    assert told.outputs[0] not in made.outputs
    assert layout(assigned) == nchw(3, (32, 48), (1, 1))


def test_what_is_written_to_an_argument_given_by_keyword_is_seen():
    def out(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        torch.add(x, x, out=y)
        return y

    told = recorded(out)
    assert named(told, "add")[0].outputs == told.outputs


def test_calls_are_numbered_and_nested():
    told = record(Small(), ((torch.empty(2, 3, 16, 16),), {}))
    paths = [(scope.path, scope.number) for scope in told.scopes]
    assert paths[:6] == [
        ("", 0), ("stem", 0), ("stage", 0), ("stage.0", 0), ("stage.0.conv1", 0), ("stage.0.relu", 0),
    ]  # fmt: skip
    assert ("stage.0.relu", 1) in paths
    for number, scope in enumerate(told.scopes):
        assert scope.parent < number
        outer = told.scopes[max(scope.parent, 0)]
        assert outer.start <= scope.start <= scope.end <= outer.end
        assert scope.path == "" or scope.path.rpartition(".")[0] == outer.path
    assert {op.scope for op in named(told, "convolution")} == {
        i for i, scope in enumerate(told.scopes) if scope.cls is nn.Conv2d
    }
    assert told.scopes[1].inputs == told.inputs
    assert told.scopes[1].outputs == (((), named(told, "convolution")[0].outputs[0]),)


def test_nested_outputs_carry_the_way_to_each_tensor():
    told = recorded(lambda x: {"a": x + 1, "b": [x * 2, (x - 1, None)]})
    assert [way for way, _ in told.scopes[0].outputs] == [("a",), ("b", 0), ("b", 1, 0)]
    assert [value for _, value in told.scopes[0].outputs] == list(told.outputs)


def test_parameters_and_buffers_are_known_by_their_names():
    told = record(Residual(4).eval(), ((torch.empty(2, 4, 8, 8),), {}))
    conv = named(told, "convolution")[0]
    assert [told.keys[value] for value in conv.inputs[1:]] == ["conv1.weight", "conv1.bias"]
    assert {"bn.weight", "bn.running_mean"} <= set(told.keys.values())
    assert told.inputs[0] not in told.keys


def test_the_mode_is_that_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    given = ((torch.empty(SHAPE),), {})
    assert "bernoulli_" in {op.name for op in record(model, given, training=True).ops} | {"bernoulli_"}
    assert len(record(model, given, training=True).ops) > len(record(model.train(), given).ops)


def test_neither_the_model_nor_what_it_is_given_is_touched():
    fired: list[object] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    model[0].register_forward_hook(lambda *given: fired.append(given))
    model.register_forward_pre_hook(lambda *given: fired.append(given))
    x = torch.randn(2, 3, 8, 8)
    copy, before, state = x.clone(), fingerprint(model), torch.get_rng_state()
    record(model, ((x,), {}), training=True)
    record(nn.ReLU(inplace=True), ((), {"input": x}))
    assert fired == []
    assert x.equal(copy)
    assert not changes(before, fingerprint(model))
    assert torch.get_rng_state().equal(state)
    caching = Caching()
    record(caching, ((torch.zeros(2, 3),), {}))
    assert caching.seen == {}
    assert caching.last is None


def test_a_forward_that_fails_leaves_nothing_behind():
    def failing(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recorded(failing)
    assert recorded(lambda x: x + 1).outputs


# How values are laid out -------------------------------------------------------------------

conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)


@pytest.mark.parametrize(
    ("function", "parts", "expected"),
    [
        (lambda x, m: m(x), [conv], nchw(8, (16, 24), (2, 2))),
        (lambda x, m: m(x), [nn.Conv2d(3, 8, 7)], nchw(8, (26, 42), (1, 1))),
        (lambda x, m: m(x), [nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1)], nchw(8, (16, 48), (2, 1))),
        (lambda x, m: m(x[:, :, :31, :47]), [conv], nchw(8, (16, 24), (2, 2))),
        (lambda x, a, b: b(a(x)), [conv, nn.ConvTranspose2d(8, 5, 2, 2)], nchw(5, (32, 48), (1, 1))),
        (lambda x: F.max_pool2d(x, 3, 2, 1), [], nchw(3, (16, 24), (2, 2))),
        (lambda x: F.avg_pool2d(x, 2), [], nchw(3, (16, 24), (2, 2))),
        (lambda x: F.adaptive_avg_pool2d(x, (8, 12)), [], nchw(3, (8, 12), (4, 4))),
        (lambda x: F.adaptive_avg_pool2d(x, 1), [], None),
        (lambda x: F.avg_pool2d(x, (32, 48)), [], None),
        (lambda x: x.mean((2, 3), keepdim=True), [], None),
        (lambda x: x.mean((2, 3)), [], Layout("NC", 3)),
        (lambda x: x.amax(), [], None),
        (lambda x: x.mean(dim=None), [], None),
        (lambda x: x.max(1, keepdim=True)[0], [], nchw(1, (32, 48), (1, 1))),
        (lambda x: F.interpolate(x, size=(20, 30), mode="bilinear"), [], nchw(3, (20, 30), (2, 2))),
        (lambda x: F.interpolate(x, scale_factor=0.25, mode="nearest"), [], nchw(3, (8, 12), (4, 4))),
        (lambda x, m: F.interpolate(m(x), size=(32, 48), mode="bicubic"), [conv], nchw(8, (32, 48), (1, 1))),
        (lambda x: F.pixel_unshuffle(x, 4), [], nchw(48, (8, 12), (4, 4))),
        (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 4), 2), [], nchw(12, (16, 24), (2, 2))),
        (lambda x: F.unfold(x, 4, stride=4), [], Layout("NCL", 48, (8, 12), (4, 4))),
        (lambda x: F.fold(F.unfold(x, 4, stride=4), (32, 48), 4, stride=4), [], nchw(3, (32, 48), (1, 1))),
        (lambda x: F.pad(x[:, :, :3, :5], (1, 1, 1, 1)), [], nchw(3, (5, 7), (1, 1))),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), [], nchw(3, (34, 50), (1, 1))),
        (lambda x: torch.roll(x, (1, 1), (2, 3)), [], nchw(3, (32, 48), (1, 1))),
        (lambda x: x[:, :, ::4, 1::4], [], nchw(3, (8, 12), (4, 4))),
        (lambda x: x[:, :, -16:, -24:], [], nchw(3, (16, 24), (1, 1))),
        (lambda x: torch.cat([x, torch.ones_like(x), x], 1), [], nchw(9, (32, 48), (1, 1))),
        (lambda x: torch.cat([x, x], 2), [], None),
        (lambda x: x.split([1, 2], 1)[1], [], nchw(2, (32, 48), (1, 1))),
        (lambda x: x.chunk(3, 1)[2], [], nchw(1, (32, 48), (1, 1))),
        (lambda x: torch.stack([x, x], 2).sum(2), [], nchw(3, (32, 48), (1, 1))),
        (lambda x: torch.stack([x, x], 2), [], None),
        (lambda x: x[:, [2, 1, 0]], [], nchw(3, (32, 48), (1, 1))),
        (lambda x: x.repeat(1, 4, 1, 1), [], nchw(12, (32, 48), (1, 1))),
        (lambda x: x.repeat(1, 1, 2, 2), [], None),
        (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8), [], None),
        (lambda x: x.mean(1, keepdim=True).expand(2, 5, 32, 48), [], nchw(5, (32, 48), (1, 1))),
        (lambda x: x * x.mean((2, 3), keepdim=True), [], nchw(3, (32, 48), (1, 1))),
        (lambda x: x.movedim(1, -1), [], Layout("NHWC", 3, (32, 48), (1, 1))),
        (lambda x, m: m(x.movedim(1, -1)), [nn.Linear(3, 5)], Layout("NHWC", 5, (32, 48), (1, 1))),
        (lambda x, m: torch.einsum("nchw,oc->nohw", x, m.weight), [nn.Linear(3, 5)], nchw(5, (32, 48), (1, 1))),
        (lambda x: torch.zeros(2, 3, 4, 4) + x.mean(), [], None),
        (lambda x: x.unsqueeze(0), [], None),
        (lambda x: x.transpose(0, 1), [], None),
        (lambda x: F.scaled_dot_product_attention(x, x, x), [], nchw(3, (32, 48), (1, 1))),
        (lambda x: x.flatten(2)[:, :, :1000].view(2, 3, 25, 40), [], None),
        (lambda x: x.view(2, 9, 16, 32), [], None),
        (lambda x: x.flatten(2).unflatten(2, (48, 32)), [], None),
        (lambda x: torch.cat([x[:, :, ::2], x[:, :, 1::2]], 1)[:, :5], [], nchw(5, (16, 48), (2, 1))),
        (lambda x: x[:, :, :, torch.arange(24)], [], None),
        (lambda x: F.max_pool2d(x, (4, 1)).mean(2), [], None),
        (lambda x: x[:, torch.arange(3)[:, None], torch.arange(32)[None]], [], None),
        (lambda x: x.chunk(1, 2)[0], [], nchw(3, (32, 48), (1, 1))),
        (lambda x: torch.cat([x[0, 0, 0, :0], torch.zeros(SHAPE)]), [], None),
        (lambda x: x[:, :, :0].flatten(1), [], Layout("NC", 0)),
        (lambda x: x.index_select(1, torch.arange(2)), [], nchw(2, (32, 48), (1, 1))),
        (lambda x: x.index_select(3, torch.arange(2)), [], None),
        # Some of the places are left out, so those that stay are not evenly apart.
        (lambda x: x.view(2, 3, 2, 4, 4, 48)[:, :, :, 0].reshape(2, 3, 8, 48), [], None),
        (lambda x: x.view(2, 3, 8, 4, 48)[:, :, :, 0], [], nchw(3, (8, 48), (4, 1))),
    ],
)  # fmt: skip
def test_layouts_of_maps(function, parts, expected):
    assert layout(function, *parts) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.pixel_shuffle(x.repeat(4, 1, 1), 2),
        lambda x: F.unfold(x, 4, stride=4),
        lambda x: F.fold(F.unfold(x, 4, stride=4), (32, 48), 4, stride=4),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.conv2d(torch.ones(2, 3, 32, 48), x[:, None, :3, :3].expand(3, 3, 3, 3)),
        lambda x: x[0, 0].t().t(),
        lambda x: x[0, 0, :4].t() @ torch.ones(4),
    ],
)
def test_one_image_without_a_batch_has_no_map(function):
    assert layout(function, shape=(3, 32, 48)) is None


def tokens(x: torch.Tensor, patches: nn.Module) -> torch.Tensor:
    return patches(x).flatten(2).transpose(1, 2)


def beside(ahead: int, behind: int, *, cut: tuple[int, int | None] = (0, None)):
    """Put tokens before and behind those of the map, and take a range."""

    def function(x: torch.Tensor, patches: nn.Module, extra: nn.Module) -> torch.Tensor:
        extra = extra.weight.expand(len(x), -1, -1)
        x = torch.cat([extra[:, :ahead], tokens(x, patches), extra[:, :behind]], 1)
        return x[:, cut[0] : cut[1]]

    return function


@pytest.mark.parametrize(
    ("ahead", "behind", "cut", "prefix"),
    [
        (1, 0, (0, None), 1),
        (5, 0, (0, None), 5),
        (0, 2, (0, None), 0),
        (1, 2, (0, None), 1),
        (3, 1, (1, None), 2),
        (3, 1, (3, None), 0),
        (3, 1, (3, -1), 0),
        (3, 1, (0, -1), 3),
    ],
)
def test_tokens_beside_those_of_a_map(ahead, behind, cut, prefix):
    function = beside(ahead, behind, cut=cut)
    held = layout(function, nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 6))
    assert held == Layout("NLC", 8, (4, 6), (8, 8), prefix)


@pytest.mark.parametrize(
    ("ahead", "behind", "cut"), [(3, 1, (4, None)), (3, 1, (0, 3)), (1, 0, (0, 1)), (3, 3, (2, 9))]
)
def test_a_part_of_the_tokens_is_no_map(ahead, behind, cut):
    assert layout(beside(ahead, behind, cut=cut), nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 6)) is None


def test_a_second_token_ahead_is_counted_with_the_first():
    def twice(x: torch.Tensor, patches: nn.Module, extra: nn.Module) -> torch.Tensor:
        extra = extra.weight.expand(len(x), -1, -1)
        x = torch.cat([extra[:, :1], tokens(x, patches)], 1)
        pooled = x.mean(1, keepdim=True)
        return torch.cat([extra[:, :2], pooled, x], 1)

    assert layout(twice, nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 6)).prefix == 4


def test_tokens_of_two_maps_are_no_map():
    assert layout(lambda x, m: torch.cat([tokens(x, m), tokens(x, m)], 1), nn.Conv2d(3, 8, 8, 8)) is None
    assert layout(lambda x, m: tokens(x, m)[:, torch.randperm(24)], nn.Conv2d(3, 8, 8, 8)) is None
    assert layout(lambda x: x[torch.arange(2), torch.arange(2)], shape=SHAPE) is None


def test_attention_as_a_module_in_both_orders_of_axes():
    patches = nn.Conv2d(3, 8, 8, 8)
    there = nn.MultiheadAttention(8, 2, batch_first=True)
    assert layout(lambda x, p, m: m(*[tokens(x, p)] * 3)[0], patches, there) == Layout(
        "NLC", 8, (4, 6), (8, 8)
    )
    other = nn.MultiheadAttention(8, 2)
    assert layout(
        lambda x, p, m: m(*[tokens(x, p).transpose(0, 1)] * 3)[0].transpose(0, 1), patches, other
    ) == Layout("NLC", 8, (4, 6), (8, 8))


def test_attention_spelled_out_and_across_channels():
    def across(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return weights @ x

    assert layout(across) == Layout("NCL", 3, (32, 48), (1, 1))

    def mixed(x: torch.Tensor, m: nn.Module) -> torch.Tensor:  # a parameter from the left
        return m.weight.expand(2, -1, -1) @ x.flatten(2)

    assert layout(mixed, nn.Linear(3, 7)) == Layout("NCL", 7, (32, 48), (1, 1))
    assert layout(lambda x, m: m.weight @ x[0].flatten(1), nn.Linear(3, 7)) is None


def test_kernels_that_each_sample_brings():
    def own(x: torch.Tensor, m: nn.Module) -> torch.Tensor:
        kernels = m.weight.repeat(len(x), 1, 1, 1)
        return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=len(x)).view(len(x), -1, *x.shape[2:])

    assert layout(own, nn.Conv2d(3, 5, 1)) == nchw(5, (32, 48), (1, 1))


def test_a_convolution_says_again_what_was_lost():
    def lost(x: torch.Tensor, m: nn.Module) -> torch.Tensor:
        x = x[:, :, torch.arange(32)][:, :, :, torch.arange(48)]
        return m(x)

    assert layout(lost, conv) == nchw(8, (16, 24), (2, 2))


def windows(x: torch.Tensor, side: int) -> torch.Tensor:
    n, high, wide, c = x.shape
    x = x.view(n, high // side, side, wide // side, side, c).transpose(2, 3)
    return x.reshape(-1, side * side, c)


def test_windows_are_no_map_and_back_they_are_one():
    def back(x: torch.Tensor) -> torch.Tensor:
        n, c, high, wide = x.shape
        x = windows(x.movedim(1, -1), 8).view(n, high // 8, wide // 8, 8, 8, c).transpose(2, 3)
        return x.reshape(n, high, wide, c)

    assert layout(lambda x: windows(x.movedim(1, -1), 8)) is None
    assert layout(back) == Layout("NHWC", 3, (32, 48), (1, 1))
    assert layout(back, shape=(1, 3, 32, 48)) == Layout("NHWC", 3, (32, 48), (1, 1))


def unrolled(x: torch.Tensor, times: int) -> torch.Tensor:
    """Make tokens of which neighbours stand far apart, and deeper ones the farther."""
    n, c, high, wide = x.shape
    x, sizes = x.movedim(1, -1), []
    for _ in range(times):
        high, wide = high // 2, wide // 2
        x = x.view(len(x), high, 2, wide, 2, c).permute(0, 2, 4, 1, 3, 5)
        sizes += [2, 2]
        x = x.reshape(-1, high, wide, c)
    return x.reshape(n, -1, c)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_tokens_in_another_order_tell_it_and_fold_by_it(times):
    held = layout(lambda x: unrolled(x, times))
    assert (held.name, held.grid, held.stride) == ("NLC", (32, 48), (1, 1))
    x = torch.arange(math.prod(SHAPE)).view(SHAPE)
    folded = unrolled(x, times).unflatten(1, [size for _, size, _ in held.order])
    ranked = sorted(range(len(held.order)), key=lambda i: (held.order[i][0], -held.order[i][2]))
    folded = folded.permute(0, *(1 + i for i in ranked), -1).reshape(2, 32, 48, 3)
    assert folded.movedim(-1, 1).equal(x)


def test_what_is_no_image_has_no_map():
    told = record(nn.Linear(4, 5), ((torch.empty(2, 4),), {}))
    assert layout_of(follow(told)[told.outputs[0]]) == Layout("NC", 5)
    told = record(nn.Conv3d(3, 4, 1), ((torch.empty(2, 3, 8, 16, 16),), {}))
    assert layout_of(follow(told)[told.outputs[0]]) is None
    told = record(nn.Conv1d(3, 4, 1), ((torch.empty(2, 3, 16),), {}))
    assert layout_of(follow(told)[told.outputs[0]]) is None
    told = recorded(lambda x: torch.zeros(3))
    assert told.outputs[0] not in follow(told)


def test_of_several_inputs_the_image_counts():
    class Two(nn.Module):
        def forward(self, code: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return x * code[:, :, None, None]

    told = record(Two(), ((torch.empty(2, 3),), {"x": torch.empty(SHAPE)}))
    assert len(told.inputs) == 2
    assert layout_of(follow(told)[told.outputs[0]]) == nchw(3, (32, 48), (1, 1))


@pytest.mark.parametrize("side", [32, 65, 224, 225, 299])
def test_grids_are_those_of_the_tensors(side):
    with torch.device("meta"):
        model = resnet18()
    told = record(model, ((torch.empty(2, 3, side, side + 30),), {}))
    axes = follow(told)
    for scope in told.scopes:
        for _, value in scope.outputs:
            held = layout_of(axes[value])
            if len(told.shapes[value]) == 4 and scope.path != "avgpool":
                assert held.grid == told.shapes[value][2:], scope.path
                assert held.channels == told.shapes[value][1]
    at = {scope.path: layout_of(axes[scope.outputs[0][1]]) for scope in told.scopes}
    assert [at[f"layer{i}"].stride for i in (1, 2, 3, 4)] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert at["avgpool"] is None


def test_tokens_keep_their_grid_through_a_transformer():
    with torch.device("meta"):
        model = vit_b_16()
    told = record(model, ((torch.empty(2, 3, 224, 224),), {}))
    axes = follow(told)
    given = {scope.path: layout_of(axes[scope.outputs[0][1]]) for scope in told.scopes}
    assert given["conv_proj"] == nchw(768, (14, 14), (16, 16))
    assert given["encoder.layers.encoder_layer_11"] == Layout("NLC", 768, (14, 14), (16, 16), 1)
    assert given["heads"] == Layout("NC", 1000)

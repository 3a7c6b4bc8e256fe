"""Drop path: which branches are found, at what rates, and what stays the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision.models as tv
from checks import run, same
from nets import Residual
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DropBlock2d, StochasticDepth

from torchgraft import pipe, replace
from torchgraft.edits.drop_path import drop_path, rate_name
from torchgraft.errors import OptionError, TargetError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.residual import branch_edges, residual_units


def rates(model: nn.Module) -> list[float]:
    """List the rates in the order of registration, zeros left out."""
    named = [(rate_name(m), m) for m in model.modules()]
    return [getattr(m, name) for name, m in named if name and getattr(m, name)]


def counts(model: nn.Module) -> tuple[int, int]:
    units = residual_units(Draft(model))
    return len(units), sum(map(len, units))


def on_meta(name: str, **options: object) -> nn.Module:
    if name.startswith("timm/"):
        import timm

        with torch.device("meta"):
            return timm.create_model(name.removeprefix("timm/"), **options)
    if name == "googlenet":
        options["init_weights"] = False
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # its initialisation reads values
        return tv.get_model(name, weights=None, **options)


# What the structure gives, against what the architectures are made of ------------------------


@pytest.mark.parametrize(
    ("name", "units", "branches"),
    [
        ("resnet18", 8, 8), ("resnet50", 16, 16), ("convnext_tiny", 18, 18), ("swin_t", 12, 24),
        ("vit_b_16", 12, 24), ("efficientnet_b0", 9, 9), ("mobilenet_v2", 10, 10), ("regnet_y_400mf", 16, 16),
        ("maxvit_t", 33, 55),  # 11 blocks of a convolution and two attentions, each with its own class
        ("timm/resnet50", 16, 16), ("timm/convnext_tiny", 18, 18), ("timm/vit_tiny_patch16_224", 3, 6),
        ("timm/resnetv2_50", 16, 16), ("timm/swin_tiny_patch4_window7_224", 12, 24),
        ("timm/mixer_s32_224", 8, 16), ("timm/poolformer_s12", 12, 24), ("timm/pvt_v2_b0", 8, 16),
        ("timm/mvitv2_tiny", 10, 20), ("timm/efficientnet_b0", 9, 9), ("timm/res2net50_26w_4s", 16, 16),
        ("timm/regnety_002", 13, 13), ("timm/convmixer_768_32", 32, 32), ("timm/mambaout_femto", 18, 18),
        ("timm/deit_tiny_distilled_patch16_224", 3, 6), ("timm/eva02_tiny_patch14_224", 3, 6),
    ],
)  # fmt: skip
def test_branches_are_found(name, units, branches):
    shallow = {"depth": 3} if name.endswith(("patch16_224", "patch14_224")) else {}
    assert counts(on_meta(name, **shallow)) == (units, branches)


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny"])
def test_the_schedule_is_that_of_timm(name):
    wanted = rates(on_meta(f"timm/{name}", drop_path_rate=0.1))
    assert len(wanted) == counts(on_meta(name))[0] - 1
    for model in (on_meta(f"timm/{name}"), on_meta(name)):
        assert rates(pipe(model, drop_path(0.1))) == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("name", ["resnet50", "poolformer_s12", "pvt_v2_b0"])
def test_every_module_that_timm_puts_is_found(name):
    model = on_meta(f"timm/{name}", drop_path_rate=0.3)
    assert len(rates(model)) > 6
    result = pipe(model, drop_path(0.1))
    assert [n for n, _ in result.named_modules()] == [n for n, _ in model.named_modules()]
    assert rates(result) == pytest.approx([rate / 3 for rate in rates(model)])
    assert rates(pipe(result, drop_path(0))) == []


def test_every_module_that_timm_puts_is_found_in_a_transformer():
    model = on_meta("timm/vit_tiny_patch16_224", drop_path_rate=0.3, depth=4)
    assert rates(pipe(model, drop_path(0.1))) == pytest.approx([rate / 3 for rate in rates(model)])
    assert len(rates(model)) == 6


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "googlenet", "squeezenet1_1"])
def test_models_without_residual_branches_are_refused(name):
    with pytest.raises(TargetError, match="no residual branch"):
        pipe(on_meta(name), drop_path(0.1))


def test_layers_of_torch_are_not_searched_and_named():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    with pytest.raises(TargetError) as caught:
        pipe(model, drop_path(0.1))
    assert caught.value.found.startswith("nn.TransformerEncoderLayer, ")


# What is one, and what is none ----------------------------------------------------------------


class Around(nn.Module):
    """A net around one forward, with a few layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.short, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.drop = StochasticDepth(0.5, "row")
        self.places = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self, x)


def used_outside(m, x):
    y = m.a(x)
    return m.b(y) + x, y


def pyramid(m, x):
    low = m.a(x)
    lower = m.b(low)
    top = m.c(lower)
    middle = m.short(low) + top
    return m.short(x) + middle, middle, top


def gated(m, x):
    return x + x * torch.sigmoid(m.a(x.mean((2, 3), keepdim=True)))


def by_size(m, x):
    return x + torch.ones_like(m.a(x))


def parts(m, x):
    y, z = x.chunk(2, 1)
    return torch.cat([y, y], 1) + m.a(torch.cat([z, z], 1))


def in_statement(m, x):
    y = m.deep(x)
    y.add_(x)
    return y


NONE = {
    "two branches of one length": lambda m, x: m.a(x) + m.b(x),
    "three branches of one length": lambda m, x: m.a(x) + m.b(x) + m.c(x),
    "no layer": lambda m, x: x + F.relu(x),
    "places": lambda m, x: m.a(x) + m.places,
    "places of a size": lambda m, x: m.a(x) + torch.arange(x.shape[-1]),
    "a number": lambda m, x: m.a(x) + 1,
    "itself": lambda m, x: m.a(x) + m.a(x) * 0,
    "used outside": used_outside,
    "a pyramid": pyramid,
    "a gate": gated,
    "ones of a size": by_size,
    "parts": parts,
    "two of one length behind a stem": lambda m, x: m.b(F.relu(m.a(x))) + m.c(F.relu(m.a(x))),
    "an earlier value as well": lambda m, x: (y := m.a(x)) + m.c(torch.cat([m.b(y), x], 1)[:, :4]),
}


@pytest.mark.parametrize("name", NONE)
def test_sums_that_are_no_residual_ones(name):
    assert counts(Around(NONE[name])) == (0, 0)


def parallel(m, x):
    return x + m.a(F.relu(x)) + m.deep(x)


def by_hand(m, x):
    y = F.relu(x)
    return torch.add(y, other=m.deep(y)).add(m.a(y))


def nested(m, x):
    y = m.a(x)
    y = y + m.deep(y)
    return m.c(y) + x


SOME = {
    "function": (lambda m, x: torch.add(x, m.deep(x)), ["deep"]),
    "method": (lambda m, x: m.deep(x).add_(x), ["deep"]),
    "in place": (lambda m, x: m.a(m.b(x)).add(x), ["a"]),
    "projection": (lambda m, x: m.short(x) + m.deep(x), ["deep"]),
    "projection in other order": (lambda m, x: m.a(m.b(x)) + m.norm(x), ["a"]),
    "slice": (lambda m, x: F.pad(x[:, :2, ::2], (0, 0, 0, 0, 0, 2)) + m.a(F.relu(x))[:, :, ::2], ["getitem_1"]),
    "sizes": (lambda m, x: x + m.a(x).reshape(x.shape[0], 4, *x.shape[2:]), ["reshape"]),
    "scaled": (lambda m, x: x + m.places * m.deep(x), ["mul"]),
    "parallel": (parallel, ["a", "deep"]),
    "one inside another": (nested, ["deep", "c"]),
    "three terms": (by_hand, ["deep", "a"]),
    "a statement on the branch": (in_statement, ["deep"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_residual_sums_in_many_spellings(name):
    function, ends = SOME[name]
    draft = Draft(Around(function))
    edges = [branch_edges(draft, branch)[0] for unit in residual_units(draft) for branch in unit]
    assert [e.value.target if e.value.op == "call_module" else e.value.name for e in edges] == ends
    model, x = Around(function), torch.randn(4, 4, 6, 6)
    result = pipe(model, drop_path(0.9))
    assert same(run(result, x, mode=False), run(copy.deepcopy(model), x, mode=False))
    assert not same(run(result, x, mode=True), run(copy.deepcopy(model), x, mode=True))


class Conditioned(nn.Module):
    """A block with a condition from outside, whose trunk takes sizes too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, turn: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x + self.a(x).reshape(-1, size[0] * size[1], 4) * turn
        return x + self.b(x).reshape(-1, size[0] * size[1], 4) * turn


class Conditions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conditioned(), Conditioned()])

    def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        size = x.shape[1:3]
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, turn, size)
        return x


def test_conditions_and_sizes_may_join_a_branch():
    x = (torch.randn(2, 3, 3, 4), torch.randn(2, 1, 4))
    assert list(map(len, residual_units(Draft(Conditions(), x)))) == [2, 2]
    result = pipe(Conditions(), drop_path(0.4), example=x)
    assert [name for name, _ in result.blocks[1].named_children()] == ["a", "drop_path", "b", "drop_path_1"]
    assert rates(result) == [0.4, 0.4]


# Units and places ----------------------------------------------------------------------------


def test_modules_stand_beside_the_branch_and_run_before_the_sum(small, images):
    result = pipe(small, drop_path(0.5))
    assert list(result.stage[1]._modules) == ["conv1", "conv2", "bn", "drop_path", "relu"]
    assert [n.target for n in result.stage[1].graph.nodes if n.op == "call_module"] == [
        "conv1", "relu", "conv2", "bn", "drop_path", "relu",
    ]  # fmt: skip
    assert type(result.stage[0]) is Residual  # at rate 0 nothing is opened
    assert list(result.state_dict()) == list(small.state_dict())
    assert repr(result.stage[1].drop_path) == "StochasticDepth(p=0.5, mode=row)"
    assert not result.stage[1].drop_path.training
    again = pipe(result, drop_path(0.2))
    assert rates(again) == [0.2]
    assert rates(result) == [0.5]


def test_additions_of_a_level_that_does_not_repeat_are_units_of_their_own():
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = x + self.a(x)
            x = x + self.b(x)
            return x + self.c(x)

    result = pipe(Three(), drop_path(0.2))
    assert rates(result) == pytest.approx([0.1, 0.2])
    twice = pipe(nn.Sequential(Three(), nn.ReLU(), Three()), drop_path(0.2))
    assert rates(twice) == [0.2] * 3
    assert rates(pipe(nn.Sequential(Residual(3)), drop_path(0.2))) == [0.2]  # a single one is the last


def test_a_shared_level_counts_once():
    unit, other = Residual(3), Residual(3)
    result = pipe(nn.Sequential(other, unit, nn.ReLU(), unit), drop_path(0.2))
    assert result[1] is result[3]
    assert rates(result) == [0.2]
    assert [n.target for n in result[1].graph.nodes if n.op == "call_module"].count("drop_path") == 1
    assert not hasattr(result[0], "drop_path")


def test_order_is_that_of_the_calls_and_not_that_of_registration():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = Residual(3), Residual(3)

        def forward(self, x):
            return self.last(self.first(x))

    assert pipe(Backwards(), drop_path(0.2)).last.drop_path.p == 0.2


class TwoModes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.training:
            y = y * 2
        x = x + y
        return x + self.b(x)


def test_a_level_with_two_graphs_gets_the_module_in_both():
    result = pipe(nn.Sequential(TwoModes(), TwoModes()), drop_path(0.5))
    for graph in result[1].graphs:
        assert [n.target for n in graph.nodes if n.op == "call_module"] == [
            "a",
            "drop_path",
            "b",
            "drop_path_1",
        ]
    assert len(result[1].graphs) == 2
    x = torch.randn(8, 4)
    assert same(run(result, x, mode=False), run(nn.Sequential(*map(copy.deepcopy, result)), x, mode=False))


# What drops already ----------------------------------------------------------------------------


def test_what_drops_samples_is_told_by_what_it_does():
    import timm

    assert rate_name(StochasticDepth(0.1, "batch")) == "p"
    assert rate_name(timm.layers.DropPath(0.1)) == "drop_prob"
    state = torch.get_rng_state()
    for other in (
        nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(), nn.Identity(), DropBlock2d(0.1, 7), nn.ReLU(),
        timm.layers.DropBlock2d(0.1), nn.BatchNorm2d(2), timm.layers.PatchDropout(0.5),
    ):  # fmt: skip
        assert rate_name(other) is None, other
    assert state.equal(torch.get_rng_state())


def test_rates_are_set_where_a_branch_ends_in_one_already():
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(StochasticDepth(0.3, "batch"), nn.Dropout(0.1)))
    model = Around(lambda m, x: x + m.places * m.deep(x))
    model.deep = inner
    result = pipe(model, drop_path(0.2))
    assert result.deep[1][0].p == 0.2
    assert inner[1][0].p == 0.3
    assert not hasattr(result, "drop_path")
    middle = Around(lambda m, x: x + m.b(m.drop(m.a(x))))
    assert pipe(middle, drop_path(0.2)).drop.p == 0.5  # not at the end
    assert pipe(middle, drop_path(0.2)).drop_path.p == 0.2


def test_placeholders_of_timm_stay():
    result = pipe(on_meta("timm/convnext_tiny"), drop_path(0.1))
    block = result.stages[3].blocks[2]
    assert isinstance(block.drop_path, nn.Identity)
    assert block.drop_path_1.p == 0.1


def test_one_module_for_units_of_different_rates_is_refused():
    model = Around(lambda m, x: (y := x + m.drop(m.a(x))) + m.drop(m.b(y)))
    with pytest.raises(TargetError) as caught:
        pipe(model, drop_path(0.2))
    assert "'drop'" in caught.value.summary
    assert pipe(model, drop_path(0)).drop.p == 0


# What stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t", "regnet_y_400mf"])
def test_evaluation_is_bit_equal_and_training_is_at_rate_0(name):
    model = tv.get_model(name, num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    given = pipe(model, drop_path(0)) if rates(model) else model  # those that drop are turned off first
    none = pipe(given, drop_path(0))
    some = pipe(model, drop_path(0.5))
    for mode in (False, True):
        assert same(run(none, x, mode=mode), run(copy.deepcopy(given), x, mode=mode))
    assert same(run(some, x, mode=False), run(copy.deepcopy(model), x, mode=False))
    assert not same(run(pipe(model, drop_path(0.5)), x, mode=True), run(copy.deepcopy(given), x, mode=True))
    assert list(some.state_dict()) == list(model.state_dict())


def test_the_expected_output_stays_and_samples_drop_on_their_own():
    model = nn.Sequential(nn.Identity(), Around(lambda m, x: x + m.a(x)))
    x = torch.randn(1, 4, 3, 3).expand(20_000, 4, 3, 3)
    result = pipe(model, drop_path(0.25))
    with torch.no_grad():
        whole, left = model(x)[:1], result.train()(x)
    dropped = (left == x).flatten(1).all(1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(left.mean(0), whole[0], atol=0.02)
    assert torch.allclose(left[~dropped], x[:1] + (whole - x[:1]) / 0.75, atol=1e-5)


def test_gradients_reach_what_is_not_dropped(small, images):
    result = pipe(small, drop_path(0.5)).train()
    result(images).sum().backward()
    assert all(p.grad is not None for n, p in result.named_parameters() if not n.startswith("unused"))
    twin = pickle.loads(pickle.dumps(pipe(small, drop_path(0.5))))
    assert same(run(twin, images, mode=True), run(pipe(small, drop_path(0.5)), images, mode=True))


def test_the_model_is_untouched(small):
    before = {name: type(m) for name, m in small.named_modules()}
    pipe(small, drop_path(0.5))
    assert before == {name: type(m) for name, m in small.named_modules()}


# What cannot be followed ----------------------------------------------------------------------


class Deciding(nn.Module):
    """A forward that no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = Residual(3), Residual(3)

    def forward(self, x):
        return self.late(self.early(x if "cpu" in str(x.untyped_storage().device) else x * 2))


class DecidingAndAdding(Deciding):
    def forward(self, x):
        return self.added(self.late(self.early(x if "cpu" in str(x.untyped_storage().device) else x * 2)), x)

    def added(self, x, y):
        return x + y


def test_a_level_that_cannot_be_followed_is_an_error_only_where_it_adds():
    result = pipe(nn.Sequential(Deciding(), Residual(3)), drop_path(0.2))
    assert [result[0].late.drop_path.p, result[1].drop_path.p] == [0.1, 0.2]
    assert not hasattr(result[0].early, "drop_path")
    with pytest.raises(TraceError) as caught:
        pipe(nn.Sequential(DecidingAndAdding(), Residual(3)), drop_path(0.2))
    assert caught.value.module == "0"
    assert "untyped_storage" in caught.value.found


class Remembers(nn.Module):
    """An attention-like layer that keeps a bias on itself in evaluation, which stops the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bias, self.kept = nn.Linear(4, 4), nn.Parameter(torch.ones(4)), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.fc(x) + self.bias
        self.kept["bias"] = self.bias * 1
        return self.fc(x) + self.kept["bias"]


class RemembersAndAdds(Remembers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


class Attends(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner = kind()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def test_a_level_that_cannot_be_followed_is_no_obstacle_where_no_branch_is_dropped():
    result = pipe(
        nn.Sequential(Attends(Remembers), Attends(Remembers)), drop_path(0.2), example=torch.ones(2, 4)
    )
    assert result[1].drop_path.p == 0.2
    with pytest.raises(TraceError) as caught:
        pipe(nn.Sequential(Attends(Remembers), RemembersAndAdds()), drop_path(0.2), example=torch.ones(2, 4))
    assert caught.value.module == "1"


# The value itself ------------------------------------------------------------------------------


def test_it_is_a_value():
    step = drop_path(0.1)
    assert repr(step) == "drop_path(0.1)"
    assert eval(repr(step)) == step == pickle.loads(pickle.dumps(step))
    assert hash(step) == hash(drop_path(0.1))
    assert drop_path(0) == drop_path(0.0)


@pytest.mark.parametrize("rate", [1, -0.1, "0.1", True, None, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(OptionError) as caught:
        drop_path(rate)
    assert caught.value.write == "drop_path(0.1)"


def test_other_edits_follow(small, images):
    result = pipe(small, drop_path(0.5), replace("stage.1.drop_path", nn.Identity))
    assert same(run(result, images, mode=True), run(pipe(small), images, mode=True))

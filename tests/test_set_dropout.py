"""Set dropout: which dropouts are meant, in modules and in forwards, and what stays the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision.models as tv
from checks import run, same
from torch import nn
from torch.nn import functional as F

from torchgraft import edit, inject, pipe, swap_head, trace, wrap
from torchgraft.edits.set_dropout import set_dropout
from torchgraft.errors import OptionError, TargetError, TraceError
from torchgraft.graph.draft import Draft

FAMILY = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def held(model: nn.Module) -> set[float]:
    return {m.p for m in model.modules() if isinstance(m, FAMILY)}


def called(model: nn.Module, path: str, function: object = F.dropout, word: str = "p") -> list[object]:
    """List the probabilities that the graphs of a level hold, the one of training last."""
    return [n.kwargs[word] for g in model.get_submodule(path).graphs for n in g.nodes if n.target is function]


@pytest.mark.parametrize("kind", FAMILY)
def test_the_whole_family_is_set(kind):
    model = nn.Sequential(nn.Linear(3, 3), kind(0.2), nn.Sequential(kind(0.0, inplace=True)))
    result = pipe(model, set_dropout(0.7))
    assert held(result) == {0.7}
    assert held(model) == {0.0, 0.2}
    assert result[2][0].inplace
    assert type(result[2]) is nn.Sequential  # no forward had to be opened


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "efficientnet_b0", "swin_t", "vit_b_16", "alexnet", "googlenet"]
)
def test_models(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = tv.get_model(name, **options)
    result = pipe(model, set_dropout(0.35))
    assert held(result) == {0.35}
    assert list(result.state_dict()) == list(model.state_dict())
    assert [n for n, _ in result.named_modules()] == [n for n, _ in model.named_modules()]


def test_timm_and_drop_path_stays():
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1, depth=2)
    result = pipe(model, set_dropout(0.3))
    assert held(result) == {0.3}
    assert [m.drop_prob for m in result.modules() if hasattr(m, "drop_prob")] == [
        m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")
    ]


def test_evaluation_is_bit_equal_and_training_drops():
    model = tv.mobilenet_v2(num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    result = pipe(model, set_dropout(0.9))
    assert same(run(result, x, mode=False), run(copy.deepcopy(model), x, mode=False))
    assert not same(run(result, x, mode=True), run(copy.deepcopy(model), x, mode=True))
    back = pipe(result, set_dropout(0.2))
    assert same(run(back, x, mode=True), run(pipe(model), x, mode=True))


# Functions in forwards ------------------------------------------------------------------------


def test_functions_are_set_in_every_graph():
    torch.manual_seed(0)
    model = tv.DenseNet(8, (2, 2), 8, drop_rate=0.3, num_classes=5)
    result = pipe(model, set_dropout(0.6))
    layers = [m for m in result.modules() if hasattr(m, "drop_rate")]
    assert [(type(layer).__name__, layer.drop_rate) for layer in layers] == [("_DenseLayer", 0.6)] * 4
    x = torch.randn(2, 3, 32, 32)
    assert same(run(result, x, mode=False), run(copy.deepcopy(model), x, mode=False))
    assert same(run(result, x, mode=True), run(tv_densenet(model, 0.6), x, mode=True))
    back = pipe(result, set_dropout(0.1))
    assert {m.drop_rate for m in back.modules() if hasattr(m, "drop_rate")} == {0.1}
    one = wrap(
        next(name for name, m in model.named_modules() if hasattr(m, "drop_rate")) + ".norm1", nn.Identity
    )
    for steps in ((one, set_dropout(0.6)), (set_dropout(0.6), one)):
        assert same(run(pipe(model, *steps), x, mode=True), run(result, x, mode=True))


def tv_densenet(model: nn.Module, rate: float) -> nn.Module:
    """Return a copy with the rate set where torchvision keeps it."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "drop_rate"):
            module.drop_rate = rate
    return twin


def test_a_function_that_is_called_at_a_rate_alone_is_set_too():
    model, x = tv.DenseNet(8, (2, 2), 8, num_classes=5), torch.randn(2, 3, 32, 32)
    result = pipe(model, set_dropout(0.1))
    assert {m.drop_rate for m in result.modules() if hasattr(m, "drop_rate")} == {0.1}
    assert same(run(result, x, mode=True), run(tv_densenet(model, 0.1), x, mode=True))


class Rated(nn.Module):
    """A forward that hands one attribute to a dropout, and others of the same value elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.rate, self.eps = 0.1, 0.1, 0.1
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x) * self.scale, float(self.rate), self.training) + self.eps


def test_the_attribute_that_a_dropout_is_given_is_set_and_no_other():
    unit = pipe(nn.Sequential(Rated()), set_dropout(0.4))[0]
    assert (unit.scale, unit.rate, unit.eps) == (0.1, 0.4, 0.1)
    assert type(unit) is Rated


def test_modules_alone_are_set_without_following_a_forward(monkeypatch):
    monkeypatch.setattr(Draft, "graphs", lambda *_: pytest.fail("a forward was followed"))
    monkeypatch.setattr(Draft, "record", lambda *_: pytest.fail("the model was run"))
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2))
    set_dropout(0.7)._edit(draft := Draft(model))
    assert held(draft.root) == {0.7}


class Spelled(nn.Module):
    """Dropout functions in many spellings, behind a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.fc(x), 0.1, self.training)
        x = torch.dropout(x, 0.2, self.training)
        x = F.alpha_dropout(x, training=self.training, p=0.3)
        return helped(F.dropout1d(x, training=self.training), self.training)


def helped(x: torch.Tensor, training: bool) -> torch.Tensor:
    return F.feature_alpha_dropout(x, 0.4, training)


def test_spellings():
    model, x = Spelled(), torch.randn(6, 4, 4)
    result = pipe(nn.Sequential(model), set_dropout(0.0))
    assert same(run(result, x, mode=True), run(result, x, mode=False))
    assert same(run(result, x, mode=False), run(model, x, mode=False))
    some = pipe(result, set_dropout(0.5))
    assert not same(run(some, x, mode=True), run(some, x, mode=False))
    assert [(n.args[1:], n.kwargs.get("p")) for n in some[0].graphs[1].nodes if "dropout" in n.name] == [
        ((), 0.5), ((0.5, True), None), ((), 0.5), ((), 0.5), ((), 0.5),
    ]  # fmt: skip


def test_a_level_that_holds_the_probability_is_not_opened():
    model = nn.Sequential(Spelled(), nn.Dropout(0.1))
    assert type(pipe(nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 4)), set_dropout(0.2))[1]) is nn.Linear
    same_already = nn.Sequential(Always())
    assert type(pipe(same_already, set_dropout(0.5))[0]) is Always
    assert type(pipe(model, set_dropout(0.5))[0]) is not Spelled


class Always(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x), training=self.training)


class Computed(Always):
    def forward(self, x: torch.Tensor, p: float = 0.3) -> torch.Tensor:
        return F.dropout(self.fc(x), p, training=self.training)


def test_a_probability_that_is_computed_is_refused():
    with pytest.raises(TargetError) as caught:
        pipe(Computed(), set_dropout(0.5))
    assert "is computed" in caught.value.summary
    assert caught.value.asked == "set_dropout(0.5)"


class Undecided(Always):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x), training=self.training) if x.sum() > 0 else self.fc(x)


class UndecidedOtherwise(Always):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_a_forward_that_cannot_be_followed_is_an_error_only_where_it_names_a_dropout():
    with pytest.raises(TraceError) as caught:
        pipe(nn.Sequential(Undecided(), nn.Dropout()), set_dropout(0.1))
    assert caught.value.module == "0"
    assert "may call a dropout function" in caught.value.summary
    assert held(pipe(nn.Sequential(UndecidedOtherwise(), nn.Dropout()), set_dropout(0.1))) == {0.1}


# Attention ------------------------------------------------------------------------------------


def test_attention_only_on_request():
    with torch.device("meta"):
        model = tv.vit_b_16()
    attention = [m for m in pipe(model, set_dropout(0.2)).modules() if isinstance(m, nn.MultiheadAttention)]
    assert {m.dropout for m in attention} == {0.0}
    result = pipe(model, set_dropout(0.2, attention=True))
    assert {m.dropout for m in result.modules() if isinstance(m, nn.MultiheadAttention)} == {0.2}


class Attending(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.drop = nn.Dropout(p)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(x, self.fc(x), x, dropout_p=p)


class Reading(Attending):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(x, self.fc(x), x, dropout_p=p)


def test_attention_functions_of_training():
    x, sdpa = torch.randn(2, 2, 5, 4), F.scaled_dot_product_attention
    model = nn.Sequential(Attending(0.1), nn.Dropout(0.2))
    model[0].drop.p = 0.7
    assert type(pipe(model, set_dropout(0.3))[0]) is Attending
    result = pipe(model, set_dropout(0.3, attention=True))
    assert (type(result[0]), result[0].p) == (Attending, 0.3)
    opened = pipe(model, wrap("0", nn.Identity), set_dropout(0.3, attention=True))
    assert called(opened, "0", sdpa, "dropout_p") == [0.0, 0.3]
    assert same(run(result, x, mode=False), run(model, x, mode=False))


def test_attention_that_reads_a_dropout_follows_it_opened_or_not():
    sdpa = F.scaled_dot_product_attention
    model = nn.Sequential(Reading(0.1))
    opened = wrap("0", nn.Identity)
    for steps in (
        (opened, set_dropout(0.3)),
        (set_dropout(0.3), opened),
        (set_dropout(0.2), opened, set_dropout(0.3)),
    ):
        assert called(pipe(model, *steps), "0", sdpa, "dropout_p") == [0.0, 0.3]
    assert called(pipe(pipe(model, opened), set_dropout(0.3)), "0", sdpa, "dropout_p") == [0.0, 0.3]
    looked = edit(lambda draft: draft.graphs("0"), name="look")
    assert called(pipe(model, looked, set_dropout(0.3), opened), "0", sdpa, "dropout_p") == [0.0, 0.3]
    assert type(pipe(model, set_dropout(0.3))[0]) is Reading


# Refusals and the value itself ------------------------------------------------------------------


def test_nothing_to_set_says_what_could_take_one(small):
    with pytest.raises(TargetError) as caught:
        pipe(small, set_dropout(0.1))
    error = caught.value
    assert error.found == "parts that can take one: stem, stage, unused, fc; fc is the head"
    assert error.write == 'inject("fc", nn.Dropout(0.1), where="before"), or swap_head(10, dropout=0.1)'
    for step in (inject("fc", nn.Dropout(0.1), where="before"), swap_head(10, dropout=0.1)):
        assert held(pipe(small, step, set_dropout(0.4))) == {0.4}
    with pytest.raises(TargetError) as caught:
        pipe(nn.Sequential(nn.MultiheadAttention(4, 2)), set_dropout(0.1))
    assert caught.value.write == "set_dropout(0.1, attention=True)"


def test_traced_models_take_it_too():
    model = trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))
    assert held(pipe(model, set_dropout(0.2))) == {0.2}
    flat = torch.fx.symbolic_trace(Always())
    assert {n.kwargs["p"] for n in pipe(flat, set_dropout(0.2)).graph.nodes if n.target is F.dropout} == {0.2}


def test_it_is_a_value():
    for step in (set_dropout(0.1), set_dropout(0.0, attention=True)):
        assert eval(repr(step)) == step == pickle.loads(pickle.dumps(step))
    assert repr(set_dropout(0, attention=True)) == "set_dropout(0.0, attention=True)"
    assert set_dropout(0.1) != set_dropout(0.1, attention=True)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, "0.1", False, None])
def test_probabilities_out_of_range_are_refused(p):
    with pytest.raises(OptionError):
        set_dropout(p)


def test_the_flag_is_a_flag():
    with pytest.raises(OptionError):
        set_dropout(0.1, attention=1)

"""What align says, refuses and leaves alone."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from fingerprint import changes, fingerprint
from nets import Small
from randomised import difference, images, randomise
from torch import nn
from torch.nn import functional as F

from torchgraft import features, pipe, shapes
from torchgraft.alignment.align import align
from torchgraft.alignment.match.behaviour import DriftError
from torchgraft.errors import AnalysisError, ModelError, OptionError
from torchgraft.graph.deep.live import record_live
from torchgraft.graph.deep.record import record

both = pytest.mark.parametrize("evidence", ["behaviour", "structure"])
SHAPE = (2, 3, 16, 16)


def drawn(model, seed=1, shape=SHAPE):
    return randomise(model, seed, shape)


class Other(nn.Module):
    """Small, by another hand: other names, another order, a mean written as pooling."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Conv2d(8, 5, 1)
        self.blocks = nn.ModuleList([nn.ModuleList([self.half() for _ in range(2)]) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(2)])
        self.idle = nn.Linear(3, 3)
        self.begin = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def half(self):
        return nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.begin(x).relu()
        for (one, other), norm in zip(self.blocks, self.norms, strict=True):
            x = (x + norm(other(one(x).relu()))).relu()
        return self.classify(F.adaptive_avg_pool2d(x, 1)).flatten(1)


TRUTH = {
    "begin": "stem",
    "classify": "fc",
    "idle": "unused",
    **{f"blocks.{i}.{j}": f"stage.{i}.conv{j + 1}" for i in range(2) for j in range(2)},
    **{f"norms.{i}": f"stage.{i}.bn" for i in range(2)},
}


@both
def test_two_hands(evidence, images):
    one, other = drawn(Small()), drawn(Other(), 2)
    found = align(one, other, example=images, evidence=evidence)
    assert {entry.target: entry.keys for entry in found.entries} == {
        key: (f"{TRUTH[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}",) for key in other.state_dict()
    }
    assert found.operation(found.of("classify.weight")) == "reshape"
    assert found.of("begin.weight").rule == "place"
    assert found.of("begin.weight").evidence == evidence
    assert found.of("idle.weight").rule == "names"
    other.load_state_dict(found.apply(one.state_dict()))
    assert difference(one(images), other(images)) < 1e-5
    assert str(found).startswith("100.0 % of ")


def test_an_input_is_made_up():
    assert align(drawn(Small()), drawn(Other(), 2)).coverage == 1


def test_an_example_may_be_arguments_by_name_or_place(images):
    for example in ((images,), {"x": images}):
        assert align(drawn(Small()), drawn(Other(), 2), example=example).coverage == 1


def test_an_unknown_evidence_is_refused():
    with pytest.raises(OptionError) as caught:
        align(Small(), Small(), evidence="behavior")
    assert str(caught.value) == (
        "there is no evidence of that name\n"
        '  asked  align(<a Small>, <a Small>, evidence="behavior")\n'
        '  found  "behaviour", "structure"\n'
        "  near   behaviour\n"
        '  write  align(..., evidence="behaviour")'
    )


def test_an_unknown_policy_is_refused():
    with pytest.raises(OptionError) as caught:
        align(Small(), Small(), policy="same")
    assert str(caught.value) == (
        "there is no policy of that name\n"
        '  asked  align(<a Small>, <a Small>, policy="same")\n'
        '  found  "same_function", "same_shape"\n'
        "  near   same_shape\n"
        '  write  align(..., policy="same_function")'
    )


def test_what_is_no_model_is_refused():
    for pair in ((Small(), "resnet18"), (3, Small())):
        with pytest.raises(ModelError, match="must be an instance of"):
            align(*pair)


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(AnalysisError) as caught:
        align(Small(), Other(), example=torch.zeros(2, 4, 16, 16))
    assert caught.value.summary == "the models do not both run on the example"
    assert caught.value.found.startswith("RuntimeError: ")
    assert caught.value.write == "align(source, target, example=torch.zeros(<an input both models take>))"


class Nothing(nn.Module):
    """Take no input at all."""

    def forward(self):
        return None


def test_where_no_input_fits_an_example_is_asked_for():
    with pytest.raises(AnalysisError, match="Nothing does not run on a guessed input"):
        align(Nothing(), Nothing())


@both
def test_models_on_meta(evidence):
    """They cannot be run, so structure has to do, and says so."""
    with torch.device("meta"):
        one, other = Small(), Other()
    found = align(one, other, evidence=evidence)
    assert {entry.target for entry in found.entries} == set(other.state_dict())
    assert {entry.evidence for entry in found.entries} == {"structure", "names"}
    mixed = align(drawn(Small()), other, evidence=evidence)
    assert {entry.target for entry in mixed.entries} == set(other.state_dict())


class Tabled(Small):
    """With tables: one that both have, one that is another in each."""

    def __init__(self, step):
        super().__init__()
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("mean", torch.full((3, 1, 1), float(step)))
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, x):
        return super().forward(x - self.mean)


@both
def test_constants_are_told_by_their_values(evidence, images):
    found = align(drawn(Tabled(1)), drawn(Tabled(1), 2), example=images, evidence=evidence)
    assert (found.of("index").rule, found.of("index").evidence) == ("constant", "values")
    assert "hidden" not in found.target
    assert found.coverage == 1


class Branching(Small):
    """Take another way in every run."""

    runs = 0

    def forward(self, x):
        Branching.runs += 1
        return super().forward(-x if Branching.runs % 2 else x)


def test_a_model_that_runs_in_another_way_each_time_is_followed_by_structure(images):
    found = align(drawn(Branching()), drawn(Branching(), 2), example=images)
    assert {entry.keys for entry in found.entries} == {(key,) for key in found.target}
    assert {entry.evidence for entry in found.entries} <= {"structure", "names"}


class ByValue(Small):
    """Look at the values of its input, which meta tensors have not."""

    def forward(self, x):
        return super().forward(x) if bool(x.sum() < 1e9) else x


def test_what_looks_at_values_can_be_run_and_not_followed(images):
    assert align(drawn(ByValue()), drawn(Other(), 2), example=images).coverage == 1
    with pytest.raises(AnalysisError):
        align(ByValue(), Other(), example=images, evidence="structure")


@both
def test_both_models_the_example_and_the_random_numbers_are_left_alone(evidence, images):
    one, other = drawn(Small()).train(), drawn(Other(), 2)
    other.norms[1].train()
    fired = []
    for model in (one, other):
        for module in model.modules():
            module.register_forward_hook(lambda *_: fired.append(1))
            module.register_forward_pre_hook(lambda *_: fired.append(1))
    one(images).sum().backward()
    fired.clear()
    before, given = (fingerprint(one), fingerprint(other)), images.clone()
    states = torch.get_rng_state(), random.getstate()
    align(one, other, example=images, evidence=evidence)
    assert not changes(before[0], fingerprint(one))
    assert not changes(before[1], fingerprint(other))
    assert images.equal(given)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not fired
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


class Writing(nn.Module):
    """Write into a parameter, a buffer and a cache while running."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(4))
        self.cache = {}

    def train(self, mode=True):
        self.cache = {} if mode else self.cache
        return super().train(mode)

    def forward(self, x):
        self.conv.bias.data[:2].zero_()
        self.seen += torch.rand(1) + random.random()
        if "w" not in self.cache:
            self.cache["w"] = self.fc.weight * 2
        return F.linear(self.conv(x).mean((2, 3)), self.cache["w"], self.fc.bias)


@both
def test_what_a_forward_writes_stays_out_of_the_model(evidence, images):
    one, other = drawn(Writing()), drawn(Writing(), 2)
    one.cache["w"] = torch.zeros(2, 4)  # stale: what is kept of parameters is made anew
    before = fingerprint(one), fingerprint(other)
    states = torch.get_rng_state(), random.getstate()
    found = align(one, other, example=images, evidence=evidence)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not changes(before[0], fingerprint(one))
    assert not changes(before[1], fingerprint(other))
    assert found.of("fc.weight").keys == ("fc.weight",)
    assert found.of("fc.weight").rule == "place"  # it was reached: the cache was made anew
    assert found.of("conv.weight").keys == ("conv.weight",)


def test_a_step_may_look_and_alter(images):
    """Operations have the numbers that a record gives them; state stands in for the tensors of the model."""
    model, seen = drawn(Small()), []

    def step(number, func, args, kwargs, values):
        seen.append((number, func, values))
        return func(*args, **kwargs)

    made = record_live(model, ((images,), {}), step)
    assert [number for number, _, _ in seen] == list(range(len(seen)))
    assert [func for _, func, _ in seen] == [op.func for op in made.ops if op.func is not None]
    on_meta = record(model, ((images,), {}))
    assert [op.name for op in on_meta.ops] == [op.name for op in made.ops]
    assert [op.outputs for op in on_meta.ops] == [op.outputs for op in made.ops]
    outputs = []

    def last(number, func, args, kwargs, values):
        outputs.append(func(*args, **kwargs))
        return outputs[-1]

    record_live(
        model, ((images,), {}), last, state={"fc.weight": torch.zeros(5, 8), "fc.bias": torch.ones(5)}
    )
    assert outputs[-1].eq(1).all()
    assert issubclass(DriftError, Exception)


@functools.lru_cache
def table(size):
    return torch.linspace(-1, 1, size)


class Cached(nn.Module):
    """Take a table out of a cache of functions, by its size alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 2)

    @staticmethod
    @functools.lru_cache
    def mask(size):
        return torch.ones(size)

    def forward(self, x):
        x = self.conv(x) + table(x.shape[-1]) * self.mask(x.shape[-1])
        return self.fc(self.stage(x).mean((2, 3)))


@pytest.mark.parametrize(
    "look",
    [
        lambda model, x: align(model, model, example=x, evidence="structure"),
        lambda model, x: align(model, model, example=x),
        shapes,
        lambda model, x: pipe(model, features("stage"), example=x),
    ],
    ids=["structure", "behaviour", "shapes", "features"],
)
def test_tables_of_a_run_on_meta_are_forgotten(look, images):
    model = drawn(Cached())
    table.cache_clear()
    Cached.mask.cache_clear()
    expected = model(images)
    look(model, images)
    assert torch.equal(model(images), expected)
    assert not table(16).is_meta
    table.cache_clear()
    Cached.mask.cache_clear()
    look(model, images)
    assert not table(16).is_meta
    assert torch.equal(model(images), expected)


class Scaled(nn.Module):
    """Layers of which the outer ones are alike, and the eps of the norm is its own."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, bias=bias)
        self.b = nn.Conv2d(4, 4, 3)
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


@both
def test_a_bias_that_only_the_target_has_is_zeros(evidence, images):
    one, other = drawn(Scaled(bias=False)), drawn(Scaled(), 2)
    found = align(one, other, example=images, evidence=evidence)
    assert found.operation(found.of("a.bias")) == "zeros"
    assert found.apply(one.state_dict())["a.bias"].eq(0).all()
    other.load_state_dict(found.apply(one.state_dict()))
    assert difference(one(images), other(images)) < 1e-6
    back = align(other, one, example=images, evidence=evidence)
    assert back.unused == ("a.bias",)
    assert back.coverage == 1


class Tied(nn.Module):
    """Use one weight, or two, in two layers."""

    def __init__(self, *, tied):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.a = nn.Conv2d(4, 4, 3, bias=False)
        self.b = nn.Conv2d(4, 4, 3, bias=False)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.first(x)).relu())


@both
def test_a_tie_takes_from_one_and_of_two_it_cannot(evidence, images):
    whole = align(drawn(Tied(tied=True)), drawn(Tied(tied=True), 2), example=images, evidence=evidence)
    assert {e.target: e.keys for e in whole.entries} == {key: (key,) for key in whole.target}
    assert whole.of("b.weight").rule == "place"
    loose = align(drawn(Tied(tied=True)), drawn(Tied(tied=False), 2), example=images, evidence=evidence)
    assert loose.of("a.weight").keys == ("a.weight",)
    assert loose.of("b.weight").keys == ("a.weight",)
    clash = align(drawn(Tied(tied=False)), drawn(Tied(tied=True), 2), example=images, evidence=evidence)
    held = {one.target: one.candidates for one in clash.ambiguous}
    assert held == {"a.weight": ("a.weight", "b.weight"), "b.weight": ("a.weight", "b.weight")}


@both
def test_a_module_under_two_names_is_itself_under_both(evidence, images):
    norm = nn.BatchNorm2d(4)
    one, other = (
        drawn(nn.Sequential(nn.Conv2d(3, 4, 1), n, nn.ReLU(), n)) for n in (norm, nn.BatchNorm2d(4))
    )
    with torch.no_grad():
        other[1].running_mean.add_(1)
    found = align(one, other, example=images, evidence=evidence)
    assert {entry.target: entry.keys for entry in found.entries} == {key: (key,) for key in found.target}
    assert "3.num_batches_tracked" in found.target


def test_stems_that_are_alike_make_no_models_alike(images):
    def stem():
        return nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()

    one = drawn(nn.Sequential(*stem(), *(nn.Conv2d(8, 8, 3) for _ in range(4))))
    other = drawn(nn.Sequential(*stem(), *(nn.Conv2d(8, 8, 5, padding=2, groups=8) for _ in range(4))), 2)
    found = align(one, other, example=images)
    assert found.entries == ()
    assert found.missing == tuple(other.state_dict())


class Idle(nn.Module):
    """With layers that no run reaches."""

    def __init__(self, *names):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        for name in names:
            setattr(self, name, nn.Linear(3, 3))

    def forward(self, x):
        return self.fc(x)


def test_what_no_run_reaches_is_told_by_its_names():
    x = torch.randn(2, 4)
    same = align(Idle("p", "q"), Idle("q", "p"), example=x)
    assert {e.target: e.keys for e in same.entries} == {key: (key,) for key in same.target}
    assert same.of("p.weight").evidence == "names"
    assert align(Idle("p"), Idle("z"), example=x).of("z.weight").keys == ("p.weight",)
    several = align(Idle("p", "q"), Idle("y", "z"), example=x)
    assert {one.target: one.candidates for one in several.ambiguous} == {
        f"{name}.{last}": (f"p.{last}", f"q.{last}") for name in "yz" for last in ("weight", "bias")
    }
    assert align(Idle(), Idle("z"), example=x).missing == ("z.weight", "z.bias")


class Chain(nn.Module):
    """Layers that are all alike, in a row."""

    def __init__(self, *names):
        super().__init__()
        self.order = names
        for name in sorted(names):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))
        self.end = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x).relu()
        return self.end(x)


@both
def test_what_a_run_has_more_stands_at_its_end(evidence):
    shape = (2, 4, 8, 8)
    one, other = drawn(Chain(*"abcdefgh"), 1, shape), drawn(Chain(*"zyxwvutsrq"), 2, shape)
    found = align(one, other, example=images(shape), evidence=evidence)
    pairs = dict(zip([*"zyxwvuts", "end"], [*"abcdefgh", "end"], strict=True))
    held = {entry.target.partition(".")[0]: entry.keys[0].partition(".")[0] for entry in found.entries}
    assert held == pairs
    assert {key[0] for key in found.missing} == {"r", "q"}


def test_what_was_put_in_between_is_seen_by_what_it_does():
    """Structure cannot tell which of a row was put in; what each layer sees can, if the source's bits are there."""
    shape = (2, 4, 8, 8)
    one = drawn(Chain(*"abcdefgh"), 1, shape)
    other = Chain(*"abcdxefgh")
    other.load_state_dict(one.state_dict(), strict=False)
    with torch.no_grad():
        nn.init.dirac_(other.x.weight)
        other.x.bias.zero_()
    found = align(one, other.eval(), example=images(shape).abs())
    assert {e.target: e.keys for e in found.entries} == {key: (key,) for key in one.state_dict()}
    assert found.missing == ("x.weight", "x.bias")

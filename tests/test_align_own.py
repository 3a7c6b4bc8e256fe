"""A state dict and the model that it is of, under whatever names: its own tensors, or said to be open."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from own import LARGE, OWN, called, own
from renamed import renamed
from torch import nn
from torchvision.models import resnet18, resnet50

from torchgraft import inject, load_report, load_weights, pipe
from torchgraft.alignment.align import align
from torchgraft.alignment.match.naming import alike

pytestmark = pytest.mark.filterwarnings("ignore")
SAME = ("its own names", "a prefix")


def mistaken(state, model, names, x):
    """Name tensors that would get what is not theirs, and say how many would get theirs."""
    found = align(state, model, example=x)
    made = found.apply(state)
    return [
        key for key, value in made.items() if not value.reshape(-1).equal(state[names[key]].reshape(-1))
    ], found


def check(name, way):
    model, x = own(name)
    state, names = called(model, way)
    wrong, found = mistaken(state, model, names, x)
    assert not wrong
    if way in SAME:
        assert len(found.entries) == len(found.target)
        assert all(found.operation(entry) == "identity" for entry in found.entries)


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in OWN for way in ("its own names", "a prefix, some other words")]
)
def test_nothing_is_mistaken(name, way):
    check(name, way)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in (*OWN, *LARGE)
        for way in ("its own names", "a prefix", "other words", "no words", "the alphabet")
    ],
)
def test_nothing_is_mistaken_under_other_names(name, way):
    check(name, way)


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("by", ["names", "structure"])
@pytest.mark.parametrize("way", SAME)
def test_what_is_loaded_is_its_own(name, by, way):
    model, x = own(name)
    filled = pipe(model, load_weights(called(model, way)[0], by=by), example=x)
    assert all(value.equal(model.state_dict()[key]) for key, value in filled.state_dict().items())
    assert load_report(filled).ratio == 1


@pytest.mark.parametrize("way", ["other words", "no words"])
@pytest.mark.parametrize("name", ["davit", "coatnet", "xcit"])
def test_rows_stay_where_both_sides_have_one_layer(name, way):
    """What a fused layer does with its rows is its own affair."""
    model, x = own(name)
    state, names = called(model, way)
    found = align(state, model, example=x)
    fused = [entry for entry in found.entries if ".qkv." in entry.target]
    assert fused
    assert all(
        found.operation(entry) == "identity" and entry.keys == (names[entry.target],) for entry in fused
    )


# Layers that are alike in everything ----------------------------------------------------------

CHAIN_X = torch.zeros(1, 3, 16, 16)


def chain(*, norms=False):
    layers = [nn.Conv2d(3, 8, 1)]
    for _ in range(8):
        layers += [nn.Conv2d(8, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norms else [])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def written(model, names, order):
    """Return the state dict under other names of layers, registered in another order."""
    state, new = {}, {}
    for layer in order:
        for key, value in model.state_dict().items():
            if key.rpartition(".")[0] == layer:
                new[key] = f"{names[layer]}.{key.rpartition('.')[2]}"
                state[new[key]] = value
    return state, new


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("order", ["run", "shuffled", "reversed"])
@pytest.mark.parametrize("called", ["words", "numbers", "numbers that count nothing"])
def test_order_alone_is_no_evidence(norms, order, called):
    model = chain(norms=norms)
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in model.state_dict()))
    draws = random.Random(1)
    words = ["".join(letters) for letters in itertools.product("bdfg", "aeiou", "lmn")]
    draws.shuffle(words)
    numbers = range(len(layers)) if called == "numbers" else draws.sample(range(100), len(layers))
    names = dict(
        zip(layers, words if called == "words" else [f"body.layer{n}" for n in numbers], strict=False)
    )
    registered = {"run": layers, "shuffled": draws.sample(layers, len(layers)), "reversed": layers[::-1]}[
        order
    ]
    state, new = written(model, names, registered)
    wrong, found = mistaken(state, model, new, CHAIN_X)
    assert not wrong
    if called == "numbers" and order == "run":
        assert len(found.entries) == len(found.target)
    elif called != "numbers":
        counters = 3 if norms else 0
        assert len(found.ambiguous) >= len(found.target) - 4 - counters
        assert {entry.target.partition(".")[0] for entry in found.entries} <= {layers[0], layers[-1]}


def test_names_that_count_alike_tell_in_any_order():
    model = chain()
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in model.state_dict()))
    names = {layer: f"body.layer{i}" for i, layer in enumerate(layers)}
    state, new = written(model, names, layers[::-1])
    found = align(state, model, example=CHAIN_X)
    assert {entry.target: entry.keys for entry in found.entries} == {
        key: (other,) for key, other in new.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_names_that_tell_nothing_in_another_order_mislead_nobody(seed):
    model = resnet18().eval()
    other, olds = renamed(model, seed=seed)
    names = {old: new for new, old in olds.items()}
    wrong, found = mistaken(dict(other.state_dict()), model, names, torch.zeros(1, 3, 32, 32))
    assert not wrong
    assert found.ambiguous


# Names ----------------------------------------------------------------------------------------


def test_a_prefix_is_what_most_names_have():
    shapes = {"a.w": (2,), "b.w": (3,), "c": ()}
    under = {f"net.{key}": shape for key, shape in shapes.items()}
    assert alike(shapes, shapes)("a.w") == "a.w"
    assert alike({**under, "head": (5,)}, shapes)("net.a.w") == "a.w"
    assert alike(shapes, under)("a.w") == "net.a.w"
    assert alike({"x": (2,), "y": (3,), "c": ()}, shapes) is None
    twice = {f"{side}.{key}": shape for side in ("student", "teacher") for key, shape in shapes.items()}
    assert alike(twice, shapes) is None  # neither is meant more than the other


def test_a_convolution_more_is_told_from_all_others():
    """Of two alike in a place of one, which is new is seen where the new one changes nothing."""
    model, x = resnet50().eval(), torch.randn(1, 3, 32, 32)
    known = {key for key in model.state_dict() if "num_batches" not in key}
    put = pipe(resnet50().eval(), inject("layer2.1", nn.Conv2d(512, 512, 1), name="added"))
    for found in (
        align(model, put, example=x, evidence="structure"),
        align(model.state_dict(), put, example=x),
    ):
        assert {e.target for e in found.entries if e.keys == (e.target,)} >= known
    wrapped = resnet50().eval()
    new = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    nn.init.dirac_(new.weight)
    wrapped.layer2[1].conv2 = nn.Sequential(new, wrapped.layer2[1].conv2)
    found = align(model, wrapped, example=x)
    assert found.of("layer2.1.conv2.1.weight").keys == ("layer2.1.conv2.weight",)
    assert found.missing == ("layer2.1.conv2.0.weight",)
    doubt = align(model, wrapped, example=x, evidence="structure")
    assert [one.target for one in doubt.ambiguous] == ["layer2.1.conv2.0.weight"]
    assert {e.target for e in doubt.entries} >= known - {"layer2.1.conv2.weight"}
    assert {e.target for e in align(model.state_dict(), wrapped, example=x).entries} >= known - {
        "layer2.1.conv2.weight"
    }

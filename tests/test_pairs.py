"""The pairs that alignment is measured on: what is written down is right, and the judge judges."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from by_name import in_timm
from pairs import GROUPS, PAIRS, SAME, alive, case, judge, mismatch
from randomised import difference, images, output, randomise
from simple_aligners import call_order, equal_names, longest_suffix, position_and_shape
from torch import nn
from truths import known, made, read
from zoo import classifiers

FEW = ["aimv2_hugging2timm", "convnextv2_timm2hugging", "siglip_timm2hugging", "vgg11_bn_torchvision2timm"]
SMALL = "vit_hugging2timm"
pytestmark = pytest.mark.filterwarnings("ignore")


def truth(name):
    held = case(PAIRS[name])
    return made(read(name), held.source.state_dict(), held.target.state_dict())


def test_there_are_enough():
    assert len(PAIRS) >= 160
    assert len({group.family for group in GROUPS.values()}) >= 40
    assert len(known()) >= 12
    assert set(known()) <= set(PAIRS)
    assert all(name.rpartition("_")[0] in GROUPS for name in PAIRS)


def check_truth(name):
    """The mapping makes the outputs agree and names every tensor that they depend on."""
    values = truth(name)
    assert mismatch(PAIRS[name], {}) > 1e-2
    assert mismatch(PAIRS[name], values) < SAME
    assert set(case(PAIRS[name]).needed) <= set(values)


@pytest.mark.parametrize("name", FEW)
def test_what_is_written_down_is_right(name):
    check_truth(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", known())
def test_all_that_is_written_down_is_right(name):
    check_truth(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_lively(name):
    """Both sides give outputs of one shape that differ between images; nearly all parameters matter."""
    held = case(PAIRS[name])
    with torch.no_grad():
        found = output(held.target, held.x)
    assert found.shape == held.expected.shape
    for values in (found, held.expected):
        assert values.isfinite().all()
        assert (values[0] - values[1]).abs().max() > 1e-3 * values.abs().max()
    dead = [key for key, _ in held.target.named_parameters() if key not in held.needed]
    assert len(dead) <= 0.12 * len(held.needed), dead


@pytest.mark.slow
def test_names_of_torchvision_in_timm():
    """What timm has under such a name has tensors of the same sizes there."""
    import timm
    import torchvision

    def sizes(model):
        return Counter(value.numel() for value in model.state_dict().values() if value.is_floating_point())

    unlike = set()
    for name in classifiers():
        other = in_timm(name)
        if other not in timm.list_models():
            unlike.add(name)
        elif not name.endswith(("_32gf", "_128gf")):  # these take minutes to draw
            options = {"inception_v3": {"init_weights": False}}.get(name, {})
            with torch.device("cpu" if "regnet" in name else "meta"):
                one = torchvision.models.get_model(name, weights=None, **options)
                same = timm.create_model(other, num_classes=1000, **({"aux_logits": True} if options else {}))
            if sizes(one) != sizes(same):
                unlike.add(name)
    assert unlike == {
        "alexnet", "googlenet", "maxvit_t", "mnasnet1_3", "squeezenet1_0", "squeezenet1_1",
        "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
        "swin_v2_t", "swin_v2_s", "swin_v2_b",  # timm leaves out the bias of keys
    }  # fmt: skip


def test_a_right_mapping_is_judged_right():
    judged = judge(PAIRS[SMALL], lambda *_: truth(SMALL), truth(SMALL))
    assert judged.solved
    assert (judged.right, judged.wrong, judged.missing) == (44, 0, 0)
    assert judge(PAIRS[SMALL], lambda *_: truth(SMALL)).right == 44


def test_what_is_wrong_and_what_is_missing_is_counted():
    values = truth(SMALL)
    one, other = "blocks.0.norm1.weight", "blocks.1.norm1.weight"
    values[one], values[other] = values[other], values[one]
    del values["norm.bias"]
    judged = judge(PAIRS[SMALL], lambda *_: values, truth(SMALL))
    assert not judged.solved
    assert (judged.right, judged.wrong, judged.missing) == (41, 2, 1)
    unknown = judge(PAIRS[SMALL], lambda *_: values)
    assert (unknown.right, unknown.wrong, unknown.missing) == (None, None, 1)


def test_dead_elements_do_not_count():
    """Softmax cancels the bias of keys."""
    values = truth(SMALL)
    values["blocks.0.attn.qkv.bias"] = values["blocks.0.attn.qkv.bias"].clone()
    values["blocks.0.attn.qkv.bias"][64:128] += 1
    assert judge(PAIRS[SMALL], lambda *_: values, truth(SMALL)).right == 44
    values["blocks.0.attn.qkv.bias"][:64] += 1
    assert judge(PAIRS[SMALL], lambda *_: values, truth(SMALL)).wrong == 1
    assert not any(key.endswith("k_proj.bias") for key in case(PAIRS["vit_timm2hugging"]).needed)


def test_an_aligner_may_spoil_the_models():
    def spoil(source, target, x):
        for model in (source, target):
            for value in model.state_dict().values():
                value.zero_()
        return {}

    judge(PAIRS[SMALL], spoil)
    assert judge(PAIRS[SMALL], lambda *_: truth(SMALL)).solved


class Twice(nn.Module):
    """Layers that are registered in another order than they are called in; one is never called."""

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(4, 4, 1)
        self.early = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.late(self.early(self.norm(self.first(x))).relu())


class Plain(nn.Sequential):
    """The same function as a chain."""

    def __init__(self):
        layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)]
        super().__init__(*layers)


SHAPE = (2, 3, 5, 5)


def test_randomised_models_are_reproducible_and_lively():
    one, same, other = (randomise(Twice(), seed, SHAPE) for seed in (1, 1, 2))
    x = images(SHAPE)
    assert torch.equal(output(one, x), output(same, x))
    assert difference(output(one, x), output(other, x)) > 0.1
    for value in one.state_dict().values():
        assert value.ndim == 0 or value.unique().numel() == value.numel()
    assert not one.training
    assert all(value.requires_grad for value in one.parameters())


def test_difference_of_other_shapes_and_of_nan_is_infinite():
    assert difference(torch.ones(2), torch.ones(3)) == float("inf")
    assert difference(torch.ones(2), torch.full((2,), float("nan"))) == float("inf")
    assert difference(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 3.0])) == 0.25


def test_what_never_sees_the_input_is_not_alive():
    found = alive(randomise(Twice(), 1, SHAPE), images(SHAPE))
    assert {key.split(".")[0] for key in found} == {"late", "early", "first", "norm"}
    assert {"norm.running_mean", "norm.running_var"} <= set(found)
    assert "norm.num_batches_tracked" not in found


def test_simple_aligners_do_what_they_say():
    source, target, x = randomise(Twice(), 1, SHAPE), randomise(Plain(), 2, SHAPE), images(SHAPE)
    expected = output(source, x)

    def loaded(align):
        filled = randomise(Plain(), 2, SHAPE)
        given = align(source, target, x)
        filled.load_state_dict(given, strict=False)
        return given, difference(expected, output(filled, x))

    assert loaded(equal_names)[0] == {}
    assert set(loaded(longest_suffix)[0]) >= {"0.weight", "1.running_mean", "1.running_var"}
    assert "2.weight" not in loaded(longest_suffix)[0]  # two are as near
    assert loaded(position_and_shape)[0]["2.weight"] is not None
    assert torch.equal(loaded(position_and_shape)[0]["2.weight"], source.late.weight)
    assert loaded(call_order)[1] == 0
    assert set(equal_names(source, Twice(), x)) == set(source.state_dict())

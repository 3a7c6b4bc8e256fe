"""A state dict alone as the source: what names, shapes and order decide, and what they leave open."""

from __future__ import annotations

import functools
from collections import OrderedDict

import attrs
import pytest
import torch
from pairs import PAIRS, SAME, case, judge
from randomised import difference
from torch import nn
from torch.nn import functional as F
from torchvision.models import (
    densenet121,
    mobilenet_v2,
    mobilenet_v3_small,
    resnet18,
    resnet34,
    shufflenet_v2_x0_5,
    squeezenet1_0,
    vgg11_bn,
)
from truths import known, made, read

from torchgraft import load_report, load_weights, pipe, transfer
from torchgraft.alignment.align import align
from torchgraft.alignment.alignment import Alignment, Part
from torchgraft.alignment.match.naming import Item, Pairing
from torchgraft.alignment.match.units import Held, places_of, role_of, units_of, words
from torchgraft.errors import AlignmentError, AnalysisError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore")

# What neither names nor shapes nor order decide: how many tensors stand nowhere among the entries.
UNDECIDED = {
    "resnet50d_hugging2timm": 28,  # shortcuts of the shape of a layer beside them, registered first
    "dinov2_swiglu_hugging2timm": 6,  # gate and value are two layers here and one there
    "dinov2_swiglu_timm2hugging": 67,
    "hgnet_v2_timm2hugging": 60,  # scalars that are all alike
    "hgnet_v2_hugging2timm": 60,
}
OTHERS = [
    "aimv2_timm2hugging", "beit_hugging2data2vec", "convnext_timm2torchvision", "deit_timm2hugging",
    "dinov3_hugging2timm", "flava_hugging2timm", "hiera_hugging2timm", "internvl_timm2hugging",
    "mobilenet_v3_small_timm2torchvision", "pvt_v2_linear_timm2hugging", "sam_timm2hugging",
    "siglip_gap_hugging2timm", "swin_v2_torchvision2timm", "vit_msn_timm2hugging",
]  # fmt: skip


def judged(name, truth=None):
    """Judge an alignment of a state dict, and return it too."""
    kept: list[Alignment] = []

    def by_state(source, target, x):
        kept.append(align(source.state_dict(), target, example=x))
        return kept[0].apply(source.state_dict())

    return judge(PAIRS[name], by_state, truth), kept[0]


def reconciled(found):
    """Every tensor stands in one place, and all that is said is said to come from names."""
    placed = [entry.target for entry in found.entries]
    placed += [one.target for one in (*found.mismatched, *found.ambiguous)]
    assert sorted((*placed, *found.missing)) == sorted(found.target)
    used = {key for entry in found.entries for key in entry.keys}
    used |= {one.source for one in found.mismatched} | {k for one in found.ambiguous for k in one.candidates}
    assert used.isdisjoint(found.unused)
    assert used | {*found.unused} == {*found.source}
    assert {entry.evidence for entry in found.entries} <= {"names"}
    return True


# Other implementations ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in known() if name not in UNDECIDED])
def test_what_is_written_down_is_found(name):
    held = case(PAIRS[name])
    result, found = judged(name, made(read(name), held.source.state_dict(), held.target.state_dict()))
    assert (result.wrong, result.missing) == (0, 0)
    assert result.right == len(held.needed)
    assert result.solved
    assert found.entries
    assert reconciled(found)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_found_computes_the_same(name):
    result, found = judged(name)
    assert result.solved
    assert result.missing == 0
    assert reconciled(found)


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_is_undecided_is_said_and_never_filled(name):
    held = case(PAIRS[name])
    values = held.source.state_dict()
    truth = align(held.source, held.target, example=held.x).apply(values)
    assert judge(PAIRS[name], lambda *_: truth).solved
    result, found = judged(name, truth)
    assert result.wrong == 0
    assert not result.solved
    assert len(found.target) - len(found.entries) == UNDECIDED[name]
    assert reconciled(found)


def test_a_token_of_another_rank_is_the_same_token():
    held = case(PAIRS["clip_timm2hugging"])
    found = align(held.source.state_dict(), held.target, example=held.x)
    assert found.operation(found.of("embeddings.class_embedding")) == "reshape"
    assert found.of("embeddings.class_embedding").keys == ("cls_token",)
    assert not found.mismatched


def test_the_halves_of_a_split_layer_are_candidates_for_each_other():
    held = case(PAIRS["dinov2_swiglu_hugging2timm"])
    found = align(held.source.state_dict(), held.target, example=held.x)
    told = {one.target: one.candidates for one in found.ambiguous}
    layer = "encoder.layer.0.mlp"
    assert told["blocks.0.mlp.fc1.weight"] == (f"{layer}.gate_proj.weight", f"{layer}.up_proj.weight")
    assert set(told) == {f"blocks.{i}.mlp.fc1.{end}" for i in range(3) for end in ("weight", "bias")}


# The same implementation ----------------------------------------------------------------------

X = torch.zeros(2, 3, 32, 32)


@functools.cache
def eighteen():
    return resnet18().eval()


def same_names(found):
    return all(entry.parts == (Part(entry.target),) for entry in found.entries)


def test_equal_names_are_the_same():
    found = align(eighteen().state_dict(), resnet18(), example=X)
    assert [entry.target for entry in found.entries] == [*eighteen().state_dict()]
    assert same_names(found)
    assert {entry.rule for entry in found.entries} == {"names"}
    assert found.coverage == 1
    assert reconciled(found)


def test_only_another_head_is_left_out():
    found = align(eighteen().state_dict(), resnet18(num_classes=7), example=X)
    assert len(found.entries) == 120
    assert same_names(found)
    left = {*found.missing, *(one.target for one in found.mismatched)}
    assert left == {"fc.weight", "fc.bias"}
    assert reconciled(found)


def test_blocks_that_are_new_are_missing():
    deep = resnet34()
    found = align(eighteen().state_dict(), deep, example=X)
    assert same_names(found)
    assert [entry.target for entry in found.entries] == [
        key for key in deep.state_dict() if key in eighteen().state_dict()
    ]
    assert set(found.missing) == set(deep.state_dict()) - set(eighteen().state_dict())
    assert reconciled(found)


def test_blocks_that_are_too_many_are_unused():
    deep = resnet34().state_dict()
    found = align(deep, resnet18(), example=X)
    assert same_names(found)
    assert found.missing == ()
    assert set(found.unused) == set(deep) - set(eighteen().state_dict())


def test_other_values_and_other_tensors_stand_aside():
    state = dict(eighteen().state_dict())
    given = {"epoch": 3, **state, "names": ["a"], "aux.weight": torch.ones(5, 7), "ema": torch.ones(3)}
    found = align(given, resnet18(), example=X)
    assert len(found.entries) == len(state)
    assert same_names(found)
    assert found.unused == ("aux.weight", "ema")
    assert set(found.source) == {*state, "aux.weight", "ema"}
    assert reconciled(found)


def test_what_was_lost_is_missing():
    lost = ["layer1.0.conv1.weight", "layer4.1.bn2.running_mean", "fc.weight"]
    state = {key: value for key, value in eighteen().state_dict().items() if key not in lost}
    found = align(state, resnet18(), example=X)
    assert same_names(found)
    assert set(lost) <= set(found.missing)
    assert len(found.entries) >= 114
    assert reconciled(found)


def test_counters_follow_their_normalisation():
    state = {k: v for k, v in eighteen().state_dict().items() if not k.endswith("num_batches_tracked")}
    found = align(state, resnet18(), example=X)
    assert len(found.entries) == len(state) == 102
    assert {key.rpartition(".")[2] for key in found.missing} == {"num_batches_tracked"}
    other = {f"net.{key}": value for key, value in eighteen().state_dict().items()}
    found = align(other, resnet18(), example=X)
    assert {e.target: e.keys for e in found.entries} == {
        key: (f"net.{key}",) for key in eighteen().state_dict()
    }


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"steps": torch.ones(3, dtype=torch.long)}])
def test_of_nothing_comes_nothing(state):
    found = align(state, resnet18(), example=X)
    assert found.entries == found.mismatched == found.ambiguous == ()
    assert found.missing == tuple(eighteen().state_dict())
    assert found.unused == tuple(key for key in state if key == "steps")


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(AnalysisError) as caught:
        align({}, resnet18(), example=torch.zeros(2, 4, 8, 8))
    assert str(caught.value) == (
        "the models do not both run on the example\n"
        "  asked  align({}, <a ResNet>, example=<a Tensor>)\n"
        "  found  RuntimeError: Invalid channel dimensions\n"
        "  write  align(source, target, example=torch.zeros(<an input both models take>))"
    )


def test_layers_that_learn_little_are_known():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.Linear(8, 1, bias=False),
    )
    found = align(net.state_dict(), net, example=torch.zeros(2, 3, 2, 2))
    assert same_names(found)
    assert len(found.entries) == len(net.state_dict()) == 8
    lost = {key: value for key, value in net.state_dict().items() if key != "1.running_var"}
    left = align(lost, net, example=torch.zeros(2, 3, 2, 2))
    assert same_names(left)
    assert {"1.running_mean", "1.running_var"} <= set(left.missing)


@pytest.mark.parametrize("affine", [False, True])
def test_a_normalisation_that_learns_is_no_other(affine):
    """Ones and zeros would do for one way; nothing says that they are meant."""

    def net(*, affine):
        layers = [
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4, affine=affine),
            nn.Conv2d(4, 5, 1),
            nn.Conv2d(5, 6, 1),
        ]
        return nn.Sequential(*layers)

    state, target = net(affine=not affine).state_dict(), net(affine=affine)
    found = align(state, target, example=SMALL_X)
    counter = "1.num_batches_tracked"
    assert {key.partition(".")[0] for key in told(found) if key != counter} == {"0", "2", "3"}
    assert reconciled(found)


# Unrelated models -----------------------------------------------------------------------------

FACTORIES = {
    "densenet": densenet121, "mobilenet2": mobilenet_v2, "mobilenet3": mobilenet_v3_small,
    "shufflenet": shufflenet_v2_x0_5, "resnet": resnet18, "squeezenet": squeezenet1_0, "vgg": vgg11_bn,
}  # fmt: skip


@functools.cache
def on_meta(name):
    if name in FACTORIES:
        with torch.device("meta"):
            return FACTORIES[name]().eval()
    return PAIRS[name].target()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("resnet", "vit_hugging2timm"),
        ("vit_hugging2timm", "resnet"),
        ("shufflenet", "resnet"),
        ("mobilenet2", "mobilenet3"),
        ("squeezenet", "shufflenet"),
        ("densenet", "mobilenet2"),
        ("vit_hugging2timm", "swin_timm2hugging"),
        ("vgg", "squeezenet"),
        ("convnext_torchvision2hugging", "hiera_timm2hugging"),
    ],
)
def test_unrelated_models_have_nothing_in_common(source, target):
    side = 128 if "swin" in target else 64
    found = align(on_meta(source).state_dict(), on_meta(target), example=torch.zeros(2, 3, side, side))
    assert found.entries == ()
    assert found.coverage == 0
    assert reconciled(found)


# Layers of a state dict -----------------------------------------------------------------------


def units(shapes):
    return [(unit.name, unit.label, unit.role) for unit in units_of(shapes)]


def test_a_fused_layer_is_three():
    held = units_of({"a.qkv.weight": (12, 4), "a.qkv.bias": (12,), "a.proj.weight": (4, 4)})
    assert [(unit.name, unit.label, unit.role) for unit in held] == [
        ("a.qkv", ("w", 4, 4), "q"),
        ("a.qkv", ("w", 4, 4), "k"),
        ("a.qkv", ("w", 4, 4), "v"),
        ("a.proj", ("w", 4, 4), ""),
    ]
    assert [unit.rows.tolist() for unit in held[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert held[3].rows is None
    assert held[1].keys == {"w": "a.qkv.weight", "b": "a.qkv.bias"}
    slots = places_of(held, {"a.qkv.weight": (12, 4), "a.qkv.bias": (12,), "a.proj.weight": (4, 4)}).places
    assert slots[1].slots["b"].rows.tolist() == [4, 5, 6, 7]


def test_tensors_that_end_in_weight_and_bias_are_layers():
    held = units_of({"a.in_proj_weight": (12, 4), "a.in_proj_bias": (12,), "a.out_proj.weight": (4, 4)})
    assert [(unit.name, unit.role) for unit in held] == [
        ("a.in_proj", "q"),
        ("a.in_proj", "k"),
        ("a.in_proj", "v"),
        ("a.out_proj", ""),
    ]
    assert held[0].keys == {"w": "a.in_proj_weight", "b": "a.in_proj_bias"}


def test_keys_and_values_are_two():
    assert units({"kv.weight": (8, 4), "q.weight": (4, 4)}) == [
        ("kv", ("w", 4, 4), "k"),
        ("kv", ("w", 4, 4), "v"),
        ("q", ("w", 4, 4), "q"),
    ]


def test_what_cannot_be_cut_in_three_is_one():
    assert units({"qkv.weight": (13, 4)}) == [("qkv", ("w", 13, 4), "")]


def test_biases_that_stand_alone_find_their_layer():
    shapes = {"a.q_bias": (4,), "a.v_bias": (4,), "a.qkv.weight": (12, 4)}
    held = units_of(shapes)
    assert [unit.keys for unit in held] == [
        {"w": "a.qkv.weight", "b": "a.q_bias"},
        {"w": "a.qkv.weight", "b": "a.v_bias"},
        {"w": "a.qkv.weight"},
    ]
    assert {unit.role: unit.own_bias for unit in held} == {"q": True, "k": False, "v": True}
    places = places_of(held, shapes).places
    assert all(place.slots["b"].rows is None for place in places[:2])
    assert places[0].slots["w"].rows.tolist() == [0, 1, 2, 3]
    apart = units_of({"a.query.weight": (4, 4), "a.q_bias": (4,)})
    assert [(unit.keys, unit.own_bias) for unit in apart] == [
        ({"w": "a.query.weight", "b": "a.q_bias"}, False)
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        {"a.query.weight": (4, 4), "a.q_bias": (5,)},  # of another size
        {"a.query.weight": (4, 4), "a.query.bias": (4,), "a.q_bias": (4,)},  # there is one
        {"a.query.weight": (4, 4), "b.q_bias": (4,)},  # of another layer
        {"a.query.weight": (4, 4), "a.q_scale": (4,)},  # no bias
    ],
)
def test_biases_that_belong_to_no_layer_stand_alone(shapes):
    alone = list(shapes)[-1]
    assert units_of(shapes)[-1].keys == {"p0": alone}
    assert alone not in units_of(shapes)[0].keys.values()


def test_what_shapes_tell_of_a_layer():
    norm = {
        "weight": (4,),
        "bias": (4,),
        "running_mean": (4,),
        "running_var": (4,),
        "num_batches_tracked": (),
    }
    shapes = {
        "pos": (1, 4, 8),
        "temperature": (),
        "gamma": (8,),
        "emb.weight": (6, 4),
        "ln.weight": (4,),
        "ln.bias": (4,),
        **{f"bn.{key}": shape for key, shape in norm.items()},
        "wide.weight": (4, 1, 1),
        "wide.bias": (4, 1, 1),
        "scale.weight": (1, 4, 1, 1),
        "conv.weight": (4, 1, 3, 3),
        "one.weight": (1, 4),
        "one.bias": (1,),
        "thin.weight": (4, 1),
        "thin.bias": (4,),
        "single.weight": (1,),
        "single.bias": (1,),
        "weight": (3, 2),
        "bias": (3,),
    }
    assert {name: label for name, label, _ in units(shapes)} == {
        "pos": ("p", (4, 8)),
        "temperature": ("p", ()),
        "gamma": ("p", (8,)),
        "emb": ("w", 6, 4),
        "ln": ("a", (4,)),
        "bn": ("n", (4,)),
        "wide": ("a", (4,)),
        "scale.weight": ("p", (4,)),
        "conv": ("w", 4, 9),
        "one": ("w", 1, 4),  # a layer with one output, not a scale
        "thin": ("w", 4, 1),
        "single": ("a", (1,)),
        "": ("w", 3, 2),
    }
    assert next(unit for unit in units_of(shapes) if unit.name == "bn").keys == {
        "w": "bn.weight",
        "b": "bn.bias",
        "m": "bn.running_mean",
        "v": "bn.running_var",
    }


def test_layers_stand_in_the_order_of_the_state_dict():
    shapes = {"b.bias": (3,), "z": (2,), "a.weight": (3, 3), "b.weight": (3, 3), "a.bias": (3,)}
    assert [unit.name for unit in units_of(shapes)] == ["b", "z", "a"]


def test_words_and_numbers_of_names():
    assert words("layer1.0.conv_2") == ("layer", "1", "0", "conv", "2")
    assert words("") == ()


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "q") for name in ("a.q", "query", "self.query.dense", "q_proj", "to_q", "Wq", "queries")),
        *((name, "k") for name in ("keys", "to_k", "query.key", "lin_keys", "K")),
        *((name, "v") for name in ("attn.values", "w_v", "v_lin", "linv")),
        *((name, "") for name in ("qkv", "quality", "kernel", "vs", "conv", "", "kv")),
    ],
)
def test_roles_in_names(name, role):
    assert role_of(name) == role


def test_tensors_answer_as_operands():
    held = Held({"a": (2, 3), "b": (4,)})
    assert held.value("b") == 1
    assert held.leaves(1) == ("b",)
    assert held.offsets == {"a": 0, "b": 6}
    assert held.of(0).view.shape == (2, 3)
    assert held.labels(held.of(1)).tolist() == [6, 7, 8, 9]
    assert held.labels(held.of(0)).tolist() == [[0, 1, 2], [3, 4, 5]]


# Small nets -----------------------------------------------------------------------------------


class Block(nn.Module):
    """A bottleneck whose shortcut has the shape of its last layer where the width fits."""

    def __init__(self, wide, thin, out, *, norms=False):
        super().__init__()
        self.a = nn.Conv2d(wide, thin, 1)
        self.b = nn.Conv2d(thin, thin, 3, padding=1)
        self.c = nn.Conv2d(thin, out, 1)
        self.cn = nn.BatchNorm2d(out) if norms else nn.Identity()
        self.skip = nn.Conv2d(wide, out, 1)
        self.sn = nn.BatchNorm2d(out) if norms else nn.Identity()

    def forward(self, x):
        return (self.cn(self.c(self.b(self.a(x)).relu())) + self.sn(self.skip(x))).relu()


class Blocks(nn.Sequential):
    def __init__(self, *widths, norms=False):
        super().__init__(nn.Conv2d(3, 8, 1), *(Block(*width, norms=norms) for width in widths))


OTHER = {
    "a": "layer.0",
    "b": "layer.1",
    "c": "layer.2",
    "cn": "layer.3",
    "skip": "proj.conv",
    "sn": "proj.norm",
}
FIRST = ["skip", "sn", "a", "b", "c", "cn"]  # the shortcut is registered first
RUN = ["a", "b", "c", "cn", "skip", "sn"]
SMALL_X = torch.zeros(2, 3, 4, 4)


def rewritten(net, order, names=OTHER):
    """Return the state dict as another hand would have it, and which tensor is which."""
    state = net.state_dict()
    truth = {key: f"stem.{key[2:]}" for key in state if key.startswith("0.")}
    for i in range(1, len(net)):
        for part in order:
            held = [key for key in state if key.startswith(f"{i}.{part}.")]
            truth |= {key: f"body.{i}.{names[part]}.{key.rpartition('.')[2]}" for key in held}
    return {other: state[key] for key, other in truth.items()}, truth


def told(found):
    return {entry.target: entry.keys[0] for entry in found.entries}


@pytest.mark.parametrize("norms", [False, True])
def test_what_is_certain_teaches_names(norms):
    net = Blocks((8, 8, 32), (32, 16, 64), norms=norms)
    state, truth = rewritten(net, FIRST)
    found = align(state, net, example=SMALL_X)
    assert told(found) == truth
    rules = {entry.target: entry.rule for entry in found.entries}
    assert rules["1.c.weight"] == rules["1.skip.weight"] == "names"
    assert rules["2.c.weight"] == rules["1.a.weight"] == "shape"


@pytest.mark.parametrize("norms", [False, True])
def test_order_is_not_believed_where_it_crosses_what_is_certain(norms):
    net = Blocks((8, 8, 32), norms=norms)
    state, truth = rewritten(net, FIRST)
    found = align(state, net, example=SMALL_X)
    open_ = {key for key in truth if key.split(".")[1] in {"c", "cn", "skip", "sn"}}
    assert {one.target for one in found.ambiguous} == open_
    assert told(found) == {key: other for key, other in truth.items() if key not in open_}
    layers = next(one for one in found.ambiguous if one.target == "1.c.weight")
    assert layers.candidates == ("body.1.layer.2.weight", "body.1.proj.conv.weight")
    assert reconciled(found)


def test_order_is_believed_where_enough_is_certain_and_kept_in_order():
    net = Blocks((8, 8, 32), (32, 32, 16), (16, 16, 64))
    state, truth = rewritten(net, RUN)
    found = align(state, net, example=SMALL_X)
    assert told(found) == truth
    assert found.of("1.c.weight").rule == "order"
    few = Blocks((8, 8, 32))
    state, truth = rewritten(few, RUN)
    found = align(state, few, example=SMALL_X)
    assert {one.target.split(".")[1] for one in found.ambiguous} == {"c", "skip"}
    assert told(found).items() <= truth.items()


def test_order_is_not_believed_where_enough_is_certain_and_it_crosses_that():
    net = Blocks((8, 8, 32), (32, 32, 16), (16, 16, 64))
    state, truth = rewritten(net, FIRST)
    found = align(state, net, example=SMALL_X)
    assert {one.target.split(".")[1] for one in found.ambiguous} == {"c", "skip"}
    assert told(found).items() <= truth.items()


def test_order_is_not_believed_of_a_file_sorted_by_the_alphabet():
    net = Blocks((8, 8, 32), (32, 32, 16), (16, 16, 64))
    state, truth = rewritten(net, RUN)
    found = align(dict(sorted(state.items())), net, example=SMALL_X)
    assert {one.target.split(".")[1] for one in found.ambiguous} == {"c", "skip"}
    assert told(found).items() <= truth.items()


def chain():
    """Return a layer, two that are alike, and another."""
    sizes = {"start": (8, 16), "left": (16, 16), "right": (16, 16), "end": (16, 8)}
    return nn.Sequential(OrderedDict((name, nn.Conv2d(*size, 1)) for name, size in sizes.items()))


def test_order_is_not_believed_where_what_is_certain_is_registered_backwards():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), chain(), chain())
    names = {"end": "u", "right": "v", "left": "w", "start": "x"}
    state, truth = rewritten(net, names, names)
    found = align(state, net, example=SMALL_X)
    twins = {key for key in truth if key.split(".")[1] in {"left", "right"}}
    assert {one.target for one in found.ambiguous} == twins
    assert told(found) == {key: other for key, other in truth.items() if key not in twins}
    state, truth = rewritten(net, [*names][::-1], names)
    assert told(align(state, net, example=SMALL_X)) == truth


def test_a_normalisation_follows_its_layer():
    net = Blocks((8, 16, 32), norms=True)
    state, truth = rewritten(net, ["skip", "sn", "a", "b", "c", "cn"])
    found = align(state, net, example=SMALL_X)
    assert told(found) == truth
    assert found.of("1.cn.weight").rule == found.of("1.sn.running_mean").rule == "neighbour"


def test_words_that_both_use_decide():
    net = Blocks((8, 8, 32))
    names = {**OTHER, "c": "main.c", "skip": "main.skip"}
    state, truth = rewritten(net, FIRST, names)
    found = align(state, net, example=SMALL_X)
    assert told(found) == truth
    assert found.of("1.skip.weight").rule == "names"


class Attention(nn.Module):
    """Attention whose layers are registered in an order of their own; fused or not."""

    def __init__(self, *, fused):
        super().__init__()
        self.fused = fused
        names = ["wide"] if fused else ["three", "one", "two"]
        for name in names:
            setattr(self, name, nn.Linear(8, 24 if fused else 8))
        self.out = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.wide(x).chunk(3, -1) if self.fused else (self.one(x), self.two(x), self.three(x))
        x = x + self.out(F.softmax(q @ k.transpose(1, 2) * 8**-0.5, -1) @ v)
        return self.fc(x.mean(1))


TOKENS = torch.zeros(2, 8, 2, 2)


def linear(name, wide=8, deep=8, *, bias=True):
    state = {f"{name}.weight": torch.randn(wide, deep)}
    return {**state, f"{name}.bias": torch.randn(wide)} if bias else state


def test_roles_in_attention_are_told_by_what_is_computed():
    state = {}
    for name, wide in (("key", 8), ("value", 8), ("query", 8), ("dense", 8), ("head", 3)):
        state |= linear(f"layer.{name}", wide)
    found = align(state, Attention(fused=False), example=TOKENS)
    keys = {"one": "query", "two": "key", "three": "value", "out": "dense", "fc": "head"}
    assert told(found) == {
        f"{name}.{end}": f"layer.{other}.{end}" for name, other in keys.items() for end in ("weight", "bias")
    }
    assert {found.of(f"{name}.weight").rule for name in ("one", "two", "three")} == {"role"}


def test_a_fused_layer_takes_from_three():
    state = {}
    for name, wide in (("key", 8), ("value", 8), ("query", 8), ("dense", 8), ("head", 3)):
        state |= linear(f"layer.{name}", wide)
    found = align(state, Attention(fused=True), example=TOKENS)
    assert found.of("wide.weight").keys == tuple(f"layer.{n}.weight" for n in ("query", "key", "value"))
    made_ = found.apply(state)["wide.bias"]
    assert made_.equal(torch.cat([state[f"layer.{n}.bias"] for n in ("query", "key", "value")]))


@pytest.mark.parametrize("name", ["attn.qkv.", "attn.in_proj_"])
def test_three_take_from_a_fused_layer(name):
    state = {f"{name}weight": torch.randn(24, 8), f"{name}bias": torch.randn(24)}
    state |= {**linear("attn.out"), **linear("head", 3)}
    found = align(state, Attention(fused=False), example=TOKENS)
    given = found.apply(state)
    assert found.missing == ()
    for i, part in enumerate(("one", "two", "three")):
        for end in ("weight", "bias"):
            assert given[f"{part}.{end}"].equal(state[f"{name}{end}"][8 * i : 8 * i + 8])


def test_biases_that_stand_alone_are_joined_and_what_has_none_is_zero():
    state = {"q_bias": torch.randn(8), "v_bias": torch.randn(8), **linear("qkv", 24, bias=False)}
    state |= {**linear("out"), **linear("head", 3)}
    for fused in (False, True):
        given = align(state, Attention(fused=fused), example=TOKENS).apply(state)
        joined = (
            given["wide.bias"] if fused else torch.cat([given[f"{n}.bias"] for n in ("one", "two", "three")])
        )
        assert joined.equal(torch.cat([state["q_bias"], torch.zeros(8), state["v_bias"]]))


class Gated(nn.Module):
    """A layer whose halves are a gate and a value."""

    def __init__(self):
        super().__init__()
        self.wide, self.out = nn.Linear(8, 32), nn.Linear(16, 4)

    def forward(self, x):
        gate, value = self.wide(x.flatten(1)).chunk(2, -1)
        return self.out(gate.sigmoid() * value)


def test_parts_of_a_split_layer_are_undecided():
    state = {**linear("first", 16), **linear("second", 16), **linear("last", 4, 16)}
    found = align(state, Gated(), example=torch.zeros(2, 8, 1, 1))
    assert [one.target for one in found.ambiguous] == ["wide.weight", "wide.bias"]
    assert found.ambiguous[0].candidates == ("first.weight", "second.weight")
    assert told(found) == {"out.weight": "last.weight", "out.bias": "last.bias"}


def test_a_split_layer_that_is_whole_in_the_state_dict_is_whole():
    state = {**linear("both", 32), **linear("last", 4, 16)}
    found = align(state, Gated(), example=torch.zeros(2, 8, 1, 1))
    assert told(found)["wide.weight"] == "both.weight"
    assert found.apply(state)["wide.weight"].equal(state["both.weight"])
    assert reconciled(found)


class Tokens(nn.Module):
    """Tokens, some of them learnt, with positions and a scale."""

    def __init__(self, learnt=()):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(1, 4 + sum(learnt), 8))
        self.learnt = nn.ParameterDict({f"t{size}": torch.randn(1, size, 8) for size in learnt})
        self.fc, self.out = nn.Linear(8, 16), nn.Linear(16, 3)
        self.gamma = nn.Parameter(torch.randn(16))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        if self.learnt:
            x = torch.cat([token.expand(len(x), -1, -1) for token in self.learnt.values()] + [x], 1)
        return self.out(self.fc(x + self.rows) * self.gamma).mean(1)


class Alike(Tokens):
    """Three learnt tokens, two of one shape."""

    def __init__(self):
        super().__init__((3,))
        self.a, self.b = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.rows = nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([t.expand(len(x), -1, -1) for t in (self.a, self.learnt["t3"], self.b)] + [x], 1)
        return self.out(self.fc(x + self.rows) * self.gamma).mean(1)


def tokens(**learnt):
    """Return the state dict of such a net by another hand."""
    state = {"pos": torch.randn(1, 4 + sum(learnt.values()), 8), "ls": torch.randn(16)}
    state |= {name: torch.randn(1, size, 8) for name, size in learnt.items()}
    return {**state, **linear("mlp", 16), **linear("head", 3, 16)}


@pytest.mark.parametrize("learnt", [{}, {"cls": 1}, {"registers": 3, "cls": 1}])
def test_tables_tokens_and_scales(learnt):
    state = tokens(**learnt)
    net = Tokens(sorted(learnt.values()))
    found = align(state, net, example=TOKENS)
    wanted = {"rows": "pos", "gamma": "ls", **{f"learnt.t{size}": name for name, size in learnt.items()}}
    assert told(found).items() >= wanted.items()
    assert {found.of(key).rule for key in wanted} == {"shape"}
    assert found.missing == found.unused == ()
    assert all(found.apply(state)[key].equal(state[other]) for key, other in wanted.items())


def test_joined_tokens_are_as_certain_as_the_least_of_them():
    """Two are alike, and their order is none that counts; the third is alone of its shape."""
    found = align(tokens(one=1, three=3, other=1), Alike(), example=TOKENS)
    assert {one.target for one in found.ambiguous} >= {"a", "b"}
    counted = align(tokens(t1=1, three=3, t2=1), Alike(), example=TOKENS)
    assert told(counted).items() >= {"learnt.t3": "three", "a": "t1", "b": "t2"}.items()
    assert counted.of("learnt.t3").rule == "order"


def test_of_joined_tokens_all_or_none_are_known():
    found = align(tokens(registers=3, cls=2), Tokens((1, 3)), example=TOKENS)
    assert {"learnt.t1", "learnt.t3"}.isdisjoint(told(found))
    assert reconciled(found)


def test_an_embedding_looks_like_a_linear_layer():
    state = {
        "pos.weight": torch.randn(4, 8),
        **linear("mlp", 16),
        "ls": torch.randn(16),
        **linear("head", 3, 16),
    }
    found = align(state, Tokens(), example=TOKENS)
    assert found.of("rows").keys == ("pos.weight",)
    assert found.apply(state)["rows"].equal(state["pos.weight"][None])


# Pairing, one layer at a time -----------------------------------------------------------------


def item(number, name, label=("w", 4, 4), **more):
    return Item(number, label, name, "", **more)


def rules(pairing):
    return {number: (one.source, one.rule) for number, one in pairing.made.items()}


def test_namesakes_are_believed_where_most_are():
    ours = [item(i, name) for i, name in enumerate(("a", "b", "c"))]
    theirs = [item(i, name) for i, name in enumerate(("b", "a", "z"))]
    pairing = Pairing()
    pairing.namesakes(ours, theirs)
    assert rules(pairing) == {0: (1, "names"), 1: (0, "names")}
    few = Pairing()
    few.namesakes(ours, [attrs.evolve(one, name=f"z{one.name}") for one in theirs[1:]] + theirs[:1])
    assert rules(few) == {}


def test_one_tensor_of_a_name_is_told_by_it():
    ours = [item(0, "x.alpha", ("p", (4,))), item(1, "x.beta", ("p", (4,)))]
    theirs = [item(0, "y.beta", ("p", (4,))), item(1, "y.gamma", ("p", (4,)))]
    pairing = Pairing()
    pairing.pair(ours, theirs, final=True)
    assert rules(pairing)[0] == (1, "names")


def test_nothing_is_paired_that_is_not_as_many():
    pairing = Pairing()
    pairing.pair([item(0, "a"), item(1, "b")], [item(0, "c"), item(1, "d"), item(2, "e")], final=True)
    assert rules(pairing) == {}


# Loading --------------------------------------------------------------------------------------


@functools.cache
def gated():
    held = case(PAIRS["dinov2_swiglu_hugging2timm"])
    return held.source.state_dict(), held.target, held.x


def test_a_state_dict_of_another_hand_is_loaded():
    held = case(PAIRS["mobilenet_v2_hugging2timm"])
    model = pipe(held.target, load_weights(held.source.state_dict(), by="structure"), example=held.x)
    assert difference(held.expected, model(held.x)) < SAME
    report = load_report(model)
    assert report.summary == "loaded 100.0 % of parameters (314 of 314 tensors)"
    assert report.evidence == (("names", 314),)
    assert difference(held.expected, held.target(held.x)) > 0.1


def test_what_is_undecided_is_not_loaded():
    state, target, x = gated()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(AlignmentError) as caught:
        pipe(target, load_weights(state, by="structure"), example=x)
    assert str(caught.value) == (
        "names and shapes do not decide what 6 tensors of the model stand for\n"
        '  asked  load_weights(<67 tensors>, by="structure")\n'
        "  found  blocks.0.mlp.fc1.weight, blocks.0.mlp.fc1.bias, blocks.1.mlp.fc1.weight, "
        "blocks.1.mlp.fc1.bias, ...\n"
        "  write  transfer(<a model with these weights>, <this model>), or exclude=[...] to leave them"
    )
    assert all(value.equal(before[key]) for key, value in target.state_dict().items())


def test_what_is_undecided_may_be_left_out():
    state, target, x = gated()
    step = load_weights(state, by="structure", exclude="blocks.*.mlp.fc1")
    model = pipe(target, step, example=x)
    report = load_report(model)
    assert report.summary == "loaded 100.0 % of parameters (42 of 42 tensors); 6 excluded; 1 unexpected"
    assert report.ambiguous == ()
    loaded, before = model.state_dict(), target.state_dict()
    assert all(loaded[key].equal(before[key]) for key in report.excluded)
    assert loaded["blocks.2.mlp.fc2.weight"].equal(state["encoder.layer.2.mlp.down_proj.weight"])


def test_a_model_says_what_its_state_dict_leaves_open():
    held = case(PAIRS["resnet18_torchvision2timm"])
    model = transfer(held.source, held.target, example=held.x)
    with torch.no_grad():
        assert difference(held.expected, model(held.x)) < SAME
    assert load_report(model).ambiguous == ()
    swiglu = case(PAIRS["dinov2_swiglu_hugging2timm"])
    whole = transfer(swiglu.source, swiglu.target, example=swiglu.x)
    with torch.no_grad():
        assert difference(swiglu.expected, whole(swiglu.x)) < SAME


def test_a_state_dict_cannot_be_stretched():
    with pytest.raises(OptionError) as caught:
        align(eighteen().state_dict(), resnet18(), example=X, policy="same_shape")
    assert str(caught.value) == (
        "a state dict has no order of layers in which they could stand for those that follow\n"
        '  asked  align(<122 tensors>, <a ResNet>, example=<a Tensor>, policy="same_shape")\n'
        "  found  a source without a model\n"
        '  write  align(<a model with these weights>, ..., policy="same_shape")'
    )

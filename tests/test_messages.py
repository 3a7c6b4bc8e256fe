"""Golden texts: what a user reads when something cannot be done."""

from __future__ import annotations

import pytest
import torch
from nets import ByData
from torch import nn

from torchgraft import (
    GraftError,
    Recipe,
    align,
    at,
    drop_head,
    features,
    freeze,
    inject,
    load_weights,
    partial_load,
    pipe,
    remove,
    replace,
    swap_head,
    wrap,
)
from torchgraft.blocks import cbam, se
from torchgraft.text import near


def text(call) -> str:
    with pytest.raises(GraftError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_path_that_is_not_there(small):
    assert text(lambda: pipe(small, wrap("stge", se))) == (
        'TargetError: "stge" is no module and no node of this model\n'
        '  asked  wrap("stge", se())\n'
        "  found  14 modules, no node of that name in the root\n"
        "  near   stage, stem, stage.1\n"
        '  write  wrap("stage", se())'
    )


def test_a_class_that_is_not_there(small):
    assert text(lambda: pipe(small, freeze(nn.Conv3d))) == (
        "TargetError: this model has no nn.Conv3d\n"
        "  asked  freeze(nn.Conv3d)\n"
        "  found  6 classes of modules\n"
        "  near   nn.Conv2d\n"
        "  write  freeze(nn.Conv2d)"
    )


def test_an_option_that_does_not_exist():
    assert text(lambda: cbam(kernl=3)) == (
        "OptionError: cbam: got an unexpected keyword argument 'kernl'\n"
        "  asked  cbam(kernl=3)\n"
        "  found  cbam(*, reduction=16, kernel=7, neutral=True)\n"
        "  near   kernel\n"
        "  write  cbam(kernel=3)"
    )
    assert text(lambda: swap_head(classes=10)).endswith("write  swap_head(10)")
    assert text(lambda: se(4)).endswith("write  se(reduction=4)")
    assert text(lambda: inject("a", se, where="Before")).endswith('write  inject("a", se, where="before")')


def test_a_shape_that_does_not_fit(small):
    narrow = replace("stage.0.conv1", nn.Conv2d(8, 4, 3, padding=1))
    assert text(lambda: pipe(small, narrow)) == (
        "ShapeError: 'stage.0.conv1' gives n 8 112 112 and nn.Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), "
        "padding=(1, 1)) gives n 4 112 112\n"
        '  asked  replace("stage.0.conv1", nn.Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)))\n'
        "  found  stage.0.relu takes n 8 112 112\n"
        "  write  a module that gives that shape; keep_shape=False to change it on purpose"
    )


def test_a_tensor_as_a_target(small):
    assert text(lambda: pipe(small, freeze("fc.weight"))) == (
        'TargetError: "fc.weight" is a tensor of a module, and targets are modules or operations\n'
        '  asked  freeze("fc.weight")\n'
        "  found  weight of fc\n"
        "  near   fc\n"
        '  write  freeze("fc")'
    )


def test_a_step_that_takes_two_values(small):
    assert text(lambda: pipe(small, remove("stage.0.add"))) == (
        "TargetError: 'stage.0.add' takes 2 values, so it is open what would take its place\n"
        '  asked  remove("stage.0.add")\n'
        "  found  bn, x\n"
        "  write  edit(<a function of the draft>, name=...)"
    )


def test_a_forward_that_decides_on_data():
    said = text(lambda: pipe(ByData(), wrap("conv", se)))
    assert said.startswith("TraceError: the forward of the root ByData cannot be followed by torch.fx\n")
    assert "nets.py:" in said
    assert "if x.sum() > 0:" in said
    said = text(lambda: pipe(ByData(), drop_head()))
    assert said.startswith("HeadError: the classifier cannot be told: the forward decides on values")
    assert "nets.py:" in said
    assert "if x.sum() > 0:" in said


def test_notes_name_the_step(small):
    with pytest.raises(GraftError) as caught:
        pipe(small, swap_head(3), wrap("stge", se))
    assert caught.value.__notes__ == ['while applying step 2 of 2: wrap("stge", se())']


@pytest.mark.parametrize(
    "step", [wrap("stge", se), freeze("x.*"), replace("fc", nn.Linear(3, 3)), remove("stage.0.add")], ids=repr
)
def test_every_error_has_its_parts_as_fields(small, step):
    with pytest.raises(GraftError) as caught:
        pipe(small, step)
    assert caught.value.asked == repr(step)
    assert caught.value.found
    assert len(caught.value.near) <= 3


def test_a_replacement_where_shapes_are_unknown():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x, y):
            return self.fc(x) + y.z

    said = text(lambda: pipe(Two(), replace("fc", nn.Linear(3, 3))))
    layer = 'replace("fc", nn.Linear(in_features=3, out_features=3, bias=True)'
    assert said.endswith(f"{layer}, keep_shape=False), or pipe(model, {layer}), example=(x, y))")


def test_a_module_that_nothing_calls(small):
    assert text(lambda: pipe(small, wrap("unused", se))) == (
        "TargetError: no forward calls 'unused' (Linear)\n"
        '  asked  wrap("unused", se())\n'
        "  found  its parent never runs it, nor reads its parameters"
    )
    assert text(lambda: pipe(small, wrap("nope.a.b", se))).startswith(
        'TargetError: "nope.a.b" is no module and no node of this model\n'
    )


def test_a_forward_that_cannot_be_followed_deep_in_a_model():
    said = text(lambda: pipe(nn.Sequential(nn.Sequential(ByData())), wrap("0.0.conv", se)))
    assert "the forward of ByData at '0.0' cannot be followed by torch.fx" in said
    assert "decides on a value" in said


def test_a_container_that_nothing_calls():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.spare = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            return self.fc(x)

    said = text(lambda: pipe(nn.Sequential(Idle()), inject("0.spare", se)))
    assert said.endswith("found  its parent never runs it, nor reads its parameters")
    said = text(lambda: pipe(nn.Sequential(Idle()), inject(at(nn.Linear), se)))
    assert said.endswith('write  inject(at(nn.Linear) - "0.spare.0", se())')


def test_a_list_that_is_called_item_by_item():
    class Items(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(3, 3), nn.ReLU()]) for _ in range(2))

        def forward(self, x):
            for layer, act in self.blocks:
                x = act(layer(x))
            return x

    assert text(lambda: pipe(Items(), inject("blocks.0", se))) == (
        "TargetError: no forward calls 'blocks.0' (ModuleList)\n"
        '  asked  inject("blocks.0", se())\n'
        "  found  its children are called one by one\n"
        "  near   blocks.0.1\n"
        '  write  inject("blocks.0.1", se())'
    )
    assert pipe(Items(), wrap("blocks.0", se)).blocks_0_se is not None


def test_a_block_that_changes_the_shape_names_the_consumer():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1)))
    narrow = lambda channels: nn.Conv2d(channels, 2, 1)
    assert "the output of the model takes" in text(lambda: pipe(model, inject("1", narrow)))
    assert "the output of 1 takes" in text(lambda: pipe(model, wrap("1", narrow)))
    assert "found  1 takes n 4" in text(lambda: pipe(model, inject("0", narrow)))


def test_values_are_never_printed_in_full(small):
    state = {f"layer.{i}": torch.rand(9, 9) for i in range(40)}
    for call in (
        lambda: load_weights(state, initt="zeros"),
        lambda: partial_load(small, state, init_new_layers="zeros"),
        lambda: load_weights({"state_dict": state, "epoch": 3}, initt="zeros"),
        lambda: replace("fc", small, exmple=torch.rand(3, 224, 224)),
        lambda: features("stage", nam=[torch.rand(9, 9)]),
        lambda: pipe(small, replace("fc", nn.Sequential(*map(nn.Linear, range(9, 99), range(9, 99))))),
        lambda: freeze(["a" * 9999]),
        lambda: pipe(small, [torch.rand(9, 9)]),
    ):
        said = text(call)
        assert "tensor(" not in said
        assert max(map(len, said.splitlines())) < 800
    assert "load_weights(<40 tensors>, init=" in text(lambda: load_weights(state, initt="zeros"))


@pytest.mark.parametrize(
    ("name", "names", "first"),
    [
        ("cbam_block", ["drop_block", "cbam"], "cbam"),
        ("init_new_layers", ["seed", "exclude", "init"], "init"),
        ("encoder.s3", ["encoder.x", "encoder", "encoder.model.s3"], "encoder.model.s3"),
        ("layer3", ["layer", "0.layer3"], "0.layer3"),
        ("nn.Relu", ["nn.RReLU", "nn.ReLU"], "nn.ReLU"),
        ("layer4.7", ["layer1.7", "layer4.1"], "layer4.1"),
        ("stge", ["stem", "stage"], "stage"),
    ],
)
def test_the_nearest_name(name, names, first):
    assert near(name, names)[0] == first


def test_frozen_values_tell_wrong_fields():
    assert text(lambda: Recipe(stem="x")).splitlines()[:2] == [
        "OptionError: Recipe: missing a required argument: 'base'",
        '  asked  Recipe(stem="x")',
    ]
    assert text(lambda: align(nn.Linear(2, 2), nn.Linear(2, 2), y=1)).startswith(
        "OptionError: align: got an unexpected keyword argument 'y'\n  asked  align(<a Linear>, <a Linear>, y=1)"
    )


def test_a_module_that_a_wider_target_finds_and_nothing_calls(small):
    with pytest.raises(GraftError) as caught:
        pipe(small, replace(nn.Linear, nn.Identity))
    assert caught.value.write == 'replace(at(nn.Linear) - "unused", nn.Identity)'


def test_no_private_class_is_raised(small):
    with pytest.raises(GraftError) as caught:
        pipe(small, features("unused"))
    assert not type(caught.value).__name__.startswith("_")

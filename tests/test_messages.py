"""Golden texts: what a user reads when something cannot be done."""

from __future__ import annotations

import pytest
from nets import ByData
from torch import nn

from torchgraft import GraftError, drop_head, freeze, inject, pipe, remove, replace, swap_head, wrap
from torchgraft.blocks import cbam, se


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
        "  near   nn.Conv2d"
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
    assert text(lambda: inject("a", se, where="Before")).endswith('write  inject("a", se(), where="before")')


def test_a_shape_that_does_not_fit(small):
    narrow = replace("stage.0.conv1", nn.Conv2d(8, 4, 3, padding=1))
    assert text(lambda: pipe(small, narrow)) == (
        "ShapeError: 'stage.0.conv1' gives n 8 112 112 and Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), "
        "padding=(1, 1)) gives n 4 112 112\n"
        '  asked  replace("stage.0.conv1", Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)))\n'
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
    said = text(lambda: pipe(ByData(), drop_head()))
    assert said.startswith("TraceError: the forward of the root ByData cannot be followed by torch.fx\n")
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
    assert said.endswith("keep_shape=False), which checks no shape; or example=<an input>")


def test_a_module_that_nothing_calls(small):
    assert text(lambda: pipe(small, wrap("unused", se))) == (
        "TargetError: no forward calls 'unused' (Linear)\n"
        '  asked  wrap("unused", se())\n'
        "  found  its parent uses its parameters or its children directly\n"
        "  write  a target that is called"
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
    assert said.endswith('write  a target that is called: "0.spare.1"')
    said = text(lambda: pipe(nn.Sequential(Idle()), inject("0.spare.0", se)))
    assert said.endswith('write  a target that is called: "0.spare"')


def test_a_block_that_changes_the_shape_names_the_consumer():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1)))
    narrow = lambda channels: nn.Conv2d(channels, 2, 1)
    assert "the output of the model takes" in text(lambda: pipe(model, inject("1", narrow)))
    assert "the output of 1 takes" in text(lambda: pipe(model, wrap("1", narrow)))
    assert "found  1 takes n 4" in text(lambda: pipe(model, inject("0", narrow)))

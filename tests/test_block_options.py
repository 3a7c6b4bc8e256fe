"""Blocks of users: options checked by plain annotations, and advice for names that are none."""

from __future__ import annotations

import pytest
from torch import nn
from torchvision.models import resnet18

from torchgraft import Recipe, pipe, replace, wrap
from torchgraft.blocks import block, register_block
from torchgraft.blocks.options import Positive
from torchgraft.blocks.registry import _TABLE
from torchgraft.errors import GraftError, OptionError
from torchgraft.spec import TensorSpec


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr("torchgraft.blocks.registry._TABLE", dict(_TABLE))


@pytest.fixture
def gate():
    @block()
    def my_gate(
        site: TensorSpec,
        *,
        hidden: int = 4,
        rate: float = 0.5,
        on: bool = True,
        word: str = "a",
        more: int | None = None,
        some: int | tuple[int, ...] = 3,
    ) -> nn.Module:
        return nn.Conv2d(site.channels, site.channels, 1, groups=hidden)

    return my_gate


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden": "x"}, "hidden must be an integer"),
        ({"hidden": 2.5}, "hidden must be an integer"),
        ({"hidden": True}, "hidden must be an integer"),
        ({"rate": "x"}, "rate must be a number"),
        ({"rate": False}, "rate must be a number"),
        ({"on": 1}, "on must be True or False"),
        ({"word": 3}, "word must be a text"),
        ({"more": "3"}, "more must be an integer or None"),
    ],
)
def test_plain_annotations_are_checked(gate, options, says):
    with pytest.raises(OptionError) as caught:
        gate(**options)
    assert caught.value.summary == says
    assert caught.value.write == "my_gate()"


def test_what_fits_a_plain_annotation_is_taken(gate):
    for options in ({"hidden": 2}, {"rate": 1}, {"more": None}, {"more": 2}, {"some": (1, 2)}, {"some": 1}):
        assert eval(repr(gate(**options)), {"my_gate": gate}) == gate(**options)


def test_an_option_without_a_default_is_told_its_rule():
    @block()
    def wide(site: TensorSpec, *, hidden: Positive) -> nn.Module:
        return nn.Conv2d(site.channels, hidden, 1)

    for value in (-1, "x", 2.5):
        with pytest.raises(OptionError) as caught:
            wide(hidden=value)
        assert caught.value.write == "wide(hidden=<a positive integer>)"


def test_a_builder_that_fails_is_told_with_its_options(gate):
    with pytest.raises(OptionError) as caught:
        pipe(resnet18(), wrap("layer4", gate(hidden=-1)))
    assert caught.value.asked == 'wrap("layer4", my_gate(hidden=-1))'
    assert caught.value.found.startswith("ValueError: groups")
    assert caught.value.write == 'wrap("layer4", my_gate())'


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("lora(4)", "lora(4)"),
        ("se(reduction=8)", "se(reduction=8)"),
        ("gelu", "nn.GELU"),
        ("BatchNorm2d", "nn.BatchNorm2d"),
        ("cbam_block", '"cbam"'),
        ("SEBlock", '"se"'),
        ("eca_layer", '"eca"'),
        ("LayerScale", '"layer_scale"'),
        ("self_atention", '"self_attention"'),
    ],
)
def test_the_advice_for_a_name_that_is_none_fits_and_works(name, write):
    from torchgraft.blocks import lora, se

    made = {"nn": nn, "lora": lora, "se": se, "wrap": wrap, "replace": replace}
    for step, call in ((wrap, f'wrap("layer4", {write})'), (replace, f'replace("layer4", {write})')):
        with pytest.raises(OptionError) as caught:
            step("layer4", name)
        assert caught.value.write == call
        eval(call, made)


def test_options_for_what_has_none_name_the_way_to_get_them():
    @register_block("kw_gate")
    class Gate(nn.Module):
        def __init__(self, channels: int, *, hidden: int = 4) -> None:
            super().__init__()

    for call in (
        lambda: wrap("layer4", "kw_gate(hidden=3)"),
        lambda: Recipe("x", steps=['wrap("layer4", kw_gate(hidden=3))']),
    ):
        with pytest.raises(GraftError) as caught:
            call()
        assert caught.value.write.startswith("@block() on def kw_gate(site, *, ")
    with pytest.raises(GraftError) as caught:
        Recipe("x", steps=['wrap("layer4", kw_gate())'])
    assert caught.value.write == 'wrap("layer4", "kw_gate")'

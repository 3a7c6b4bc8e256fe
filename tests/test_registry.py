"""The registry of blocks: names, users' own blocks, options checked before any model is seen."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from torchgraft import blocks, pipe, replace, wrap
from torchgraft.blocks import block, register_block
from torchgraft.blocks.options import Above, Odd, Positive, Probability
from torchgraft.errors import OptionError
from torchgraft.recipe import parse
from torchgraft.spec import TensorSpec


def test_blocks_are_given_by_name(small, images):
    assert wrap("stage", "se") == wrap("stage", blocks.se) == wrap("stage", blocks.se())
    assert pipe(small, wrap("stage", "cbam"))(images).equal(small(images))
    assert {"se", "eca", "cbam", "lora", "mbconv", "gem"} <= set(blocks.names())
    with pytest.raises(OptionError) as caught:
        wrap("stage", "cbma")
    assert "cbam" in caught.value.near
    assert caught.value.write == 'wrap("stage", "cbam")'


def test_a_name_is_given_once():
    @register_block("mine")
    class Mine(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.fc = nn.Conv2d(channels, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    assert wrap("a", "mine") == wrap("a", "mine")
    assert repr(wrap("a", "mine")) == 'wrap("a", "mine")'
    assert parse(repr(wrap("a", "mine"))) == wrap("a", "mine")
    for taken in ("mine", "se"):
        with pytest.raises(OptionError, match="registered already"):
            register_block(taken)(nn.ReLU)
    with pytest.raises(OptionError):
        register_block("not a name")


def test_users_blocks_work_by_name(small, images):
    register_block("relu_again")(nn.ReLU)
    result = pipe(small, wrap("stage", "relu_again"))
    assert list(result.stage._modules) == ["0", "1", "relu_again"]

    @register_block("pointwise")
    def pointwise(channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1)

    assert pipe(small, replace("stage.0.conv1", "pointwise")).stage[0].conv1.in_channels == 8


def test_a_builder_becomes_a_factory_with_checked_options(small):
    @block(maps=True)
    def blur(
        site: TensorSpec, *, kernel: Odd = 3, sharp: bool = False, rate: Above | None = None
    ) -> nn.Module:
        """Describe a blur.

        Args:
            site: the place.
            kernel: its size.
        """
        return nn.AvgPool2d(kernel, 1, padding=kernel // 2)

    assert repr(blur(kernel=5, sharp=True)) == "blur(kernel=5, sharp=True)"
    assert "site" not in blur.__doc__
    assert repr(wrap("stage", blur)) == 'wrap("stage", blur())'
    assert isinstance(pipe(small, wrap("stage", "blur")).stage.blur, nn.AvgPool2d)
    wrong = [({"kernel": 4}, "blur(kernel=5)"), ({"sharp": 1}, "blur(sharp=True)"), ({"rate": 0}, "blur()")]
    for options, right in wrong:
        with pytest.raises(OptionError) as caught:
            blur(**options)
        assert caught.value.write == right


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (Positive, [1, 7], [0, -1, 1.0, True, "1", None]),
        (Odd, [1, 3], [2, 0, -1, 1.5, True]),
        (Probability, [0, 0.5], [1, -0.1, "0", True, None]),
        (Above, [1e-9, 3], [0, -1, False, "1"]),
    ],
)
def test_rules(rule, right, wrong):
    (one,) = rule.__metadata__
    assert all(one.holds(value) for value in right)
    assert not any(one.holds(value) for value in wrong)


def test_every_block_of_the_library_is_a_value():
    for name in blocks.names():
        make = getattr(blocks, name)
        made = make()
        assert made == make()
        assert hash(made) == hash(make())
        assert pickle.loads(pickle.dumps(made)) == made
        assert eval(repr(made), vars(blocks)) == made
        assert made.label() == name
        assert make.__doc__.count("Example") == 1
        assert "site:" not in make.__doc__
        assert make.__doc__.count("Returns:") == 1
        assert made.contract

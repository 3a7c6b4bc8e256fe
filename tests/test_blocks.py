"""Blocks: neutral at the start, trainable, the papers' arithmetic on request."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from torchgraft.blocks import cbam, eca, se
from torchgraft.errors import LayoutError, OptionError
from torchgraft.spec import TensorSpec


def spec(channels: int, rank: int = 4) -> TensorSpec:
    return TensorSpec(channels, 1, rank, torch.float32, torch.device("cpu"))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts():
    assert count(se().build(spec(256))) == 8_464
    assert count(se(reduction=4).build(spec(256))) == 33_088
    assert count(se().build(spec(1024))) == 132_160
    assert count(eca().build(spec(256))) == 5
    assert count(cbam().build(spec(256))) == 2 * 256 * 16 + 2 * 49
    assert se().build(spec(64)).fc1.out_channels == 8
    assert se().build(spec(3)).fc1.out_channels == 3


@pytest.mark.parametrize("block", [se, eca, cbam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_neutral_start_is_exact_and_every_parameter_trains(block, dtype):
    module = block().build(TensorSpec(32, 1, 4, dtype, torch.device("cpu")))
    x = torch.randn(2, 32, 7, 7, dtype=dtype)
    assert module(x).equal(x)
    reached = set()
    for _ in range(2):
        (module(x) ** 2).mean().backward()
        reached |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        torch.optim.SGD(module.parameters(), lr=1e-3).step()
        module.zero_grad()
    assert reached == {n for n, _ in module.named_parameters()}


@pytest.mark.parametrize("block", [se, eca])
@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 5), (2, 8, 5, 4), (2, 8, 3, 4, 5)])
def test_channel_gates_take_any_number_of_places(block, shape):
    x = torch.randn(shape)
    assert block().build(spec(8))(x).equal(x)
    assert block(neutral=False).build(spec(8))(x).shape == x.shape


def test_se_of_the_paper_is_torchvisions():
    ours = se(reduction=4, neutral=False).build(spec(32))
    theirs = SqueezeExcitation(32, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 7, 7)
    assert ours(x).equal(theirs(x))


def test_cbam_refuses_what_has_no_places():
    with pytest.raises(LayoutError):
        cbam().build(spec(8, rank=3))


def test_options_are_checked():
    for call in (
        lambda: se(reduction=0),
        lambda: se(reduction=True),
        lambda: se(8),
        lambda: eca(kernel=4),
        lambda: cbam(kernel=2),
        lambda: cbam(reduction="16"),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(OptionError) as caught:
        se(reductoin=4)
    assert caught.value.near == ("reduction",)
    assert caught.value.write == "se(reduction=4)"

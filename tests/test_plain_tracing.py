"""Results with every registered block are followed by the tracers of others as well as models without blocks."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

from torchgraft import pipe, wrap
from torchgraft.blocks import names
from torchgraft.blocks.registry import factory
from torchgraft.errors import GraftError, LayoutError, ShapeError, TargetError


class Maps(nn.Module):
    """A small net of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Tokens(nn.Module):
    """A small net of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.body(self.norm(tokens))
        return self.fc(tokens.mean(1))


def made(name: str) -> list[nn.Module]:
    """Wrap a part of both nets with each form of a block, where it fits."""
    found = []
    for options in (
        {},
        {"neutral": False},
        {"fused": 2, "parts": (1,)},
        {"extent": 2},
        {"fusion": "multiply"},
    ):
        try:
            block = factory(name)(**options) if name != "group_norm" else factory(name)(4, **options)
        except GraftError:
            continue
        for net, target in ((Maps, "body.0"), (Tokens, "body.0")):
            torch.manual_seed(0)
            try:
                result = pipe(net().eval(), wrap(target, block))
            except (LayoutError, ShapeError, TargetError):
                continue
            with torch.no_grad():
                for parameter in result.body.parameters():
                    parameter.add_(torch.randn_like(parameter) / 4)
            found.append(result)
    return found


REGISTERED = [name for name in names() if getattr(factory(name), "__module__", "").startswith("torchgraft.")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REGISTERED)
def test_a_block_is_followed(name):
    x, other = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 8, 8)
    results = made(name)
    for result in results:
        traced = fx.symbolic_trace(result)
        for given in (x, other):
            torch.testing.assert_close(traced(given), result(given))
        torch.testing.assert_close(create_feature_extractor(result, {"fc": "out"})(x)["out"], result(x))
        torch.testing.assert_close(fuse(result)(x), result(x), rtol=1e-4, atol=1e-4)
        prepared = prepare_fx(result, get_default_qconfig_mapping(), (x,))
        torch.testing.assert_close(prepared(x), result(x))
        assert convert_fx(prepared)(x).shape == (2, 3)
    assert results or name in ("gem", "dense")  # which change the shape, and are for replace


@pytest.mark.filterwarnings("ignore")
def test_a_pool_is_followed():
    from torchgraft import replace

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    result, x = pipe(model, replace("1", "gem")), torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(fx.symbolic_trace(result)(x), result(x))
    torch.testing.assert_close(prepare_fx(result, get_default_qconfig_mapping(), (x,))(x), result(x))

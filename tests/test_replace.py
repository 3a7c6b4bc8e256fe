"""Replace and remove: what fits, what is refused, what is undone."""

from __future__ import annotations

import pytest
import torch
from checks import run, same
from nets import ByData, ByMode
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import inception_v3, resnet18, resnet50, swin_t
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FrozenBatchNorm2d
from zoo import enliven

from torchgraft import at, inject, op, pipe, remove, replace, wrap
from torchgraft.blocks import group_norm, se
from torchgraft.errors import OptionError, ShapeError, TargetError
from torchgraft.select import Site


def test_by_class_everywhere(small, images):
    result = pipe(small, replace(nn.ReLU, nn.SiLU))
    assert not [m for m in result.modules() if isinstance(m, nn.ReLU)]
    assert result.stage[0].relu is not result.stage[1].relu
    assert list(result.state_dict()) == list(small.state_dict())


def test_a_function_of_the_old_module_and_carried_weights(small, images):
    norm = replace(nn.BatchNorm2d, lambda old: nn.GroupNorm(2, old.num_features), keep_weights=True)
    with torch.no_grad():
        small.stage[0].bn.weight.fill_(3)
    result = pipe(small, norm)
    assert result.stage[0].bn.weight.eq(3).all()
    wider = pipe(small, replace("stage.0.conv1", lambda old: nn.Sequential(old, nn.Identity())))
    assert wider(images).equal(small(images))
    with pytest.raises(OptionError, match="did not return a module"):
        pipe(small, replace("fc", lambda old: None))


def test_lost_stride_and_other_widths_are_refused():
    model = resnet18()
    with pytest.raises(ShapeError) as caught:
        pipe(model, replace("layer2.0.conv1", nn.Conv2d(64, 128, 3, padding=1)))
    assert "n 128 28 28" in caught.value.summary
    assert "n 128 56 56" in caught.value.summary
    assert "layer2.0.bn1" in caught.value.found
    with pytest.raises(ShapeError) as caught:
        pipe(model, replace("layer1.0.conv1", nn.Conv2d(64, 32, 3, padding=1)))
    assert "n 32 56 56" in caught.value.summary
    with pytest.raises(ShapeError, match="does not take"):
        pipe(model, replace("layer1.0.conv1", nn.Conv2d(32, 64, 3, padding=1)))


def test_a_new_shape_on_purpose_and_at_the_output(images):
    stem = replace("conv1", nn.Conv2d(3, 64, 3, padding=1, bias=False), keep_shape=False)
    cifar = pipe(resnet18(), stem, replace("maxpool", nn.Identity, keep_shape=False))
    assert cifar.eval()(images).shape == (2, 1000)
    head = pipe(resnet18(), replace("fc", lambda old: nn.Linear(old.in_features, 10)))
    assert head.eval()(images).shape == (2, 10)


def test_the_whole_is_checked_when_a_shape_is_changed_on_purpose():
    with pytest.raises(ShapeError) as caught:
        pipe(resnet18(), replace("layer1", nn.Conv2d(64, 32, 1), keep_shape=False))
    assert "does not run on (n 3 224 224)" in caught.value.summary
    assert "in layer2.0.conv1, a Conv2d" in caught.value.found
    both = pipe(
        resnet18(),
        replace("layer1", nn.Conv2d(64, 32, 1), keep_shape=False),
        replace("layer2", nn.Conv2d(32, 128, 1, stride=2), keep_shape=False),
    )
    assert both.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_one_operation_by_node_name(small, images):
    result = pipe(small, replace("relu", nn.SiLU))  # the functional one behind the stem
    assert "relu" in result._modules
    assert torch.nn.functional.relu not in [n.target for n in result.graph.nodes]
    second = pipe(small, replace("stage.0.relu_1", nn.SiLU))
    assert [type(m).__name__ for m in second.stage[0].children()][-2:] == ["ReLU", "SiLU"]


def test_a_module_in_a_forward_that_cannot_be_followed(images):
    model = ByData()
    result = pipe(model, replace("conv", nn.Conv2d(3, 4, 3, padding=1), keep_shape=False))
    assert isinstance(result, ByData)
    assert result(images).shape == (2, 5)


def test_remove_undoes_wrap_and_inject(small, images):
    for there, back in [
        (wrap("stage", se), remove("stage.se")),
        (wrap("stem", se), remove("stem_se")),
        (inject("stage.0.add", se), remove("stage.0.add_se")),
    ]:
        result = pipe(pipe(small, there), back)
        assert list(result.state_dict()) == list(small.state_dict())
        assert result(images).equal(small(images))


def test_remove_takes_the_moves_of_channels_with_it():
    model = swin_t()
    result = pipe(pipe(model, wrap("features.7", se)), remove("features.7.se"))
    assert not [n for n in result.features[7].graph.nodes if n.target is torch.movedim]


def test_remove_in_both_modes_and_by_node(small, images):
    model = ByMode()
    result = pipe(model, wrap("body", se), remove("body_se"))
    for mode in (True, False):
        assert same(run(result, images, mode=mode), run(model, images, mode=mode))
    result = pipe(small, remove("stage.0.relu"))
    assert "relu" not in result.stage[0]._modules
    result = pipe(small, remove("stage.0.relu_1"))
    assert [n.target for n in result.stage[0].graph.nodes if n.op == "call_module"].count("relu") == 1


def test_remove_refuses_what_changes_the_shape():
    with pytest.raises(ShapeError) as caught:
        pipe(resnet50(), remove("layer2"))
    assert "n 256 56 56" in caught.value.summary
    assert "layer3" in caught.value.found
    with pytest.raises(TargetError):
        pipe(resnet50(), remove("layer9"))


def test_operations_are_exchanged_wherever_they_run():
    model = inception_v3(init_weights=False, aux_logits=True).eval()
    result = pipe(model, replace(op(F.relu), nn.SiLU))
    assert not [
        n for m in result.modules() if hasattr(m, "graphs") for n in m.graph.nodes if n.target is F.relu
    ]
    assert type(result.Mixed_5b.branch1x1.relu) is nn.SiLU


def test_what_was_written_in_place_is_seen_by_later_users(images):
    class Written(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 1), act

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            self.act(y)
            return y + self.act(y)

    model = Written(nn.ReLU(inplace=True))
    plain = pipe(model, replace("act", nn.ReLU()))
    assert plain(images).equal(model(images))
    assert pipe(model, replace("act", nn.ReLU(inplace=True)))(images).equal(model(images))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.part = nn.Conv2d(3, 4, 1), Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.part(x)

    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x, inplace=True) * 2

    with pytest.raises(TargetError, match="goes on to use"):
        pipe(Around(), replace("part.relu", nn.SiLU))


def test_normalisations_carry_their_values():
    model = enliven(resnet18()).eval()
    x = torch.randn(1, 3, 64, 64)
    for new in (FrozenBatchNorm2d, nn.SyncBatchNorm, "frozen_batch_norm", "sync_batch_norm", "batch_norm"):
        result = pipe(model, replace(nn.BatchNorm2d, new)).eval()
        assert torch.allclose(result(x), model(x), rtol=1e-5, atol=1e-5), new
    for new in (group_norm(32), LayerNorm2d, "layer_norm2d"):
        result = pipe(model, replace(nn.BatchNorm2d, new))
        assert result.bn1.weight.equal(model.bn1.weight)
        assert result.layer4[1].bn2.bias.equal(model.layer4[1].bn2.bias)
    untouched = pipe(model, replace(nn.BatchNorm2d, lambda old: nn.BatchNorm2d(old.num_features)))
    assert untouched.bn1.weight.eq(1).all()


def test_a_function_gets_the_module_and_its_site():
    seen = []

    def same(old: nn.Module, site: Site) -> nn.Module:
        seen.append((site.path, tuple(site.output[1:]), site.layout))
        return nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)

    pipe(
        resnet18(),
        replace("layer1.0.conv1", same, keep_shape=False),
        replace("layer1.0.conv2", nn.Identity()),
    )
    assert seen == [("layer1.0.conv1", (64, 56, 56), "NCHW")]


def test_a_shared_module_on_different_values_asks_which_call_is_meant():
    model = resnet50()
    with pytest.raises(TargetError) as caught:
        pipe(model, replace("layer1.0.relu", "batch_norm"))
    assert "2 kinds of values" in caught.value.summary
    assert "layer1.0.relu_2: n 256 h w" in caught.value.found
    result = pipe(model, replace(at("layer1.0.relu").last, "batch_norm"))
    assert result.layer1[0].relu_2.num_features == 256
    assert type(result.layer1[0].relu) is nn.ReLU


def test_a_block_gets_the_width_and_stride_of_what_it_replaces(images):
    result = pipe(resnet18().eval(), replace("layer2.0.conv1", "depthwise_separable"))
    assert result(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    assert result.layer2[0].conv1(torch.randn(1, 64, 8, 8)).shape == (1, 128, 4, 4)


def test_blocks_are_turned_for_channels_last():
    swin = SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4]).eval()
    result = pipe(swin, replace("features.0.2", group_norm(4)))
    assert result(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    assert [n.target for n in result.features[0].graph.nodes if n.op == "call_function"] == [
        torch.movedim
    ] * 2


@pytest.mark.parametrize(
    ("forward", "target"),
    [
        (lambda s, x: (F.relu(x), x)[0] + x, "relu"),
        (lambda s, x: (F.relu(x, inplace=True), x)[1], "relu"),
        (lambda s, x: (x.relu_(), x)[1] * 2, "relu_"),
        (lambda s, x: (x + 0).relu() + x, "relu"),
    ],
)
def test_only_what_writes_in_place_changes_what_others_see(forward, target):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, self.conv(x))

    model, x = Net(), torch.randn(2, 3, 4, 4)
    same = pipe(model, replace(target, nn.ReLU()))
    assert same(x).equal(model(x))
    assert not [n for n in same.graph.nodes if n.target == target and n.op != "call_module"]


def test_normalisations_of_a_detector_need_no_run():
    detector = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    result = pipe(detector.eval(), replace(nn.BatchNorm2d, "frozen_batch_norm"))
    kinds = {type(m) for m in result.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {FrozenBatchNorm2d}
    assert len(result([torch.rand(3, 32, 32)])) == 1


def test_groups_fit_every_width():
    model = nn.Sequential(nn.Conv2d(3, 45, 1), nn.BatchNorm2d(45), nn.Conv2d(45, 8, 1), nn.BatchNorm2d(8))
    result = pipe(model, replace(nn.BatchNorm2d, "group_norm"), example=torch.zeros(1, 3, 4, 4))
    assert [m.num_groups for m in result.modules() if isinstance(m, nn.GroupNorm)] == [15, 8]
    with pytest.raises(OptionError) as caught:
        replace(nn.BatchNorm2d, nn.GroupNorm)
    assert caught.value.write == 'replace(nn.BatchNorm2d, "group_norm")'


class Idle(nn.Module):
    """Holds a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.idle = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x))


def test_a_layer_that_nothing_uses():
    model = nn.Sequential(Idle(), nn.ReLU())
    with pytest.raises(TargetError) as caught:
        pipe(model, replace(nn.BatchNorm2d, "group_norm"))
    assert caught.value.write == 'replace(at(nn.BatchNorm2d) - "0.idle", group_norm(32))'
    result = pipe(model, replace(at(nn.BatchNorm2d) - "0.idle", "group_norm"))
    assert isinstance(result[0].norm, nn.GroupNorm)
    result = pipe(model, replace(nn.BatchNorm2d, lambda old: nn.BatchNorm2d(old.num_features)))
    assert result[0].idle is not model[0].idle


def test_a_pool_that_cannot_be_taken_out():
    with pytest.raises(ShapeError) as caught:
        pipe(resnet18(), remove("maxpool"))
    assert caught.value.write == 'replace("maxpool", nn.Identity(), keep_shape=False)'
    pipe(resnet18(), eval(caught.value.write))(torch.rand(1, 3, 32, 32))

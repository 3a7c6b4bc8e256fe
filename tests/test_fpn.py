"""FPN: a pyramid on the maps of a model, as a backbone of torchvision's detectors."""

from __future__ import annotations

import pickle

import pytest
import torch
from nets import Small
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from torchgraft import features, fpn, freeze, pipe
from torchgraft.errors import NameClashError, OptionError
from torchgraft.recipe import parse

TARGETS = ("layer2", "layer3", "layer4")


def anchors(count: int, each: int = 1) -> AnchorGenerator:
    """Few anchors, of sizes that fit small images."""
    return AnchorGenerator(tuple((8 * 2**i,) for i in range(count)), ((0.5, 1.0, 2.0)[:each],) * count)


def images() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two small images, each with a bright box."""
    made, wanted = [], []
    for left in (8, 24):
        image = torch.zeros(3, 64, 64)
        image[:, 16:48, left : left + 32] = 1
        made.append(image)
        wanted.append({"boxes": torch.tensor([[left, 16.0, left + 32, 48]]), "labels": torch.tensor([1])})
    return made, wanted


def faster_rcnn(backbone: nn.Module) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=3, sampling_ratio=1)
    size = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_train": 32, "rpn_post_nms_top_n_test": 32}
    return FasterRCNN(backbone, 2, rpn_anchor_generator=anchors(4), box_roi_pool=pool, **size)


def retina_net(backbone: nn.Module) -> nn.Module:
    return RetinaNet(backbone, 2, anchor_generator=anchors(5), min_size=64, max_size=64)


def fcos(backbone: nn.Module) -> nn.Module:
    return FCOS(backbone, 2, anchor_generator=anchors(5), min_size=64, max_size=64)


@pytest.mark.parametrize(("detector", "extra"), [(faster_rcnn, "pool"), (retina_net, "p6p7"), (fcos, "p6p7")])
def test_detectors_take_it_and_train(detector, extra):
    model = detector(fpn(32, targets=TARGETS, extra=extra)(resnet18()))
    made, wanted = images()
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    first = model.backbone.conv1.weight.detach().clone()
    for _ in range(2):
        losses = model.train()(made, wanted)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimiser.step()
    reached = {key for key, p in model.backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"conv1.weight", "layer4.1.conv2.weight", "fpn.inner_blocks.0.0.weight"} <= reached
    assert not model.backbone.conv1.weight.equal(first)
    found = model.eval()(made)
    assert [set(one) for one in found] == [{"boxes", "scores", "labels"}] * 2


def test_it_is_torchvisions_pyramid_on_the_maps():
    model, x = resnet18().eval(), torch.randn(2, 3, 64, 64)
    result = fpn(32, strides=(4, 16))(model)
    assert type(result.fpn) is FeaturePyramidNetwork
    maps = features(strides=(4, 16))(model)(x)
    wanted = result.fpn({str(i): map_ for i, map_ in enumerate(maps.values())})
    got = result(x)
    assert list(got) == ["0", "1"]
    assert all(got[name].equal(wanted[name]) for name in got)
    assert result.out_channels == 32
    assert [block[0].in_channels for block in result.fpn.inner_blocks] == [64, 256]
    assert not [name for name in result._modules if name in ("layer4", "fc")]
    missing, _ = result.load_state_dict(model.state_dict(), strict=False)
    assert all(key.startswith("fpn.") for key in missing)


@pytest.mark.parametrize(("extra", "names"), [(None, "01"), ("pool", "01p"), ("p6p7", "01pp")])
def test_extra_maps(extra, names):
    result = fpn(8, stages=(-2, -1), extra=extra)(resnet18().train())
    maps = result(torch.randn(1, 3, 64, 64))
    assert "".join(name[0] for name in maps) == names
    assert all(map_.shape[1] == 8 for map_ in maps.values())
    assert all(part.training for part in result.modules())


def test_it_is_made_like_the_model():
    model = mobilenet_v3_small().double().eval()
    result = fpn(8)(model)
    assert {p.dtype for p in result.parameters()} == {torch.float64}
    assert not result.fpn.training
    assert [m.shape[-1] for m in result(torch.zeros(1, 3, 64, 64).double()).values()] == [8, 4, 2]
    with torch.device("meta"):
        bare = resnet18()
    assert {p.device.type for p in fpn(8)(bare).parameters()} == {"meta"}


def test_it_goes_together_with_other_edits():
    model = pipe(resnet18(), freeze("**"), fpn(8, targets=TARGETS))
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad} == {"fpn"}
    torch.export.export(model.eval(), (torch.zeros(1, 3, 64, 64),))
    loaded = pickle.loads(pickle.dumps(model))
    x = torch.randn(1, 3, 64, 64)
    assert loaded(x)["0"].equal(model(x)["0"])
    with pytest.raises(NameClashError) as caught:
        fpn(8, targets=("layer2",))(model)
    assert str(caught.value) == (
        "the root holds 'fpn' already\n"
        '  asked  fpn(8, targets=("layer2",))\n'
        "  found  FeaturePyramidNetwork\n"
        '  write  rename({"fpn": "old_fpn"}) before'
    )


@pytest.mark.parametrize(
    "step", [fpn(), fpn(64, (4, 8)), fpn(64, stages=(-1,), extra="pool"), fpn(targets=TARGETS, extra="p6p7")]
)
def test_it_is_a_value(step):
    assert parse(repr(step)) == step == pickle.loads(pickle.dumps(step))


def test_options_are_checked():
    with pytest.raises(OptionError, match="positive integer"):
        fpn(0)
    with pytest.raises(OptionError, match="one way"):
        fpn(8, (4, 8), targets=("layer1",))
    with pytest.raises(OptionError, match="one way"):
        fpn(8, stages=(1,), targets=("layer1",))
    with pytest.raises(OptionError) as caught:
        fpn(8, targets="layer1")
    assert caught.value.write == 'fpn(8, targets=("layer1",))'
    with pytest.raises(OptionError, match="targets are a tuple"):
        fpn(8, targets=())
    with pytest.raises(OptionError) as caught:
        fpn(8, extra="p6")
    assert caught.value.write == 'fpn(8, extra="p6p7")'
    with pytest.raises(OptionError) as caught:
        fpn(8)(Small())
    assert "this model has no maps of stride" in caught.value.summary

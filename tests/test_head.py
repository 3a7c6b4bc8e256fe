"""Heads: found by structure, exchanged in place."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision.models as tv
from checks import flat, run
from nets import ByMode, Residual
from torch import nn

from torchgraft import drop_head, features, inject, pipe, replace, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.errors import HeadError, OptionError, ShapeError
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import find_heads

PATHS = {
    "resnet18": ["fc"], "vgg11": ["classifier.6"], "squeezenet1_0": ["classifier.1"], "densenet121": ["classifier"],
    "googlenet": ["aux1.fc2", "aux2.fc2", "fc"], "inception_v3": ["AuxLogits.fc", "fc"], "vit_b_16": ["heads.head"],
    "swin_t": ["head"], "convnext_tiny": ["classifier.2"], "maxvit_t": ["classifier.5"],
    "efficientnet_b0": ["classifier.1"], "mobilenet_v3_large": ["classifier.3"], "mnasnet0_5": ["classifier.1"],
    "alexnet": ["classifier.6"], "shufflenet_v2_x0_5": ["fc"], "regnet_y_400mf": ["fc"],
}  # fmt: skip


def on_meta(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # its initialisation reads values
        return tv.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", PATHS)
def test_heads_are_found(name):
    assert [head.path for head in find_heads(Draft(on_meta(name)))] == PATHS[name]


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("resnet50", 2048), ("efficientnet_b0", 1280), ("mobilenet_v3_large", 1280),
     ("mobilenet_v3_small", 1024), ("vgg11", 4096), ("squeezenet1_1", 512)],
)  # fmt: skip
def test_a_dropped_head_leaves_pooled_features(name, width):
    result = pipe(on_meta(name), drop_head()).eval()
    assert result(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, width)
    again = pipe(result, swap_head(3)).eval()
    assert again(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 3)
    whole = pipe(on_meta(name), swap_head(3))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in whole.state_dict().items()
    }


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (512, 2, 2)), ("swin_t", (768, 2, 2))])
def test_the_map_before_the_pooling(name, shape):
    model = tv.get_model(name, weights=None).eval()
    new, x = pipe(model, drop_head(pooled=False)), torch.rand(1, 3, 64, 64)
    assert new(x).shape == (1, *shape)
    assert torch.equal(new(x), next(iter(pipe(model, features(stages=(-1,)))(x).values())))
    assert repr(drop_head(pooled=False)) == "drop_head(pooled=False)"
    with pytest.raises(OptionError):
        drop_head(pooled=0)


def test_counts():
    with torch.device("meta"):
        assert sum(p.numel() for p in pipe(tv.resnet18(), swap_head(10)).parameters()) == 11_181_642
        assert sum(p.numel() for p in pipe(tv.resnet50(), swap_head(100)).parameters()) == 23_712_932


def test_the_trunk_is_untouched_and_the_count_declared(small, images):
    result = pipe(small, swap_head(3))
    assert result.num_classes == 3
    assert small.num_classes == 5
    features, before = [], []
    result.fc.register_forward_pre_hook(lambda m, a: features.append(a[0]))
    small.fc.register_forward_pre_hook(lambda m, a: before.append(a[0]))
    assert run(result, images, mode=False).shape == (2, 3)
    small(images)
    assert features[0].equal(before[0])


def test_all_heads_of_all_modes():
    result = pipe(ByMode(), swap_head(7))
    assert [t.shape[-1] for t in flat(result.train()(torch.ones(2, 3, 8, 8)))] == [7, 7]


def test_kind_bias_dtype_format_and_mode_are_kept():
    model = tv.squeezenet1_1().bfloat16().to(memory_format=torch.channels_last).eval()
    head = pipe(model, swap_head(10)).classifier[1]
    assert isinstance(head, nn.Conv2d)
    assert head.weight.dtype == torch.bfloat16
    assert not head.training
    assert pipe(on_meta("maxvit_t"), swap_head(3)).classifier[5].bias is None


def test_dropout_before_the_head_keeps_the_keys(small, images):
    result = pipe(small, swap_head(3, dropout=0.5))
    assert list(result.state_dict()) == list(small.state_dict())
    assert [n.target for n in result.graph.nodes if n.op == "call_module"][-2:] == ["fc_dropout", "fc"]
    assert result.fc_dropout.p == 0.5
    assert "fc_dropout" not in pipe(small, swap_head(3))._modules


def test_a_block_as_head(small, images):
    result = pipe(
        small, swap_head(lambda channels: nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4)))
    )
    assert result(images).shape == (2, 4)
    with pytest.raises(ShapeError, match="8 features"):
        pipe(small, swap_head(nn.Linear(9, 4)))


def test_a_block_behind_the_trunk_does_not_hide_the_head(small, images):
    assert pipe(small, wrap("stage", se), inject("stage", se), swap_head(3))(images).shape == (2, 3)


@pytest.mark.parametrize("classes", [0, -1, True, 2.5, "10", None])
def test_bad_counts(classes):
    with pytest.raises(OptionError):
        swap_head(classes)


@pytest.mark.parametrize("dropout", [-0.1, 1, "0.5", None])
def test_bad_dropout(dropout):
    with pytest.raises(OptionError):
        swap_head(3, dropout=dropout)


def test_a_model_without_a_head_says_what_is_last():
    with pytest.raises(HeadError) as caught:
        pipe(nn.Sequential(nn.Linear(3, 3), Residual(3)), swap_head(3), example=torch.ones(1, 3, 4, 3))
    assert "1.bn (nn.BatchNorm2d)" in caught.value.found
    chain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert find_heads(Draft(chain))[0].path == "1"

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.a(x)
            return x + self.b(x)

    with pytest.raises(HeadError, match="follow each other"):
        pipe(Skip(), swap_head(3))


def test_a_head_whose_output_is_brought_to_the_size_of_the_input():
    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return nn.functional.interpolate(self.head(self.body(x)), size=x.shape[-2:])

    assert pipe(Segments(), swap_head(2))(torch.ones(1, 3, 8, 8)).shape == (1, 2, 8, 8)


def test_heads_of_different_kinds_are_listed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.classes, self.boxes = nn.Linear(3, 5), nn.Linear(3, 4)

        def forward(self, x):
            return {"classes": self.classes(x), "boxes": self.boxes(x)}

    with pytest.raises(HeadError) as caught:
        pipe(Two(), swap_head(3))
    assert caught.value.found == "boxes (4), classes (5)"
    assert pipe(Two(), replace("classes", lambda old: nn.Linear(3, 7)))(torch.ones(1, 3))[
        "classes"
    ].shape == (1, 7)


def test_a_forward_that_decides_on_values_is_told():
    from nets import ByData

    with pytest.raises(HeadError, match="decides on values") as caught:
        pipe(ByData(), swap_head(3))
    assert caught.value.write.startswith('replace("fc", ')


class Boxes(nn.Module):
    """A detector: what it gives depends on values, and every class has a score, a box and a mask."""

    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Conv2d(3, 8, 3), nn.ModuleDict()
        self.heads["box"] = nn.ModuleDict({"score": nn.Linear(8, 5), "sides": nn.Linear(8, 20)})
        self.heads["mask"] = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x):
        maps = self.body(x)
        places = maps.mean(1).nonzero()
        kept = maps[places[:, 0], :, places[:, 1], places[:, 2]]
        box = self.heads["box"]
        return box["score"](kept), box["sides"](kept), self.heads["mask"](kept[:, :, None, None])


def test_the_heads_of_a_detector():
    model = Boxes().eval()
    new = pipe(model, swap_head(3))
    assert [tuple(t.shape[1:]) for t in new(torch.rand(1, 3, 8, 8))] == [(3,), (12,), (3, 1, 1)]
    with pytest.raises(HeadError, match="detector"):
        pipe(model, drop_head())


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16"])
def test_the_scores_of_anchors(name):
    model = tv.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    want = tv.get_model(name, weights=None, weights_backbone=None, num_classes=7).state_dict()
    new = pipe(model, swap_head(7))
    assert {k: v.shape for k, v in new.state_dict().items()} == {k: v.shape for k, v in want.items()}
    assert len(new([torch.rand(3, 64, 64)])) == 1


class Dense(nn.Module):
    """A head that gives a map of classes as large as the image."""

    def __init__(self, head, act=None):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)
        self.head, self.act = head, act or nn.Identity()

    def forward(self, x):
        return self.act(self.head(self.up(self.down(x))))


def test_a_convolution_that_gives_maps_of_classes():
    old = nn.Conv2d(8, 5, 3, padding=2, dilation=2, bias=False)
    new = pipe(Dense(old, nn.Sigmoid()), swap_head(4)).head
    want = nn.Conv2d(8, 4, 3, padding=2, dilation=2, bias=False)
    assert (repr(new), new.weight.shape) == (repr(want), want.weight.shape)
    for other in (Dense(old, nn.ReLU()), nn.Sequential(nn.Conv2d(3, 8, 3, stride=2))):
        with pytest.raises(HeadError):  # a layer between others, and a map of features
            pipe(other, swap_head(4))


def test_a_projection_keeps_the_strides_of_its_weight():
    for net, strides in ((tv.squeezenet1_1(), (512, 1, 1, 1)), (nn.Conv2d(4, 5, 1), (4, 1, 1, 1))):
        layers = [m for m in pipe(nn.Sequential(net), swap_head(10)).modules() if isinstance(m, nn.Conv2d)]
        assert layers[-1].weight.stride() == strides


def test_two_heads_that_are_added():
    model = tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    new = pipe(model, swap_head(4))
    assert new(torch.rand(1, 3, 64, 64))["out"].shape == (1, 4, 64, 64)
    with pytest.raises(HeadError, match=r"40 and 128|128 and 40") as caught:
        pipe(model, drop_head())
    assert caught.value.write


class Returns(nn.Module):
    """A classifier that returns more than its logits."""

    def __init__(self, forward):
        super().__init__()
        self.body, self.neck, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 6), nn.Linear(6, 5)
        self.returns = forward

    def forward(self, x, labels=None):
        y = self.neck(self.body(x).mean((2, 3)))
        return self.returns(x, y, self.fc(y), labels)


@dataclasses.dataclass
class Fields:
    logits: object
    maps: object


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, y, z, n: (z, y),
        lambda x, y, z, n: {"features": [y], "logits": z, "image": x},
        lambda x, y, z, n: Fields(z, [y]),
        lambda x, y, z, n: (nn.functional.cross_entropy(z, n), z),
        lambda x, y, z, n: nn.functional.cross_entropy(z, n),
    ],
)
def test_what_is_returned_beside_the_logits(forward):
    example = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    assert [head.path for head in find_heads(Draft(Returns(forward), example))] == ["fc"]


def test_what_pools_beside_the_features_is_no_head():
    with pytest.raises(HeadError) as caught:
        pipe(Returns(lambda x, y, z, n: (y, z.tanh())), swap_head(3))
    assert caught.value.write == 'replace("fc", lambda old: nn.Linear(old.in_features, 10), keep_shape=False)'
    new = pipe(Returns(lambda x, y, z, n: Fields(z.relu(), [y])), eval(caught.value.write))
    assert new(torch.rand(1, 3, 8, 8)).logits.shape == (1, 10)


def test_the_configuration_of_the_model_alone_follows():
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**size, image_size=32, num_labels=5))
    new = pipe(model, swap_head(7))
    assert (new.config.num_labels, new.num_labels, len(new.config.id2label)) == (7, 7, 7)
    assert new.vit.config is new.config
    assert (model.config.num_labels, model.num_labels, len(model.config.id2label)) == (5, 5, 5)
    assert pipe(new, drop_head(), swap_head(3)).config.num_labels == 3


def test_one_class_is_a_head_too():
    assert pipe(tv.resnet18(), swap_head(1)).fc.out_features == 1


class LeNet(nn.Module):
    """A net for one size of image, which nobody would guess."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Sequential(nn.Linear(4 * 26 * 26, 10), nn.Dropout(0.1))

    def forward(self, x):
        return nn.functional.log_softmax(self.fc(torch.flatten(self.conv(x).relu(), 1)), 1)


@pytest.mark.parametrize("model", [LeNet(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))])
def test_a_head_at_the_end_of_a_row_needs_no_run(model):
    heads = [m for m in pipe(model, swap_head(3)).modules() if isinstance(m, nn.Linear)]
    assert [head.out_features for head in heads] == [3]


class Viewing(nn.Module):
    """A head behind which the number of classes stands, and one behind which it does not."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.num_classes, self.written = 5, written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(self.conv(x).mean((2, 3)))
        return y.view(-1, self.num_classes) if self.written else y.view(x.shape[0], -1)


def test_a_dropped_head_leaves_a_model_that_runs():
    x = torch.zeros(2, 3, 8, 8)
    assert drop_head()(Viewing(written=False))(x).shape == (2, 8)
    assert drop_head()(drop_head()(Viewing(written=False)))(x).shape == (2, 8)
    assert swap_head(8)(drop_head()(Viewing(written=False)))(x).shape == (2, 8)
    with pytest.raises(HeadError, match="number of classes is written"):
        drop_head()(Viewing(written=True))


class Behind(nn.Module):
    """Something stands behind the head that knows the number of classes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.fc, self.kind = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 6), kind
        self.prior = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> object:
        y = self.fc(self.conv(x).mean((2, 3)))
        match self.kind:
            case "slice":
                return y[:, :6]
            case "prior":
                return y + self.prior
            case "view":
                return y.view(-1, 2, 3)
            case "split":
                return y.split([2, 4], 1)
            case "chunk":
                return y.chunk(2, 1)[0]
        return (y * 2).log_softmax(1)


@pytest.mark.parametrize("kind", ["slice", "prior", "view", "split", "chunk"])
def test_what_is_behind_a_head_has_to_take_another_number(kind):
    for step in (swap_head(7), drop_head()):
        with pytest.raises(HeadError, match="number of classes is written"):
            step(Behind(kind))
    assert swap_head(5)(Behind("none"))(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("block", "words"), [("se", "the same steps"), ("adapter", "the same steps"), ("lora", "merge_lora")]
)
def test_what_stands_behind_a_head_has_to_come_after_its_exchange(block, words):
    model = tv.resnet18()
    with pytest.raises(HeadError) as info:
        pipe(model, wrap("fc", block), swap_head(3))
    assert info.value.write.startswith(words)
    assert pipe(model, swap_head(3), wrap("fc", block))(torch.zeros(2, 3, 32, 32)).shape == (2, 3)

"""The line that an error tells to write is run: it must not fail, and must not be the call again."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
import torchvision
from nets import ByData
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50

import torchgraft
from torchgraft import GraftError, blocks, pipe
from torchgraft.blocks import names as block_names
from torchgraft.recipe.reader import parse
from torchgraft.transform import Transform


class Spare(nn.Module):
    """A net with a layer that nothing calls, and one of which only the weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.spare = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.read, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(F.linear(self.bn(self.conv(x)).mean((2, 3)), self.read.weight))


class Lists(nn.Module):
    """A net whose blocks are lists, called item by item."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Conv2d(3, 3, 1), nn.ReLU()]) for _ in range(2))
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        for conv, act in self.blocks:
            x = act(conv(x))
        return self.fc(x.mean((2, 3)))


class Encoder(nn.Module):
    """A net whose stages stand two levels down, beside names that resemble theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"x": nn.Conv2d(3, 4, 1), "model": nn.ModuleDict({"s3": nn.ReLU()})})

    def forward(self, x):
        return self.encoder["model"]["s3"](self.encoder["x"](x))


class Picks(nn.Module):
    """A net that picks by values, as detectors do, so that it does not run without them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.bn(self.conv(x)).mean((2, 3))
        return self.head(y[torch.nonzero(y.sum(1) > -9)[:, 0]])


class Two(nn.Module):
    """A net of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


def edited() -> nn.Module:
    """Edit a model by a step that no file holds."""
    return pipe(RESNET, torchgraft.edit(lambda draft: draft.exchange("fc", nn.Linear(512, 3)), name="mine"))


RESNET, TEN = resnet18().eval(), resnet18(num_classes=10)
with torch.device("meta"):
    HOLLOW = pipe(resnet18(), torchgraft.swap_head(3))
PATH = torchgraft.save(edited(), Path(tempfile.mkdtemp()) / "edited.safetensors")
SAMPLE = {
    **{name: getattr(torchgraft, name) for name in torchgraft.__all__},
    **{name: getattr(blocks, name) for name in block_names() if hasattr(blocks, name)},
    "torch": torch, "nn": nn, "F": F, "torchvision": torchvision,
    "resnet18": resnet18, "resnet50": resnet50,
    "R": RESNET, "TEN": TEN, "state": RESNET.state_dict(), "x": torch.zeros(1, 3, 32, 32), "y": torch.zeros(1, 3, 32, 32),
    "step": parse, "drop": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5)),
    "spare": Spare().eval(), "lists": Lists().eval(), "encoder": Encoder().eval(), "two": Two().eval(), "picks": Picks().eval(),
    "hollow": HOLLOW, "path": str(PATH), "edited": edited,
    "nested": nn.Sequential(resnet18()).eval(), "by_data": ByData().eval(),
}  # fmt: skip
PLACES = {
    r"<a (ResNet|model)>": "R",
    r"<a Tensor>": "x",
    r"<\d+ tensors?>": "state",
    r"<lambda at [^>]*>": "(lambda old: nn.Identity())",
    r"<target>": '"layer4"',
    r"<(block|other)>": '"se"',
    r"<(classes|head)>": "10",
    r"name=<name>": 'name="name"',
    r"<features>": "512",
    r"<p>": "0.1",
    r"<(name|child)>": '"resnet18"',
    r"<a Identity>|<a module>": "nn.Identity()",
    r"(?<=pipe\()model": "MODEL",
    r"<arguments>": "3, 2",
    r"<(in_features|out_features)>": "512",
    r"<num_groups>, <num_channels>": "8, 512",
    r"<a function that builds the edited ResNet>|<what built the model that was saved>": "edited",
    r"<the weights of its base>": "state",
    r"(?<=materialize\()model": "hollow",
}
"""What a reader puts in the places that a line leaves open."""
CASES = """
pipe(R, inject(at(nn.ReLU).inside("layer1.0").calls, nn.Identity, name="tap"))
pipe(R, wrap("layer4", se, name="gate"), wrap("layer4", eca, name="gate"))
step('wrap(layer3, se)')
step('freeze(layer3)')
step('freeze(layer3.0)')
step('freeze(~layer3)')
step('freeze(at("fc") | layer3)')
step('wrap(at(layer3).last, se)')
step('features(layer2, layer3)')
step('freeze(at(nn.Conv2d).inside(layer1))')
step('wrap("layer3", sse)')
step('wrap("layer3", cbam_block)')
step('wrapp("layer3", se)')
step('replace(nn.Relu, nn.GELU)')
step('replace("relu", nn.gelu)')
pipe(R, replace(op("relu"), nn.SiLU))
pipe(R, replace(op(F.relu), nn.SiLU))
replace(nn.ReLU, "gelu")
replace(nn.ReLU, "leaky_relu")
wrap("fc", "lora(4)")
wrap("layer4", "se(reduction=8)")
wrap("layer4", "cbam_block")
wrap("layer4", "nope")
wrap("layer4", None)
wrap("layer4", nn.Conv2d)
wrap("layer4")
wrap({"layer4": "se"})
wrap("layer4", "layer3", se)
wrap("layer4", se, nam="gate")
wrap("layer4", se, example=x)
edit(lambda draft: None)
pipe(R, edit(lambda draft: draft.open("layer9"), name="x"))
pipe("resnet18", swap_head(10))
pipe(resnet18, swap_head(10))
pipe(nn.Linear, identity())
pipe(R, [wrap("layer4", se), swap_head(10)])
pipe(R, swap_head(10), seed="a")
pipe(R, freeze("backbone"))
pipe(R, freeze("encoder"), swap_head(10))
pipe(R, unfreeze("features"))
pipe(R, freeze("classifier"))
pipe(R, replace("head", nn.Linear(512, 3)))
pipe(R, freeze("layr*"))
pipe(R, freeze("*.weight"))
pipe(R, freeze("fc.weight"))
pipe(R, freeze(nn.Conv3d))
pipe(R, freeze(at("layer1") - "layer1"))
at("layr1").on(R)
freeze()
freeze("layer1", "layer2")
freeze(["layer1", "layer2"])
pipe(R, freeze("layer1/0"))
freeze("layer1..0")
freeze("layer1", norm_stats=None)
freeze("layer1", False)
swap_head("fc")
swap_head()
swap_head(0)
swap_head(classes=10)
swap_head(10, dropout=2)
replace(nn.BatchNorm2d, nn.GroupNorm)
replace("layer1.0.conv1", nn.Conv2d)
replace("relu", nn.Identity(), keepshape=True)
pipe(R, wrap(at(nn.Conv2d).nth(77), se))
pipe(R, wrap(at(nn.Conv2d).exactly(3), se))
pipe(R, wrap(at(nn.Conv2d).one(), se))
pipe(R, freeze(stage(9)))
pipe(R, replace("relu", lambda old: 3))
pipe(R, replace("relu", lambda old: old.foo))
pipe(R, freeze(stage(stride=7)))
pipe(R, wrap("fc", cbam))
pipe(R, wrap("fc", simam))
pipe(R, dilate(7))
pipe(R, features("layer9"))
pipe(R, features(strides=(3,)))
pipe(R, features("layer1.0.relu"))
features("layer1", nam=["a"])
rename("fc", "head")
rename(fc="head")
pipe(R, rename({"layer9": "x"}))
pipe(R, rename({"fc": "layer1"}))
pipe(R, rename({"layer1.0": "x"}))
pipe(drop, set_dropout())
pipe(drop, set_dropout(50))
pipe(R, set_dropout(0.1))
drop_path(1.5)
adapt_input(0)
partial_load(R, state, init_new_layers="kaiming_normal")
load_weights(state, by="name")
load_weights(state, min_coverage=2)
load_weights(state, strict=1)
transfer_weights(R, TEN, exclude=["fc", "classifier"])
partial_load(R, state, exclude=["fcc"])
pipe(R, load_weights(state, exclude=("fc", "classifier")))
get_model("resnet17")
get_model("resnet18", pretrained=False)
get_model("resnet18", classes=10)
get_model("resnet18", in_chans=4)
backbone("resnet18", in_chans=4)
backbone("resnet18", num_clases=3)
backbone("resnet18", num_classes=5, options={"num_classes": 7})
BackboneSpec("resnet18", in_chans=4)
BackboneSpec()
pipe(spare, replace(nn.BatchNorm2d, lambda old: nn.Identity(), keep_shape=True))
pipe(spare, wrap(nn.Linear, se))
pipe(lists, inject("blocks.1", se))
pipe(lists, replace("blocks.1", nn.Identity()))
pipe(encoder, wrap("encoder.s3", se))
pipe(nested, wrap("layer3", se))
pipe(two, replace("a", nn.Conv2d(3, 4, 1)))
pipe(picks, replace("head", nn.Linear(4, 3)), example=x)
replace(nn.BatchNorm2d, "batch_norn")
remove("relu", "layer1.0.relu")
drop_head(0)
fpn(0)
fpn(64, extra="p6")
pipe(R, rename({"layer1": "layer2"}))
inject("layer1", se, wher="before")
inject("layer1", se, "before")
pipe(R, inject("layer9", se))
adapt_input(4, source="avg")
features("layer1", layout="nchw")
pipe(R, features(stages=(9,)))
backbone("resnet18", pretrained=False)
feature_backbone("resnet18", stride=(8,))
load_weights(state, init="kaiming")
pipe(R, load_weights({"a": torch.ones(1)}))
compose([freeze("fc")])
at(3)
op(nn.ReLU)
node("")
stage("last")
step('wrap("layer4", nn.GroupNorm(8))')
step('replace("fc", nn.Linear(512, 3, device="cpu"), keep_shape=False)')
load(path)
materialize(hollow, {"conv1.weight": state["conv1.weight"]})
""".strip().splitlines()
MODELS = {name: value for name, value in SAMPLE.items() if isinstance(value, nn.Module)}


def error_of(source: str) -> GraftError:
    with pytest.raises(GraftError) as caught:
        eval(compile(source, "case", "eval"), dict(SAMPLE))
    return caught.value


def filled(write: str) -> str:
    for place, example in PLACES.items():
        write = re.sub(place, example, write)
    return write


@pytest.mark.parametrize("source", CASES)
def test_what_is_to_be_written_can_be_run(source: str) -> None:
    error = error_of(source)
    assert error.write, str(error)
    assert error.write != error.asked
    model = MODELS.get(re.split(r"[(,)]", source)[1], RESNET)
    for line in error.write.split(", or "):
        value = eval(filled(line), {**SAMPLE, "MODEL": model})
        if isinstance(value, Transform):
            pipe(model, value)
        elif isinstance(value, torchgraft.BackboneSpec):
            torchgraft.backbone(value)

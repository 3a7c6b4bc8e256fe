"""The promises on real models: a few here, all of them with ``-m slow`` (or ``make sweep``)."""

from __future__ import annotations

import pytest
from checks import CHECKS
from zoo import build, classifiers, example, families, late_stage

FEW = [
    "resnet18", "mobilenet_v3_small", "swin_t", "googlenet", "squeezenet1_1",
    "timm/deit_tiny_distilled_patch16_224", "timm/levit_128", "timm/convnext_atto", "timm/crossvit_tiny_240",
]  # fmt: skip
QUICK = [title for title in CHECKS if title not in ("compile", "export")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_promises(name):
    model = build(name)
    x, stage = example(model, batch=1 if "crossvit" in name else 2), late_stage(model)
    for title in QUICK:
        CHECKS[title](model.train(), x, stage)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*classifiers(), *(f"timm/{name}" for name in families())])
@pytest.mark.parametrize("title", CHECKS)
def test_every_promise_on_every_model(name, title):
    model = build(name)
    CHECKS[title](model.train(), example(model), late_stage(model))


def test_the_zoo_is_whole():
    assert len(classifiers()) == 80
    assert len(families()) == 98

"""Maps by stride against tables written by hand: some models here, all of them in the sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from torchgraft import feature_info, features, pipe

TABLE = {
    entry["name"]: entry
    for entry in json.loads((Path(__file__).parent / "data" / "timm_pyramids.json").read_text())
}
# Maps beside class tokens, lists of maps, cells, plain layers, patch embeddings, necks, heads that widen.
NAMES = ("convnext_zepto_rms", "dla34", "fastvit_t8", "legacy_xception", "pit_ti_224", "resnet14t", "selecsls42", "starnet_s150", "vgg11")  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name in TABLE])
def test_declared_maps_are_found(name):
    entry = TABLE[name]
    x = torch.empty(2, *entry["input_size"], device="meta")
    try:
        with torch.device("meta"):
            model = timm.create_model(name).eval()
    except (RuntimeError, NotImplementedError):  # its constructor reads values
        model = timm.create_model(name).eval().to("meta")
    backbone = pipe(model, features(strides=entry["reduction"]), example=x)
    given = backbone(x)
    assert [value.shape[1] for value in given.values()] == entry["channels"]
    told = feature_info(backbone, example=x)
    assert [info.channels for info in told] == entry["channels"]
    assert [info.stride for info in told] == entry["reduction"]
    assert {info.layout for info in told} == {"NCHW"}


def test_the_table_is_whole():
    assert len(TABLE) == 473
    assert sum(name in TABLE for name in NAMES) >= 6

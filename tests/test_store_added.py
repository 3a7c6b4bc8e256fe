"""Files of what steps added alone: small, filled into a model of the same steps, refused on another base."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from torchgraft import (
    freeze,
    load,
    load_report,
    load_weights,
    merge_lora,
    pipe,
    read_checkpoint,
    rename,
    replace,
    save,
    swap_head,
    wrap,
)
from torchgraft.blocks import lora
from torchgraft.errors import CheckpointError, OptionError, StoreError

STEPS = (freeze("**"), wrap("layer4.*.conv2", lora(2)), wrap("layer3", "se"), swap_head(1000))


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return resnet18().eval()


@pytest.fixture(scope="module")
def tuned(base):
    torch.manual_seed(1)
    model = pipe(base, *STEPS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 10)
    return model


@pytest.mark.parametrize("shards", ["5GB", "1MB"])
def test_what_steps_added_is_saved_and_filled(base, tuned, tmp_path, shards):
    path = save(tuned, tmp_path / "new.safetensors", only="new", max_shard_size=shards)
    added = {key for key in tuned.state_dict() if "lora" in key or ".se." in key or key.startswith("fc.")}
    assert read_checkpoint(path).tensors.keys() == added
    if shards == "5GB":
        assert load_file(path).keys() == added
        whole = save(tuned, tmp_path / "whole.safetensors")
        assert path.stat().st_size < whole.stat().st_size / 10
    x = torch.randn(2, 3, 64, 64)
    result = pipe(base, *STEPS, load_weights(path))
    assert result(x).equal(tuned(x))
    assert set(load_report(result).loaded) == added
    assert load_report(result).ratio == 1
    assert pipe(base, *STEPS, load_weights(read_checkpoint(path)))(x).equal(tuned(x))


def test_names_follow_later_steps(tuned, tmp_path):
    def keys(model: nn.Module) -> set[str]:
        return set(read_checkpoint(save(model, tmp_path / "n.safetensors", only="new")).tensors)

    renamed = pipe(tuned, rename({"layer4": "last"}))
    assert keys(renamed) == {key.replace("layer4", "last") for key in keys(tuned)}
    more = pipe(tuned, replace("layer1.0.bn1", lambda old: nn.BatchNorm2d(old.num_features)))
    assert keys(more) - keys(tuned) == {key for key in tuned.state_dict() if key.startswith("layer1.0.bn1.")}
    assert keys(copy.deepcopy(more)) == keys(more)
    assert keys(load(save(tuned, tmp_path / "whole.safetensors"), base=resnet18)) == keys(tuned)
    assert not any("lora" in key for key in keys(merge_lora()(tuned)))


def test_another_base_is_refused(base, tuned, tmp_path):
    path = save(tuned, tmp_path / "new.safetensors", only="new")
    other = resnet18().eval()
    nn.init.normal_(other.conv1.weight)
    moved = pipe(base)
    moved.bn1.running_mean.add_(1)
    for made in (other, pipe(base, wrap("layer1", "eca")), moved):
        with pytest.raises(CheckpointError, match="the rest of this one is not what it was there") as caught:
            pipe(made, *STEPS, load_weights(path))
        assert caught.value.found.startswith("other tensors or values in ")
        eval(caught.value.write)(pipe(made, *STEPS))


def test_a_model_without_the_steps_is_told_them(base, tuned, tmp_path):
    path = save(tuned, tmp_path / "new.safetensors", only="new")
    with pytest.raises(CheckpointError) as caught:
        pipe(base, load_weights(path))
    assert "8 have no place here" in caught.value.summary
    from torchgraft.blocks import se

    model = eval(caught.value.write, {**globals(), "se": se, "model": base})
    assert model.layer4[0].conv2_lora.up.equal(tuned.layer4[0].conv2_lora.up)
    with pytest.raises(StoreError, match="weights alone"):
        load(path)


def test_there_has_to_be_something_new(base, tmp_path):
    with pytest.raises(StoreError) as caught:
        save(pipe(base, freeze("layer1")), tmp_path / "new.safetensors", only="new")
    assert caught.value.asked.endswith('only="new")')
    with pytest.raises(OptionError) as caught:
        save(base, tmp_path / "new.safetensors", only="old")
    assert caught.value.write.endswith('only="new")')


def test_what_a_broken_file_tells_is_refused(base, tuned, tmp_path):
    path = save(tuned, tmp_path / "new.safetensors", only="new")
    held = read_checkpoint(path)
    for text in ("", "[]", '{"steps": [], "base": 3}', '{"steps": [3], "base": {}}', '{"base": {}}'):
        held.metadata["torchgraft.base"] = text
        with pytest.raises(CheckpointError):
            pipe(base, *STEPS, load_weights(held))

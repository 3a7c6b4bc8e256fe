"""Resize: tables and kernels as timm resamples them, models on another size, files of another size."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import (
    resample_abs_pos_embed,
    resample_abs_pos_embed_nhwc,
    resample_patch_embed,
    resize_rel_pos_bias_table,
)
from timm.layers.pos_embed_rel import gen_relative_position_index
from timm.models import beit, swin_transformer, vision_transformer
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18, swin_v2_t
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
)

from torchgraft import adapt_input, freeze, load, load_report, load_weights, pipe, resize, save, wrap
from torchgraft.edits.resampling import (
    relative_index,
    resample_bias,
    resample_patches,
    resample_positions,
)
from torchgraft.errors import CheckpointError, CoverageError, OptionError, ShapeError, TargetError
from torchgraft.recipe import parse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's interpolator


def filled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 10)
    return model.eval()


def timm_vit(**options: object) -> nn.Module:
    usual = {"img_size": 64, "depth": 1, "num_classes": 4, "embed_dim": 48, "num_heads": 2}
    return filled(timm.create_model("vit_tiny_patch16_224", **{**usual, **options}))


def timm_swin(window: int = 7, image: int = 56) -> nn.Module:
    small = {"depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16, "num_classes": 4}
    name = "swin_tiny_patch4_window7_224"
    return filled(timm.create_model(name, img_size=image, window_size=window, **small))


def timm_beit(image: int = 64) -> nn.Module:
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 4}
    return filled(timm.create_model("beit_base_patch16_224", img_size=image, **small))


def torch_vit(image: int = 64) -> nn.Module:
    return filled(VisionTransformer(image, 16, 1, 2, 32, 32, num_classes=4))


def torch_swin(window: int = 7) -> nn.Module:
    return filled(SwinTransformer([4, 4], 16, [2, 2], [2, 4], [window, window], num_classes=4))


# Tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 5), (6, 2))])
def test_tensors_are_resampled_bit_for_bit_as_timm_does(old, new, dtype):
    for prefix in (0, 1, 5):
        table = torch.randn(1, prefix + old[0] * old[1], 8).to(dtype)
        expected = resample_abs_pos_embed(table, new, old, prefix)
        assert resample_positions(table, old, new, prefix).equal(expected)
        assert resample_positions(table[0], old, new, prefix).equal(expected[0])
    maps = torch.randn(1, *old, 8).to(dtype)
    assert resample_positions(maps, old, new, 0).equal(resample_abs_pos_embed_nhwc(maps, list(new)))
    kernel = torch.randn(8, 3, *old).to(dtype)
    assert resample_patches(kernel, new).equal(resample_patch_embed(kernel, list(new)))
    for rows in (0, 3):
        was, now = ((2 * h - 1) * (2 * w - 1) + rows for h, w in (old, new))
        table = torch.randn(was, 4).to(dtype)
        assert resample_bias(table, old, new).equal(resize_rel_pos_bias_table(table, new, (now, 4), old))
        assert relative_index(new, rows // 3).equal(gen_relative_position_index(new, class_token=rows > 0))


# Models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "given"),
    [
        (timm_vit, {"image_size": 96}, {"img_size": (96, 96)}),
        (timm_vit, {"image_size": (96, 64), "patch_size": 8}, {"img_size": (96, 64), "patch_size": (8, 8)}),
        (timm_swin, {"image_size": 64, "window_size": 8}, {"img_size": (64, 64), "window_size": (8, 8)}),
        (timm_swin, {"window_size": 4}, {"window_size": (4, 4)}),
        (timm_beit, {"image_size": 96}, {"img_size": (96, 96)}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_model_of_timm_is_what_its_own_method_makes(make, options, given):
    model = make()
    expected, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    expected.set_input_size(**given)
    result = resize(**options)(model)
    assert all(result.state_dict()[key].equal(held) for key, held in expected.state_dict().items())
    images = torch.randn(1, 3, *given.get("img_size", (56, 56)))
    assert result(images).equal(expected(images))
    assert all(model.state_dict()[key].equal(held) for key, held in before.items())


def test_a_vision_transformer_of_torchvision():
    model = torch_vit()
    result = resize(image_size=96)(model)
    expected = resample_abs_pos_embed(model.encoder.pos_embedding, [6, 6], [4, 4], 1)
    assert result.encoder.pos_embedding.equal(expected)
    assert (result.image_size, result.seq_length, model.image_size) == (96, 37, 64)
    assert result(torch.randn(2, 3, 96, 96)).shape == (2, 4)
    finer = resize(patch_size=8)(model)
    assert finer.conv_proj.weight.equal(resample_patch_embed(model.conv_proj.weight, [8, 8]))
    assert (finer.conv_proj.stride, finer.patch_size, finer.seq_length) == ((8, 8), 8, 65)
    assert finer(torch.randn(2, 3, 64, 64)).shape == (2, 4)
    assert model(torch.randn(2, 3, 64, 64)).equal(model(torch.randn(2, 3, 64, 64))) is False
    with pytest.raises(ShapeError, match=r"resize\(image_size=96\)"):
        resize(image_size=(96, 64))(model)


def test_windows_of_torchvision_are_those_of_a_model_built_so():
    model, built = torch_swin(), torch_swin(8)
    result = resize(window_size=8)(model)
    table = "features.1.1.attn.relative_position_bias_table"
    expected = resize_rel_pos_bias_table(model.state_dict()[table], (8, 8), (225, 2), (7, 7))
    assert result.state_dict()[table].equal(expected)
    images = torch.randn(1, 3, 64, 64)
    built.load_state_dict(result.state_dict())
    assert result(images).equal(built(images))


@pytest.mark.parametrize(
    ("make", "config", "options"),
    [
        (ViTForImageClassification, ViTConfig, {"hidden_size": 32, "intermediate_size": 32}),
        (CLIPVisionModel, CLIPVisionConfig, {"hidden_size": 32, "intermediate_size": 32}),
        (SwinModel, SwinConfig, {"embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 7}),
    ],
    ids=["vit", "clip", "swin"],
)
def test_models_of_hugging_face(make, config, options):
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2} if "depths" not in options else {}
    patch = 4 if "depths" in options else 16
    model = filled(make(config(image_size=64, patch_size=patch, **layers, **options)))
    asked = {"window_size": 4} if "depths" in options else {"image_size": 96}
    result = resize(**asked)(model)
    built = make(config.from_dict(result.config.to_dict())).eval()
    built.load_state_dict(result.state_dict())
    images = torch.randn(1, 3, *2 * (asked.get("image_size", 64),))
    assert built(images)[0].equal(result(images)[0])
    assert model(torch.randn(1, 3, 64, 64))[0].shape
    name, size = next(iter(asked.items()))
    assert (getattr(result.config, name), getattr(model.config, name)) == (size, 64 if name[0] == "i" else 7)


@pytest.mark.parametrize(("make", "patches"), [(timm_vit, "patch_embed"), (torch_vit, "conv_proj")])
def test_it_is_a_step_like_the_others(make, patches, tmp_path):
    model, images = make().requires_grad_(False), torch.randn(1, 3, 96, 96)
    step = resize(image_size=96)
    plain = step(model)
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    one, other = pipe(model, step, wrap(patches, "se")), pipe(model, wrap(patches, "se"), step)
    assert one(images).equal(other(images))
    assert pipe(model, adapt_input(4), step, freeze(patches))(torch.randn(1, 4, 96, 96)).shape == (1, 4)
    assert load(save(plain, tmp_path / "m.safetensors"), base=model)(images).equal(plain(images))
    assert resize(image_size=64)(model)(images[..., :64, :64]).equal(model(images[..., :64, :64]))
    assert {key: held.shape for key, held in step(model.to("meta")).state_dict().items()} == {
        key: held.shape for key, held in plain.state_dict().items()
    }
    assert parse(repr(step)) == step
    assert repr(resize(image_size=[96, 64])) == "resize(image_size=(96, 64))"


def test_tables_that_are_tied_stay_tied():
    model = torch_swin()
    blocks = [model.features[1][0].attn, model.features[1][1].attn]
    blocks[1].relative_position_bias_table = blocks[0].relative_position_bias_table
    tied = [block.attn.relative_position_bias_table for block in resize(window_size=4)(model).features[1]]
    assert tied[0] is tied[1]
    assert [block.attn.shift_size for block in resize(window_size=4)(model).features[1]] == [[0, 0], [2, 2]]


class Places(nn.Module):
    """Patches with a table that no known scheme resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cut(x).flatten(2) * self.places


def test_what_is_not_known_to_resize_is_refused():
    with pytest.raises(TargetError, match=r"nothing in .*ResNet is known to be made for one image_size"):
        resize(image_size=96)(resnet18())
    with pytest.raises(TargetError, match="is known to be made for one window_size"):
        resize(window_size=4)(swin_v2_t())
    with pytest.raises(TargetError, match=r"write  resize\(image_size=96\)"):
        resize(image_size=96, window_size=7)(timm_vit())
    with pytest.raises(TargetError, match="should be greater than 0"):
        resize(image_size=15)(timm_vit())
    wrong = Places()
    wrong.image_size = 32
    with pytest.raises(ShapeError, match="how to resize it is not known"):
        resize(image_size=64)(wrong)
    for options in ({}, {"image_size": 0}, {"patch_size": (1, 2, 3)}, {"window_size": True}):
        with pytest.raises(OptionError, match=r"write  resize\(\w+_size=\d+\)"):
            resize(**options)


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "timms"),
    [
        (timm_vit, lambda: timm_vit(img_size=96), vision_transformer.checkpoint_filter_fn),
        (
            timm_vit,
            lambda: timm_vit(img_size=(96, 48), patch_size=8),
            vision_transformer.checkpoint_filter_fn,
        ),
        (timm_swin, lambda: timm_swin(8, 64), swin_transformer.checkpoint_filter_fn),
        (timm_beit, lambda: timm_beit(96), beit.checkpoint_filter_fn),
    ],
    ids=["vit", "patches", "swin", "beit"],
)
def test_a_file_of_another_size_is_loaded_as_timm_does(old, new, timms):
    old, new = old(), new()
    state = old.state_dict()
    result = pipe(new, load_weights(dict(state), resize=True, strict=True))
    expected = timms(dict(state), copy.deepcopy(new))
    assert all(result.state_dict()[key].equal(held) for key, held in expected.items())
    assert "resized" in dict(load_report(result).evidence)
    assert all(old.state_dict()[key].equal(held) for key, held in state.items())
    plain = load_report(pipe(new, load_weights(state)))
    assert len(plain.mismatched) == dict(load_report(result).evidence)["resized"]


def test_tables_that_a_model_computes_stay_its_own():
    old, new = torch_swin(), torch_swin(8)
    result = pipe(new, load_weights(old.state_dict(), resize=True, strict=False))
    report = load_report(result)
    assert report.ratio == 1
    assert {key.rpartition(".")[2] for key in report.excluded} == {"relative_position_index"}
    assert result(torch.ones(1, 3, 64, 64)).equal(resize(window_size=8)(old)(torch.ones(1, 3, 64, 64)))
    with pytest.raises(CoverageError, match="differ in shape"):
        pipe(new, load_weights(old.state_dict()))


def test_a_table_of_an_unknown_layout_is_refused():
    state = dict(torch_vit().state_dict())
    state["encoder.pos_embedding"] = torch.ones(1, 13, 32)
    with pytest.raises(CheckpointError, match="how it is laid out is not known") as caught:
        pipe(torch_vit(96), load_weights(state, resize=True))
    assert 'exclude=("encoder.pos_embedding",)' in str(caught.value)
    heads = {**torch_vit().state_dict(), "heads.head.weight": torch.ones(9, 32)}
    assert len(load_report(pipe(torch_vit(), load_weights(heads, resize=True))).mismatched) == 1

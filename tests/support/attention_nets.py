"""Networks with attention, written by several hands."""

from __future__ import annotations

from group import CLASSES, Group, hugging, plain, timm
from torchvision import models

BLOCKS = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
VIT = {**BLOCKS, "image_size": 64, "intermediate_size": 128, "layer_norm_eps": 1e-6}
VIT_TIMM = {"img_size": 64, "depth": 3, "num_heads": 4, "embed_dim": 64}
SWIN = {"embed_dim": 24, "depths": [2, 2, 2, 1], "num_heads": [2, 2, 4, 4]}
TREE = {"embed_dim": 24, "depths": (2, 2, 2, 1), "num_heads": (2, 2, 4, 4), "img_size": 128}
DINOV3 = {**BLOCKS, "image_size": 64, "intermediate_size": 128, "num_register_tokens": 4}
PVT = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 40, 64], "num_attention_heads": [1, 2, 5, 8]}


def _vit():
    return models.vision_transformer.VisionTransformer(
        image_size=64,
        patch_size=16,
        num_layers=3,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=CLASSES,
    )


def _swin(version: int):
    kinds = models.swin_transformer
    options = {"block": kinds.SwinTransformerBlockV2, "downsample_layer": kinds.PatchMergingV2}
    return kinds.SwinTransformer(
        patch_size=[4, 4],
        window_size=[4, 4],
        num_classes=CLASSES,
        **SWIN,
        **(options if version == 2 else {}),
    )


def _focalnet():
    from timm.models.focalnet import FocalNet

    return FocalNet(embed_dim=24, depths=(1, 2, 2, 1), num_classes=CLASSES)


ATTENTION_NETS = {
    "vit": Group(
        "vit",
        64,
        {
            "torchvision": plain(_vit),
            "timm": timm("vit_tiny_patch16_224", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("ViTForImageClassification", **VIT),
        },
    ),
    "vit_msn": Group(
        "vit_msn",
        64,
        {
            "timm": timm("vit_tiny_patch16_224", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("ViTMSNForImageClassification", **VIT),
        },
    ),
    "ijepa": Group(
        "ijepa",
        64,
        {
            "timm": timm("vit_tiny_patch16_224", mlp_ratio=2, class_token=False, global_pool="avg", fc_norm=False, **VIT_TIMM),
            "hugging": hugging("IJepaForImageClassification", **VIT),
        },
    ),
    "deit": Group(
        "deit",
        64,
        {
            "timm": timm("deit_tiny_distilled_patch16_224", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("DeiTForImageClassificationWithTeacher", **VIT),
        },
    ),
    "beit": Group(
        "beit",
        64,
        {
            "timm": timm("beit_base_patch16_224", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("BeitForImageClassification", use_relative_position_bias=True, **VIT),
            "data2vec": hugging("Data2VecVisionForImageClassification", use_relative_position_bias=True, **VIT),
        },
    ),
    "swin": Group(
        "swin",
        128,
        {
            "torchvision": plain(lambda: _swin(1)),
            "timm": timm("swin_tiny_patch4_window7_224", window_size=4, **TREE),
            "hugging": hugging("SwinForImageClassification", image_size=128, window_size=4, **SWIN),
        },
    ),
    "swin_v2": Group(
        "swin_v2",
        128,
        {
            "torchvision": plain(lambda: _swin(2)),
            "timm": timm("swinv2_tiny_window8_256", window_size=4, **TREE),
            "hugging": hugging("Swinv2ForImageClassification", image_size=128, window_size=4, **SWIN),
        },
    ),
    "levit": Group(
        "levit",
        128,
        {
            "timm": timm("levit_128s", img_size=128),
            "hugging": hugging(
                "LevitForImageClassificationWithTeacher",
                image_size=128, hidden_sizes=[128, 256, 384], num_attention_heads=[4, 6, 8], depths=[2, 3, 4],
            ),
        },
    ),
    "levit_conv": Group(
        "levit",
        128,
        {
            "timm": timm("levit_conv_128s", img_size=128),
            "hugging": hugging(
                "LevitForImageClassificationWithTeacher",
                image_size=128, hidden_sizes=[128, 256, 384], num_attention_heads=[4, 6, 8], depths=[2, 3, 4],
            ),
        },
    ),
    "pvt_v2": Group(
        "pvt_v2",
        64,
        {
            "timm": timm("pvt_v2_b0", depths=(1, 1, 2, 1), embed_dims=(16, 32, 40, 64), mlp_ratios=(4, 4, 4, 4)),
            "hugging": hugging("PvtV2ForImageClassification", image_size=64, mlp_ratios=[4, 4, 4, 4], **PVT),
            "segformer": hugging("SegformerForImageClassification", **PVT),
        },
    ),
    "pvt_v2_linear": Group(
        "pvt_v2",
        64,
        {
            "timm": timm("pvt_v2_b2_li", depths=(1, 1, 2, 1), embed_dims=(16, 32, 40, 64), num_heads=(1, 2, 5, 8)),
            "hugging": hugging("PvtV2ForImageClassification", image_size=64, linear_attention=True, **PVT),
        },
    ),
    "focalnet": Group(
        "focalnet",
        64,
        {
            "timm": plain(_focalnet),
            "hugging": hugging(
                "FocalNetForImageClassification",
                image_size=64, embed_dim=24, hidden_sizes=[24, 48, 96, 192], depths=[1, 2, 2, 1],
            ),
        },
    ),
    "dinov2": Group(
        "dinov2",
        56,
        {
            "timm": timm("vit_small_patch14_dinov2", num_classes=0, mlp_ratio=4, **{**VIT_TIMM, "img_size": 56}),
            "hugging": hugging("Dinov2Model", image_size=56, mlp_ratio=4, **BLOCKS),
        },
    ),
    "dinov2_swiglu": Group(
        "dinov2",
        56,
        {
            "timm": timm("vit_giant_patch14_dinov2", num_classes=0, **{**VIT_TIMM, "img_size": 56, "mlp_ratio": 5.5}),
            "hugging": hugging("Dinov2Model", image_size=56, mlp_ratio=4, use_swiglu_ffn=True, **BLOCKS),
        },
    ),
    "dinov3": Group(
        "dinov3",
        64,
        {
            "timm": timm("vit_small_patch16_dinov3", num_classes=0, global_pool="token", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("DINOv3ViTModel", query_bias=False, value_bias=False, **DINOV3),
        },
    ),
    "dinov3_bias": Group(
        "dinov3",
        64,
        {
            "timm": timm("vit_small_patch16_dinov3_qkvb", num_classes=0, global_pool="token", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("DINOv3ViTModel", **DINOV3),
        },
    ),
    "hiera": Group(
        "hiera",
        64,
        {
            "timm": timm("hiera_tiny_224", img_size=(64, 64), embed_dim=24, stages=(1, 2, 2, 1)),
            "hugging": hugging("HieraForImageClassification", image_size=[64, 64], embed_dim=24, depths=[1, 2, 2, 1]),
        },
    ),
    "mobilevit": Group(
        "mobilevit",
        64,
        {
            "timm": timm("mobilevit_xxs"),
            "hugging": hugging(
                "MobileViTForImageClassification",
                image_size=64, hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0,
            ),
        },
    ),
    "mobilevit_v2": Group(
        "mobilevit_v2",
        64,
        {
            "timm": timm("mobilevitv2_050"),
            "hugging": hugging("MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.5),
        },
    ),
    "clip": Group(
        "clip",
        64,
        {
            "timm": timm("vit_base_patch16_clip_quickgelu_224", num_classes=0, mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("CLIPVisionModel", **{**VIT, "patch_size": 16, "layer_norm_eps": 1e-5}),
        },
    ),
    "siglip": Group(
        "siglip",
        64,
        {
            "timm": timm("vit_base_patch16_siglip_224", num_classes=0, mlp_ratio=2, act_layer="gelu_tanh", **VIT_TIMM),
            "hugging": hugging("SiglipVisionModel", **VIT),
        },
    ),
    "siglip_gap": Group(
        "siglip",
        64,
        {
            "timm": timm("vit_base_patch16_siglip_gap_224", num_classes=CLASSES, mlp_ratio=2, act_layer="gelu_tanh", fc_norm=False, **VIT_TIMM),
            "hugging": hugging("SiglipForImageClassification", vision_config={**VIT, "vision_use_head": False}),
        },
    ),
    "aimv2": Group(
        "aimv2",
        56,
        {
            "timm": timm("aimv2_large_patch14_224", num_classes=0, global_pool="", **{**VIT_TIMM, "img_size": 56}),
            "hugging": hugging("Aimv2VisionModel", image_size=56, patch_size=14, intermediate_size=176, use_head=False, **BLOCKS),
        },
    ),
    "internvl": Group(
        "internvl",
        64,
        {
            "timm": timm("vit_tiny_patch16_224", num_classes=0, global_pool="", mlp_ratio=2, init_values=0.1, **VIT_TIMM),
            "hugging": hugging(
                "InternVLVisionModel", **{**VIT, "image_size": [64, 64], "patch_size": [16, 16], "attention_bias": True, "use_mean_pooling": False}
            ),
        },
    ),
    "sam": Group(
        "sam",
        64,
        {
            "timm": timm("samvit_base_patch16", num_classes=0, global_pool="", img_size=64, depth=3, num_heads=4, embed_dim=64, mlp_ratio=2, window_size=3, global_attn_indexes=(1,)),
            "hugging": hugging(
                "SamVisionModel",
                **{**VIT, "mlp_dim": 128, "window_size": 3, "global_attn_indexes": [1], "output_channels": 256},
            ),
        },
    ),
    "flava": Group(
        "flava",
        64,
        {
            "timm": timm("vit_tiny_patch16_224", num_classes=0, global_pool="", mlp_ratio=2, **VIT_TIMM),
            "hugging": hugging("FlavaImageModel", False, **{**VIT, "mask_token": False}),
        },
    ),
}  # fmt: skip

"""Convolutional networks written by several hands."""

from __future__ import annotations

from by_name import in_timm
from group import CLASSES, Build, Group, hugging, plain, timm, torchvision
from torch import nn
from torchvision import models

CONVNEXT = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 2, 1], "layer_norm_eps": 1e-6}
CONVNEXT_TIMM = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}


def _convnext() -> Build:
    setting = models.convnext.CNBlockConfig
    widths = [setting(16, 24, 1), setting(24, 32, 2), setting(32, 48, 2), setting(48, None, 1)]
    return plain(lambda: models.convnext.ConvNeXt(widths, num_classes=CLASSES))


def _vgg(norm: bool) -> Group:
    """Build a narrow VGG; torchvision asks for no width of its head, which is a part to exchange."""
    plan = [16, "M", 32, "M", 48, 48, "M", 64, 64, "M", 64, 64, "M"]

    def of_torchvision() -> nn.Module:
        net = models.VGG(models.vgg.make_layers(plan, batch_norm=norm), CLASSES, init_weights=False)
        rest = [nn.ReLU(), nn.Linear(128, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)]
        net.classifier = nn.Sequential(nn.Linear(64 * 49, 128), *rest)
        return net

    def of_timm() -> nn.Module:
        from timm.models.vgg import VGG

        return VGG(plan, CLASSES, mlp_ratio=1 / 32, norm_layer=nn.BatchNorm2d if norm else None)

    return Group(
        "vgg_bn" if norm else "vgg", 64, {"torchvision": plain(of_torchvision), "timm": plain(of_timm)}
    )


def _wide_resnet() -> Group:
    """Build a shallow ResNet with wide bottlenecks."""

    def of_torchvision() -> nn.Module:
        return models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], CLASSES, width_per_group=128)

    def of_timm() -> nn.Module:
        from timm.models import resnet

        return resnet.ResNet(resnet.Bottleneck, (1, 2, 1, 1), CLASSES, base_width=128)

    return Group("wide_resnet", 64, {"torchvision": plain(of_torchvision), "timm": plain(of_timm)})


def _same(family: str, name: str, **options: object) -> Group:
    """Pair a model of torchvision with the one of timm of that name."""
    return Group(family, 64, {"torchvision": torchvision(name), "timm": timm(in_timm(name), **options)})


CONVNETS = {
    "resnet18": Group(
        "resnet",
        64,
        {
            "torchvision": torchvision("resnet18"),
            "timm": timm("resnet18"),
            "hugging": hugging(
                "ResNetForImageClassification",
                layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512],
            ),
        },
    ),
    "resnet50": Group(
        "resnet",
        64,
        {
            "torchvision": torchvision("resnet50"),
            "timm": timm("resnet50"),
            "hugging": hugging("ResNetForImageClassification"),
        },
    ),
    "resnet34": _same("resnet", "resnet34"),
    "resnext50": _same("resnext", "resnext50_32x4d"),
    "wide_resnet": _wide_resnet(),
    "resnet50d": Group(
        "resnet_d",
        64,
        {
            "timm": timm("resnet26d", features_only=True, out_indices=[4]),
            "hugging": hugging("RTDetrResNetBackbone", depths=[2, 2, 2, 2]),
        },
    ),
    "densenet121": _same("densenet", "densenet121"),
    "densenet169": _same("densenet", "densenet169"),
    "densenet201": _same("densenet", "densenet201"),
    "vgg11": _vgg(norm=False),
    "vgg11_bn": _vgg(norm=True),
    "efficientnet_b0": Group(
        "efficientnet",
        64,
        {
            "torchvision": torchvision("efficientnet_b0"),
            "timm": timm("efficientnet_b0"),
        },
    ),
    "efficientnet_b0_same": Group(
        "efficientnet",
        64,
        {
            "timm": timm("tf_efficientnet_b0"),
            "hugging": hugging(
                "EfficientNetForImageClassification",
                width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, dropout_rate=0.2, depthwise_padding=[],
            ),
        },
    ),
    "efficientnet_b1": _same("efficientnet", "efficientnet_b1"),
    "efficientnet_b2": _same("efficientnet", "efficientnet_b2"),
    "efficientnet_v2_s": _same("efficientnet_v2", "efficientnet_v2_s", bn_eps=1e-3),
    "mobilenet_v1": Group(
        "mobilenet_v1",
        64,
        {
            "timm": timm("mobilenetv1_100", bn_eps=1e-3),
            "hugging": hugging("MobileNetV1ForImageClassification", tf_padding=False),
        },
    ),
    "mobilenet_v2": Group(
        "mobilenet_v2",
        64,
        {
            "torchvision": torchvision("mobilenet_v2"),
            "timm": timm("mobilenetv2_100"),
            "hugging": hugging("MobileNetV2ForImageClassification", tf_padding=False, layer_norm_eps=1e-5),
        },
    ),
    "mobilenet_v3_small": _same("mobilenet_v3", "mobilenet_v3_small", bn_eps=1e-3),
    "mobilenet_v3_large": _same("mobilenet_v3", "mobilenet_v3_large", bn_eps=1e-3),
    "mnasnet1_0": _same("mnasnet", "mnasnet1_0"),
    "mnasnet0_75": _same("mnasnet", "mnasnet0_75"),
    "mnasnet0_5": _same("mnasnet", "mnasnet0_5"),
    "regnet_x": Group(
        "regnet_x",
        64,
        {
            "torchvision": torchvision("regnet_x_400mf"),
            "timm": timm("regnetx_004_tv"),
            "hugging": hugging(
                "RegNetForImageClassification",
                layer_type="x", depths=[1, 2, 7, 12], hidden_sizes=[32, 64, 160, 400], groups_width=16,
            ),
        },
    ),
    "regnet_y": Group(
        "regnet_y",
        64,
        {
            "torchvision": torchvision("regnet_y_400mf"),
            "timm": timm("regnety_004"),
            "hugging": hugging(
                "RegNetForImageClassification",
                depths=[1, 3, 6, 6], hidden_sizes=[48, 104, 208, 440], groups_width=8,
            ),
        },
    ),
    "regnet_x_800mf": _same("regnet_x", "regnet_x_800mf"),
    "regnet_y_800mf": _same("regnet_y", "regnet_y_800mf"),
    "regnet_x_1_6gf": _same("regnet_x", "regnet_x_1_6gf"),
    "regnet_y_1_6gf": _same("regnet_y", "regnet_y_1_6gf"),
    "inception_v3": Group(
        "inception_v3",
        96,
        {
            "torchvision": torchvision("inception_v3", aux_logits=False, init_weights=False),
            "timm": timm("inception_v3"),
        },
    ),
    "convnext": Group(
        "convnext",
        64,
        {
            "torchvision": _convnext(),
            "timm": timm("convnext_tiny", **CONVNEXT_TIMM),
            "hugging": hugging("ConvNextForImageClassification", **CONVNEXT),
        },
    ),
    "convnextv2": Group(
        "convnextv2",
        64,
        {
            "timm": timm("convnextv2_atto", **CONVNEXT_TIMM),
            "hugging": hugging("ConvNextV2ForImageClassification", **CONVNEXT),
        },
    ),
    "convnext_dinov3": Group(
        "convnext_dinov3",
        64,
        {
            "timm": timm("convnext_tiny", num_classes=0, **CONVNEXT_TIMM),
            "hugging": hugging("DINOv3ConvNextModel", **CONVNEXT),
        },
    ),
    "bit": Group(
        "bit",
        64,
        {
            "timm": timm("resnetv2_50x1_bit"),
            "hugging": hugging("BitForImageClassification"),
        },
    ),
    "poolformer": Group(
        "poolformer",
        64,
        {
            "timm": timm("poolformer_s12", features_only=True, out_indices=[3]),
            "hugging": hugging("PoolFormerModel"),
        },
    ),
    "hgnet_v2": Group(
        "hgnet_v2",
        64,
        {
            "timm": timm("hgnetv2_b0", features_only=True, out_indices=[3]),
            "hugging": hugging(
                "HGNetV2Backbone",
                stem_channels=[3, 16, 16], stage_in_channels=[16, 64, 256, 512], stage_mid_channels=[16, 32, 64, 128],
                stage_out_channels=[64, 256, 512, 1024], stage_num_blocks=[1, 1, 2, 1], stage_numb_of_layers=[3, 3, 3, 3],
                use_learnable_affine_block=True, hidden_sizes=[64, 256, 512, 1024],
            ),
        },
    ),
    "lcnet": Group(
        "lcnet",
        64,
        {
            "timm": timm("lcnet_100", head_bias=False),
            "hugging": hugging("PPLCNetForImageClassification", hidden_dropout_prob=0.0),
        },
    ),
}  # fmt: skip

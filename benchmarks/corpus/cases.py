"""The models of the corpus by name: how each is built small, and how it is called."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from randomised import draw, images
from torch import nn
from zoo import enliven, families

_DATA = ("pixel_values", "pixel_values_videos", "input_ids", "inputs", "input_points", "task_inputs")
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Size = tuple[int, int, int]
"""Batch, height, width."""
CLASSES = 12
SIDES = (64, 96, 128, 160, 192, 224, 256, 300)
ENCODERS = (
    "resnet18", "vgg11_bn", "densenet121", "efficientnet-b0", "mobilenet_v2",
    "mit_b0", "mobileone_s0", "timm-skresnet18", "xception", "se_resnet50",
)  # fmt: skip
VITS = ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224", "tu-convnext_atto", "resnet18")
TASKS = (
    "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION",
    "INSTANCE_SEGMENTATION", "OBJECT_DETECTION", "ZERO_SHOT_OBJECT_DETECTION", "DEPTH_ESTIMATION",
    "POSE_ESTIMATION", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING", "IMAGE_TO_IMAGE", "IMAGE_MATTING",
    "MASK_GENERATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "MASKED_IMAGE_MODELING", "BACKBONE", "IMAGE",
)  # fmt: skip


@dataclass
class Case:
    """How a model is built, the most economical way first, and what it is called with.

    ``given`` makes values for the parameters of the forward by name; those that it must have come first.
    """

    makers: list[Callable[[], nn.Module]]
    given: Callable[[nn.Module, Size], dict[str, object]]
    has_classes: bool = True
    sides: tuple[int, ...] = SIDES


def names() -> list[str]:
    """Name every model of the corpus that is run with values."""
    import transformers  # noqa: F401
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    return [
        *(f"timm/{name}" for name in families()),
        *(f"torchvision/{name}" for name in _torchvision_families()),
        *(f"transformers/{name}" for name in _types()),
        *(f"smp/{a}/{e}" for a in MODEL_ARCHITECTURES_MAPPING for e in (VITS if a == "dpt" else ENCODERS)),
        *(f"vit_pytorch/{name}" for name in _vit_files()),
    ]


def case(name: str) -> Case:
    """Describe a model of the corpus."""
    source, _, rest = name.partition("/")
    return globals()[f"_{source}"](rest)


def made(maker: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model, and draw what is constant in it: zeros and ones hide faults behind them."""
    torch.manual_seed(seed)
    model = enliven(maker())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.is_floating_point() and not p.is_meta and p.numel() and bool(p.min() == p.max()):
                    draw(p, name, isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)), generator)
    return model


def ways(case: Case, model: nn.Module, size: Size) -> dict[str, dict[str, object]]:
    """Return the arguments of each way to call a model that its signature tells, the plain one first."""
    given = case.given(model, size)
    plain: dict[str, object] = {}
    extra: dict[str, object] = {}
    parameters = inspect.signature(model.forward).parameters
    starred = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # An image is needed also where None is its default.
    images = [name for name in _DATA if name in parameters] or [next(iter(parameters))]
    for name, parameter in parameters.items():
        if name in images or (parameter.default is parameter.empty and parameter.kind not in _STARS):
            plain[name] = given[name]
        elif name in given:
            extra[name] = given[name]
        elif isinstance(parameter.default, bool):
            extra[name] = not parameter.default
    if starred:
        extra |= {k: v for k, v in given.items() if k in _SWITCHES and k not in plain}
    found = {"": plain, **{f"{k}=": {**plain, k: v} for k, v in extra.items()}}
    return found if len(extra) < 2 else {**found, "all": {**plain, **extra}}


def _image(model: nn.Module, size: Size) -> dict[str, object]:
    """Give an image by whatever name the forward calls it."""
    return {next(iter(inspect.signature(model.forward).parameters)): images((size[0], 3, *size[1:]))}


def _video(model: nn.Module, size: Size, frames: int = 8) -> dict[str, object]:
    (name, image), = _image(model, size).items()  # fmt: skip
    return {name: torch.stack([image * (1 + 0.1 * i) for i in range(frames)], 2)}


def _sized(build: Callable[..., nn.Module], option: str) -> list[Callable[[], nn.Module]]:
    """Build for small sides where a builder takes one, and as it is."""
    return [*(functools.partial(build, **{option: side}) for side in SIDES[:3]), build]


def _timm(name: str) -> Case:
    import timm

    build = functools.partial(timm.create_model, name, pretrained=False, num_classes=CLASSES)
    return Case(_sized(build, "img_size"), _image)


def _torchvision_families() -> list[str]:
    """Name one model of each architecture of torchvision: the names without figures and sizes."""
    import torchvision

    found: dict[tuple[str, str], list[str]] = {}
    for name in torchvision.models.list_models():
        module = torchvision.models.get_model_builder(name).__module__
        stem = re.sub(
            r"(_?(tiny|small|base|large|\d+x\d+d|x\d\S*|\d+gf|\d+mf|[tsmblh]|\d+)(?=_|\d|$))+|\d+", "", name
        )
        found.setdefault((module, stem), []).append(name)
    light = ("_t", "_tiny", "small", "400mf", "0_5", "_s", "_32x4d", "mobilenet", "")
    return [
        min(group, key=lambda n: (next(i for i, w in enumerate(light) if w in n), len(n), n))
        for group in found.values()
    ]


def _torchvision(name: str) -> Case:
    import torchvision

    module = torchvision.models.get_model_builder(name).__module__.split(".")[2]
    options: dict[str, object] = {"weights": None, "num_classes": CLASSES}
    if module in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if module == "optical_flow":
        del options["num_classes"]
    if name in ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3"):
        options["init_weights"] = False
    build = functools.partial(torchvision.models.get_model, name, **options)
    if module == "detection":
        small = {"min_size": 64, "max_size": 96}
        if "rcnn" in name:  # as many boxes as an untrained model finds go through its heads
            small |= {
                "box_detections_per_img": 4,
                "rpn_post_nms_top_n_test": 16,
                "rpn_post_nms_top_n_train": 16,
            }
        return Case([build] if "ssd" in name else [functools.partial(build, **small)], _detection)
    if module == "optical_flow":
        return Case([build], _flow, has_classes=False)
    if module == "video":
        return Case([build], lambda m, s: _video(m, (1, *s[1:]), 16 if "mvit" in name else 8))
    return Case(_sized(build, "image_size") if "vit_" in name else [build], _image)


def _detection(_: nn.Module, size: Size) -> dict[str, object]:
    batch, height, width = size
    boxes = torch.tensor([[5.0, 6.0, 30.0, 40.0], [20.0, 10.0, 50.0, 33.0]])
    points = torch.stack([boxes[:, :2], boxes[:, 2:]], 1)
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2]),
        "masks": (torch.arange(height * width).reshape(1, height, width) % 3 == 0).repeat(2, 1, 1).byte(),
        "keypoints": torch.cat([points.repeat(1, 9, 1)[:, :17], torch.ones(2, 17, 1)], 2),
    }
    return {"images": list(images((batch, 3, height, width)).sigmoid()), "targets": [target] * batch}


def _flow(_: nn.Module, size: Size) -> dict[str, object]:
    pair = images((2 * size[0], 3, *size[1:])).chunk(2)
    return {"image1": pair[0], "image2": pair[1], "num_flow_updates": 3}


def _smp(name: str) -> Case:
    import segmentation_models_pytorch as smp

    arch, encoder = name.split("/")
    return Case(
        [functools.partial(smp.create_model, arch, encoder, encoder_weights=None, classes=CLASSES)], _image
    )


def _vit_files() -> Iterator[str]:
    """Name a class of each file of vit_pytorch that takes images and whose options are known."""
    import pkgutil

    import vit_pytorch

    for info in pkgutil.iter_modules(vit_pytorch.__path__):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"vit_pytorch.{info.name}")
            own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
            fitting = [
                c.__name__ for c in own if issubclass(c, nn.Module) and _vit_options(c, 64) is not None
            ]
            if fitting:
                yield f"{info.name}/{fitting[-1]}"


_VIT: dict[str, object] = {
    "patch_size": 16, "num_classes": CLASSES, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48, "dim_head": 16,
    "channels": 3, "max_tokens_per_depth": (8, 4), "cls_depth": 1, "sm_dim": 32, "lg_dim": 48, "ndim": 2,
    "fmap_size": 4, "mlp_mult": 2, "num_hierarchies": 3, "block_repeats": (1, 1, 2), "reduction_factor": (4, 2),
    "frames": 4, "max_frames": 4, "frame_patch_size": 2, "image_patch_size": 16, "freq_patch_size": 8,
    "spatial_depth": 1, "temporal_depth": 1, "num_residual_streams": 2, "num_slots": 4, "dims": [32, 48, 64],
    "dim_mask": 16, "decoder_dim": 32, "masking_ratio": 0.5,
}  # fmt: skip
_VIT_BY_FILE: dict[str, dict[str, object]] = {
    "cct": {"embedding_dim": 32, "num_layers": 2, "num_heads": 2},
    "cct_3d": {"embedding_dim": 32, "num_layers": 2, "num_heads": 2, "num_frames": 4},
    "cross_vit": {"sm_enc_depth": 1, "lg_enc_depth": 1, "depth": 1},
    "crossformer": {"depth": (1, 1, 1, 1)},
    "levit": {"depth": (1, 1, 1), "heads": (2, 2, 2), "dim": (32, 32, 32)},
    "max_vit": {"depth": (1, 1), "window_size": 4},
    "max_vit_with_registers": {"depth": (1, 1), "window_size": 4},
    "mobile_vit": {"channels": [8, 16, 16, 24, 24, 32, 32, 48, 48, 64, 96]},
    "nest": {"patch_size": 4},
    "pit": {"depth": (1, 1)},
    "regionvit": {"dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1)},
    "scalable_vit": {"depth": (1, 1), "heads": (2, 2), "window_size": 4},
    "sep_vit": {"depth": (1, 1), "heads": (2, 2), "window_size": 4},
    "twins_svt": {"s1_emb_dim": 16, "s2_emb_dim": 16, "s3_emb_dim": 32, "s4_emb_dim": 32, "s3_depth": 1},
}
_VIT_SIDES = {"image_size", "img_size", "input_shape"}
_VIT_INNER = {"vit", "encoder", "net"}


def _vit_options(kind: type, side: int) -> dict[str, object] | None:
    """Fill what the constructor of a model on images must be given, if all of it is known."""
    parameters = dict(list(inspect.signature(kind.__init__).parameters.items())[1:])
    own = _VIT_BY_FILE.get(kind.__module__.rpartition(".")[2], {})
    known = {**_VIT, **own, **dict.fromkeys(_VIT_SIDES, side), **dict.fromkeys(_VIT_INNER)}
    wanted = {k for k, p in parameters.items() if p.default is p.empty and p.kind not in _STARS}
    wanted |= {*own, *(parameters.keys() & {*_VIT_SIDES, "num_classes"})}
    if not parameters.keys() & {*_VIT_SIDES, *_VIT_INNER, "num_classes"} or not wanted <= known.keys():
        return None
    return {key: known[key] for key in wanted}


def _vit_pytorch(name: str) -> Case:
    file, kind = name.split("/")
    found = getattr(importlib.import_module(f"vit_pytorch.{file}"), kind)
    video = {"frames", "max_frames", "num_frames"} & inspect.signature(found.__init__).parameters.keys()

    def build(side: int) -> nn.Module:
        from vit_pytorch import ViT

        options = _vit_options(found, side)
        inner = _VIT_INNER & options.keys()
        return found(**{**options, **{key: ViT(**_vit_options(ViT, side)) for key in inner}})

    def given(model: nn.Module, size: Size) -> dict[str, object]:
        images = _video(model, size, 4) if video else _image(model, size)
        return {key: list(value) for key, value in images.items()} if file.startswith("na_vit") else images

    makers = [functools.partial(build, side) for side in (64, 128, 192)]
    return Case(makers, given, "num_classes" in inspect.signature(found.__init__).parameters)


_SWITCHES = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}


def _types() -> list[str]:
    """Name a model of each vision type of transformers, with a classifier where there is one."""
    from transformers.models.auto import modeling_auto

    chosen: dict[str, str] = {}
    for task in TASKS:
        for kind, found in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            chosen.setdefault(kind, found if isinstance(found, str) else found[0])
    return sorted({name for name in chosen.values() if not name.startswith("Timm")})  # those are timm's


def _transformers(name: str) -> Case:
    import transformers

    kind = getattr(transformers, name)

    def build(side: int, *kept: str) -> nn.Module:
        return kind(_small(kind.config_class, side, kept))

    makers = [
        functools.partial(build, side, *kept)
        for side in (64, 128, 224)
        for kept in ((), ("num_hidden_layers",), ("depths", "num_hidden_layers"))
    ]
    classes = re.search("Classification|Segmentation|ObjectDetection", name) is not None
    return Case([*makers, lambda: kind(kind.config_class())], _hugging, classes)


def _small(kind: type, side: int, kept: tuple[str, ...]) -> object:
    """Make a config for small images with few layers, also of the parts of a model."""
    usual = kind()
    wanted: dict[str, object] = {
        "image_size": side, "num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_frames": 4,
        "num_labels": CLASSES, "use_pretrained_backbone": False, "num_queries": 10, "frames_per_clip": 4, "crop_size": side,
        "vocab_size": 1000, "decoder_hidden_size": 32, "d_model": 64, "num_latents": 16,
    }  # fmt: skip
    options = {k: v for k, v in wanted.items() if hasattr(usual, k) and k not in kept}
    if isinstance(getattr(usual, "image_size", None), (tuple, list)):
        options["image_size"] = [side] * len(usual.image_size)
    depths = getattr(usual, "depths", None)
    if isinstance(depths, (tuple, list)) and "depths" not in kept:
        options["depths"] = [1] * len(depths)
    for part in ("backbone_config", "vision_config", "text_config"):
        inner = getattr(usual, part, None)
        if inner is not None and not isinstance(inner, Mapping):
            small = _small(type(inner), side, kept)
            options[part] = small if part == "backbone_config" else small.to_dict()
    return kind(**options)


def _hugging(model: nn.Module, size: Size) -> dict[str, object]:
    """Give arguments by the names that transformers has for them."""
    batch, height, width = size
    kind, config = type(model).__name__, model.config
    image = images((batch, getattr(config, "num_channels", 3), height, width))
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", 4)
    clip = torch.stack([image * (1 + 0.1 * i) for i in range(frames)], 1)
    pair = torch.stack([image, image.flip(-1)], 1)
    words = torch.arange(batch * 8).reshape(batch, 8) % 50 + 2
    mask = torch.arange(height * width).reshape(1, height, width) % 3 == 0
    box = {
        "class_labels": torch.tensor([1, 2]),
        "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.3]]),
    }
    labels: dict[str, object] = {
        "Classification": torch.arange(batch) % 5,
        "SemanticSegmentation": (mask.long() * 3).expand(batch, -1, -1).contiguous(),
        "Detection": [box] * batch,
        "InstanceSegmentation": [{**box, "masks": mask.float().repeat(2, 1, 1)}] * batch,
        "DepthEstimation": torch.rand(size, generator=torch.Generator().manual_seed(5)),
    }
    video = re.search("Video|Vivit|Timesformer|VJEPA", kind) is not None
    given = {
        "pixel_values": clip if video else pair if "Matching" in kind else image,
        "pixel_values_videos": clip,
        "input_ids": words if "ImageGPT" not in kind else words.clamp(max=50),
        "inputs": image,
        "task_inputs": words,
        "input_points": torch.full((batch, 1, 1, 2), 20.0),
        "pixel_mask": torch.ones(batch, height, width, dtype=torch.long),
        "attention_mask": torch.ones(batch, 8, dtype=torch.long) if "input_ids" in _named(model) else None,
        "dataset_index": torch.zeros(batch, dtype=torch.long),
        "prompt_depth": labels["DepthEstimation"][:, None, ::4, ::4],
        "mask_labels": [mask.float().repeat(2, 1, 1)] * batch,
        "class_labels": [torch.tensor([1, 2])] * batch,
        "bool_masked_pos": None,
        "labels": next((value for task, value in labels.items() if kind.endswith(task)), None),
        **_SWITCHES,
    }
    return {key: value for key, value in given.items() if value is not None}


def _named(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _tests(name: str) -> Case:
    """Describe a net of the tests, for the test of the corpus itself."""
    import nets

    return Case([getattr(nets, name)], _image, sides=(16, 24))

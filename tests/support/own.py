"""Small models of many families, and their state dicts under other names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torchvision import models

Renaming = Callable[[str], str]


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return build


def _vit(name: str, size: int = 32, **options: object) -> tuple[Callable[[], nn.Module], int]:
    small = {"img_size": size, "depth": 3, "embed_dim": 48, "num_heads": 3}
    return _timm(name, **{**small, **options}), size


def _swin(name: str, size: int) -> tuple[Callable[[], nn.Module], int]:
    return _timm(name, img_size=size, depths=(2, 2), num_heads=(2, 4), embed_dim=24), size


OWN: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": _vit("vit_tiny_patch16_224"),
    "deit": _vit("deit_tiny_distilled_patch16_224"),
    "dinov2": _vit("vit_small_patch14_dinov2", 28),
    "sam": _vit("samvit_base_patch16", 64),
    "beit": _vit("beit_base_patch16_224"),
    "cait": _vit("cait_xxs24_224"),
    "convit": _vit("convit_tiny"),
    "xcit": (_timm("xcit_nano_12_p16_224", img_size=32, depth=3), 32),
    "eva": (_timm("eva02_tiny_patch14_224", img_size=28, depth=3), 28),
    "swin": _swin("swin_tiny_patch4_window7_224", 56),
    "swin_v2": _swin("swinv2_tiny_window8_256", 64),
    "swin_torchvision": (lambda: models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7]), 56),
    "vit_torchvision": (lambda: models.VisionTransformer(32, 16, 2, 2, 48, 96), 32),
    "davit": (
        _timm("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192), num_heads=(1, 2, 4, 8)),
        64,
    ),
    "coatnet": (_timm("coatnet_pico_rw_224", img_size=64), 64),
    "pvt_v2": (_timm("pvt_v2_b0", depths=(1, 1, 1, 1)), 64),
    "edgenext": (_timm("edgenext_xx_small"), 64),
    "botnet": (_timm("botnet26t_256", img_size=64), 64),
    "resnet": (models.resnet18, 64),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2), 16), 64),
}
LARGE: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "maxvit_torchvision": (models.maxvit_t, 224),
    "caformer": (_timm("caformer_s18"), 64),
    "maxvit_rw": (_timm("maxvit_rmlp_pico_rw_256", img_size=64), 64),
    "maxxvit_rw": (_timm("maxxvit_rmlp_nano_rw_256", img_size=64), 64),
    "mvitv2": (_timm("mvitv2_tiny", img_size=64), 64),
    "gcvit": (_timm("gcvit_xxtiny", img_size=64), 64),
    "twins_svt": (_timm("twins_svt_small"), 64),
    "twins_pcpvt": (_timm("twins_pcpvt_small"), 64),
    "visformer": (_timm("visformer_tiny", img_size=64), 64),
    "volo": (_timm("volo_d1_224", img_size=64), 64),
    "mobilevit": (_timm("mobilevit_xxs"), 64),
    "hiera": (_timm("hiera_tiny_224", img_size=64), 64),
    "pit": (_timm("pit_ti_224"), 224),
    "convnext": (_timm("convnext_atto"), 64),
    "fastvit": (_timm("fastvit_t8"), 64),
    "repvit": (_timm("repvit_m0_9"), 64),
}
_WORDS = {"stages": "levels", "blocks": "units", "layers": "parts", "layer": "part", "features": "feats"}


@functools.lru_cache(maxsize=1)
def own(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a model whose tensors hold what no other holds, and an image for it."""
    build, size = {**OWN, **LARGE}[name]
    model = build().eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
    return model, torch.zeros(1, 3, size, size)


def _other_words(key: str) -> str:
    for word, other in _WORDS.items():
        key = key.replace(word, other)
    return key


def _some_words(key: str) -> str:
    return (
        f"encoder.{key.replace('mlp.fc', 'mlp.lin').replace('norm1', 'ln_a').replace('attn.', 'attention.')}"
    )


def _no_words(keys: Iterable[str]) -> Renaming:
    """Name every word anew; numbers, and the last word, stay."""
    known: dict[str, str] = {}

    def rename(key: str) -> str:
        *path, last = key.split(".")
        told = (
            w
            if w.isdigit()
            else known.setdefault(w, f"w{chr(97 + len(known) // 26)}{chr(97 + len(known) % 26)}")
            for w in path
        )
        return ".".join([*told, last])

    return rename


WAYS: Mapping[str, Callable[[Iterable[str]], Renaming]] = {
    "its own names": lambda keys: lambda key: key,
    "a prefix": lambda keys: lambda key: f"module.base_encoder.{key}",
    "other words": lambda keys: _other_words,
    "a prefix, some other words": lambda keys: _some_words,
    "no words": _no_words,
    "the alphabet": lambda keys: _other_words,
}


def called(model: nn.Module, way: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the state dict of a model under other names, and the new name of each tensor."""
    rename = WAYS[way](model.state_dict())
    names = {key: rename(key) for key in model.state_dict()}
    state = {names[key]: value for key, value in model.state_dict().items()}
    return dict(sorted(state.items())) if way == "the alphabet" else state, names

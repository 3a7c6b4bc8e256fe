"""What timm calls the models of torchvision."""

from __future__ import annotations

import re

SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
RULES = {
    r"swin_v2_(\w)": lambda m: f"swinv2_{SIZES[m[1]]}_window8_256",
    r"swin_(\w)": lambda m: f"swin_{SIZES[m[1]]}_patch4_window7_224",
    r"vit_(\w)_(\d+)": lambda m: f"vit_{SIZES[m[1]]}_patch{m[2]}_224",
    r"efficientnet_v2_(\w)": lambda m: f"efficientnetv2_{m[1]}",
    r"mobilenet_v2": lambda m: "mobilenetv2_100",
    r"mobilenet_v3_(\w+)": lambda m: f"mobilenetv3_{m[1]}_100",
    r"mnasnet(\d)_(\d+)": lambda m: f"mnasnet_{m[1]}{m[2]:0<2}",
    r"regnet_(\w)_(\d+)mf": lambda m: f"regnet{m[1]}_{int(m[2]) // 100:03}",
    r"regnet_(\w)_(\d+)_(\d)gf": lambda m: f"regnet{m[1]}_{m[2]:0>2}{m[3]}",
    r"regnet_(\w)_(\d+)gf": lambda m: f"regnet{m[1]}_{int(m[2]) * 10:03}",
}

OTHERS = ("regnetx_004", "regnety_008", "regnety_080")  # timm's own are of other widths


def in_timm(name: str) -> str:
    """Tell timm's name of a model, which need not exist; most are called the same."""
    for pattern, renamed in RULES.items():
        if found := re.fullmatch(pattern, name):
            name = renamed(found)
            break
    return f"{name}_tv" if name in OTHERS else name

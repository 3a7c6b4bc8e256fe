"""Feature extractors side by side in one run: building, forwards, memory; prints tables of medians.

``--all`` builds on all classification models of torchvision, otherwise on one of each size.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import timm
import torch
import torchvision
from bench import ROOT, ratio
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from torchgraft import features
from torchgraft.errors import GraftError
from torchgraft.graph.draft import Draft
from torchgraft.graph.tiers.tiers import find_tiers

warnings.filterwarnings("ignore")
SOME = ("alexnet", "vgg11", "resnet18", "resnet50", "mobilenet_v3_small", "densenet121", "swin_t", "vit_b_16")
STRIDES = (8, 16, 32)
FORWARDS = {
    "resnet50": "resnet50",
    "efficientnet_b0": "efficientnet_b0",
    "swin_t": "swin_tiny_patch4_window7_224",
}


def on_meta(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            return torchvision.models.get_model(name, weights=None, **options).eval()
    except NotImplementedError:  # regnet computes its widths with tensors
        return torchvision.models.get_model(name, weights=None, **options).to("meta").eval()


def targets(model: nn.Module) -> list[str]:
    """Name the modules that give the deepest three levels, as far as one module does."""
    tiers = find_tiers(Draft(model))
    maps = tiers.maps[-3:] if len(tiers.maps) > 1 else tiers.blocks[-3:]
    return [one.path for one in maps if not one.item]


def building(names: list[str]) -> list[str]:
    rows = []
    for name in names:
        model = on_meta(name)
        nodes = targets(model)
        try:
            value, ours, theirs = ratio(
                lambda m=model, n=nodes: features(*n, layout="native")(m),
                lambda m=model, n=nodes: create_feature_extractor(m, n),
                7,
            )
        except GraftError:
            raise
        except Exception as error:
            rows.append(f"| {name} | | | {type(error).__name__} of theirs |")
            continue
        rows.append(f"| {name} | {value:.2f} | {ours * 1e3:.1f} ms | {theirs * 1e3:.1f} ms |")
    return rows


def forwards(rounds: int = 41) -> list[str]:
    torch.set_num_threads(1)
    rows = []
    for name, at_timm in FORWARDS.items():
        model = torchvision.models.get_model(name, weights=None).eval()
        nodes = targets(model)
        x = torch.randn(1, 3, 224, 224)
        ours = features(*nodes, layout="native")(model)
        twins: dict[str, tuple[nn.Module, nn.Module]] = {
            "torchvision": (ours, create_feature_extractor(model, nodes).eval())
        }
        stages = (-3, -2, -1)
        twin = timm.create_model(at_timm, pretrained=False).eval()
        theirs = timm.create_model(at_timm, pretrained=False, features_only=True, out_indices=stages).eval()
        twins["timm"] = features(strides=STRIDES, layout="native")(twin), theirs
        for side, (mine, other) in twins.items():
            with torch.no_grad():
                value, one, two = ratio(lambda m=mine, x=x: m(x), lambda m=other, x=x: m(x), rounds)
            rows.append(f"| {name}, {side} | {value:.3f} | {one * 1e3:.1f} ms | {two * 1e3:.1f} ms |")
    return rows


def memory() -> list[str]:
    rows = []
    for name in FORWARDS:
        model = torchvision.models.get_model(name, weights=None).eval()
        result = features(*targets(model))(model)
        parts = {key: tensor for key, tensor in model.state_dict().items() if key in result.state_dict()}
        rows.append(f"| {name} | {held(result)} | {size(parts.values())} | {held(model)} |")
    return rows


def held(model: nn.Module) -> int:
    return size((*model.parameters(), *model.buffers()))


def size(tensors) -> int:
    """Count the bytes of storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


PAGE = """# Feature extractors side by side

Made by `python benchmarks/features.py --all`: medians of several rounds that alternate both sides in one run, on one machine. Ratios below one are ours.

- Forward: three levels, against torchvision's extractor with the same nodes and against `features_only` of timm.
- Bytes kept: storages that the extractor holds, each once.
- Build: the three deepest levels by name, against `create_feature_extractor` with the same nodes; at most 0.35 is the aim.
"""


def table(title: str, head: str, rows: Callable[[], list[str]]) -> str:
    started = time.perf_counter()
    lines = [f"\n## {title}\n", head, "|" + "---|" * (head.count("|") - 1), *rows()]
    print(*lines, f"\n{time.perf_counter() - started:.0f} s", sep="\n", flush=True)
    return "\n".join(lines)


def main() -> None:
    every = [n for n in torchvision.models.list_models(module=torchvision.models) if "quantized" not in n]
    chosen = every if "--all" in sys.argv else list(SOME)
    parts = [
        table("Forward", "| model | ratio | ours | theirs |", forwards),
        table("Bytes kept", "| model | extractor | the same parts of the model | model |", memory),
        table("Build", "| model | ratio | ours | theirs |", lambda: building(chosen)),
    ]
    if "--all" in sys.argv:
        (ROOT / "docs" / "features.md").write_text(PAGE + "\n".join(parts) + "\n")


if __name__ == "__main__":
    main()

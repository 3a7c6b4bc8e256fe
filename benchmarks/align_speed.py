"""What an alignment costs: in forwards of the models, by depth, and on long chains; writes a page.

``python benchmarks/align_speed.py`` writes ``docs/alignment-speed.md``.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from torchgraft import align

ROOT = Path(__file__).parents[1]
ROUNDS = 7
NETS = ("resnet50", "swin_t", "vit_b_16", "efficientnet_v2_s")
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHAINS = (100, 500, 1000, 5000)


def seconds(run: Callable[[], object]) -> float:
    """Time one call, without the collector of garbage, as timeit does."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    run()
    spent = time.perf_counter() - start
    gc.enable()
    return spent


def forwards(name: str) -> float:
    """Tell how many forwards of both models an alignment of two of them costs."""
    source, target = (models.get_model(name).eval() for _ in range(2))
    x = torch.randn(2, 3, 224, 224)
    ratios = []
    for _ in range(ROUNDS):
        with torch.no_grad():
            both = seconds(lambda: source(x)) + seconds(lambda: target(x))
        ratios.append(seconds(lambda: align(source, target, example=x)) / both)
    return statistics.median(ratios)


def each(source: nn.Module, target: nn.Module, x: torch.Tensor) -> tuple[int, float]:
    """Time an alignment: number of tensors, and milliseconds for each of them."""
    found = align(source, target, example=x)
    assert not found.missing, found.missing[:3]
    spent = statistics.median(seconds(lambda: align(source, target, example=x)) for _ in range(3))
    return len(found.target), 1e3 * spent / len(found.target)


def chain(length: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(length)])


def main() -> None:
    torch.manual_seed(0)
    lines = [
        "# What an alignment costs",
        "",
        "Made by `python benchmarks/align_speed.py`, in one run on two cores; times themselves are noise, ratios count.",
        "",
        "An alignment of two models against one forward of each, two images of 224 pixels:",
        "",
        "| model | forwards of each, median of seven |",
        "|---|---|",
    ]
    lines += [f"| {name} | {forwards(name):.1f} |" for name in NETS]
    lines += ["", "By depth, images of 64 pixels:", "", "| model | tensors | ms a tensor |", "|---|---|---|"]
    for name in DEPTHS:
        count, spent = each(
            models.get_model(name).eval(), models.get_model(name).eval(), torch.randn(1, 3, 64, 64)
        )
        lines.append(f"| {name} | {count:,} | {spent:.2f} |")
    lines += [
        "",
        "Chains of linear layers, alike in everything:",
        "",
        "| layers | tensors | ms a tensor |",
        "|---|---|---|",
    ]
    for length in CHAINS:
        count, spent = each(chain(length), chain(length), torch.randn(2, 8))
        lines.append(f"| {length:,} | {count:,} | {spent:.2f} |")
    (ROOT / "docs" / "alignment-speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Ratios side by side in one run, medians of several: against torchvision, against the model itself.

The table goes to ``docs/benchmarks.md``.
"""

from __future__ import annotations

import copy
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import psutil
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from torchgraft import at, freeze, inject, pipe, replace, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.errors import GraftError
from torchgraft.graph.clone import clone
from torchgraft.graph.draft import Draft

warnings.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
STAGES = {"resnet50": "layer4", "swin_t": "features.7", "efficientnet_v2_s": "features.6"}
CPUS = os.cpu_count()


from zoo import families  # noqa: E402 - lies beside the tests


def clock(function: Callable[[], object]) -> float:
    """Time one call with the cyclic garbage collector off, as timeit does: its cost is that of the whole process."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    function()
    taken = time.perf_counter() - started
    gc.enable()
    return taken


def ratio(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Alternate two functions; return the ratio of medians and both medians in seconds."""
    ours(), theirs()
    pairs = [(clock(ours), clock(theirs)) for _ in range(rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return a / b, a, b


def building() -> list[str]:
    rows = []
    for name, stage in STAGES.items():
        model = getattr(torchvision.models, name)().eval()
        value, ours, theirs = ratio(
            lambda m=model, s=stage: pipe(m, wrap(s, se), swap_head(10)),
            lambda m=model, s=stage: create_feature_extractor(m, [s]),
            15,
        )
        rows.append(
            f"| build `{name}` | {value:.2f} | at most 0.35 | {ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms |"
        )
    return rows


def checking() -> list[str]:
    """Time edits of a forward, which is compared with its graph before, and without that comparison."""
    model = torchvision.models.resnet50().eval()

    def unchecked() -> None:
        with mock.patch("torchgraft.graph.draft.check_level", return_value=True):
            pipe(model, inject("layer3", se))

    value, ours, theirs = ratio(lambda: pipe(model, inject("layer3", se)), unchecked, 15)
    return [
        f"| edit of the root of `resnet50`, against one that is not checked | {value:.2f} | - | {ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms |"
    ]


def swapping() -> list[str]:
    """Clone, pipe and swap the head of one model of each file of timm, against a run on meta tensors."""
    piped, swapped = {}, {}
    for name in families():
        model = timm.create_model(name, pretrained=False).eval()
        shape = model.pretrained_cfg["input_size"]
        bare, given = copy.deepcopy(model).to("meta"), torch.empty(2, *shape, device="meta")
        piped[name] = ratio(lambda m=model: pipe(m), lambda m=model: clone(m), 5)[0]
        cloning = statistics.median(clock(lambda m=model: clone(m)) for _ in range(5))
        try:
            _, ours, running = ratio(
                lambda m=model: pipe(m, swap_head(10)),
                lambda m=bare, g=given: m(g),
                3,
            )
        except GraftError:
            continue  # no classifier
        swapped[name] = (ours - cloning) / running
    rows = []
    for what, found, limit in (
        ("`pipe(m)` against cloning", piped, 2.0),
        ("`swap_head(10)` less cloning, against a run on meta tensors", swapped, 1.5),
    ):
        worst = max(found, key=found.get)
        over = sum(value > limit for value in found.values())
        rows.append(
            f"| {what}, {len(found)} models of timm | {statistics.median(found.values()):.2f} | at most {limit} | {over} above, the most `{worst}` with {found[worst]:.2f} |"
        )
    return rows


def memory() -> list[str]:
    rows = []
    for name, stage in (("resnet50", "layer4"), ("vit_l_16", "encoder")):
        model = getattr(torchvision.models, name)().eval()
        small = torchvision.models.resnet18()
        pipe(small, wrap("layer4", se), swap_head(10))  # what is imported and cached once
        gc.collect()
        before = psutil.Process().memory_info().rss
        result = pipe(model, wrap(stage, se), swap_head(10))
        grown = psutil.Process().memory_info().rss - before
        old = set(model.state_dict())
        new = sum(t.numel() * 4 for k, t in result.state_dict().items() if k not in old or 10 in t.shape[:1])
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        rows.append(
            f"| memory of `{name}` | {grown / 1e6:.1f} MB | at most {(0.1 * new + 5e6) / 1e6:.1f} MB | "
            f"weights {size / 1e6:.0f} MB, new parameters {new / 1e6:.1f} MB |"
        )
    return rows


def forwards() -> list[str]:
    rows = []
    torch.set_num_threads(1)
    for name in ("resnet50", "efficientnet_b0", "swin_t"):
        model = getattr(torchvision.models, name)().eval()
        result = pipe(model)
        for side, limit, rounds in ((224, 0.02, 25), (32, 0.05, 81)):
            x = torch.randn(1, 3, side, side)
            with torch.no_grad():
                value, ours, theirs = ratio(lambda r=result, x=x: r(x), lambda m=model, x=x: m(x), rounds)
            rows.append(
                f"| forward of `{name}` at {side} | {value:.3f} | 1.00 within {limit} | "
                f"{ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms |"
            )
    torch.set_num_threads(CPUS or 2)
    return rows


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(x)


def growth() -> list[str]:
    times = {}
    for count in (100, 1000, 10_000):
        model = nn.Sequential(*[Unit() for _ in range(count)])
        step = wrap(f"{count - 1}", se)
        step(model)
        times[count] = statistics.median(clock(lambda m=model, s=step: s(m)) for _ in range(5))
    return [
        f"| one edit on {big:,} blocks against {small:,} | {times[big] / times[small]:.1f} | at most {big // small} | "
        f"{times[big] * 1e3:.0f} ms against {times[small] * 1e3:.0f} ms |"
        for small, big in ((100, 1000), (1000, 10_000))
    ]


def selecting() -> list[str]:
    """Select on models of up to 10,000 modules: as an edit does, and with the order of execution."""
    rows = []
    times = {}
    for count in (500, 5000):
        model = nn.Sequential(*[Unit() for _ in range(count)])
        draft, selector = Draft(model), at(nn.Linear) - "7"
        found = statistics.median(clock(lambda d=draft, s=selector: s.find(d)) for _ in range(7))
        shown = statistics.median(clock(lambda m=model, s=selector: s.on(m)) for _ in range(3))
        times[count] = found, shown
    for i, what in enumerate(("selecting", "selecting in the order of execution")):
        small, big = times[500][i], times[5000][i]
        rows.append(
            f"| {what} on 10,001 modules against 1,001 | {big / small:.1f} | at most 10 | {big * 1e3:.0f} ms against {small * 1e3:.0f} ms |"
        )
    return rows


BLOCKS = [f"layer{i}.{j}" for i, count in ((1, 3), (2, 4), (3, 6), (4, 3)) for j in range(count)]


def many() -> list[str]:
    """Make sixteen disjoint edits in one pipe, against one of them."""
    model = torchvision.models.resnet50()
    kinds = {
        "freeze": freeze,
        "replace(..., nn.SiLU)": lambda path: replace(f"{path}.relu", nn.SiLU),
        "inject(..., eca)": lambda path: inject(path, "eca"),
        "wrap(..., eca)": lambda path: wrap(path, "eca"),
    }
    rows = []
    for name, make in kinds.items():
        value, all_, one = ratio(
            lambda make=make: pipe(model, *[make(path) for path in BLOCKS]),
            lambda make=make: pipe(model, make(BLOCKS[9])),
            15,
        )
        rows.append(
            f"| 16 edits in one pipe on `resnet50`, `{name}`, against one | {value:.2f} | at most 1.5 | {all_ * 1e3:.1f} ms against {one * 1e3:.1f} ms |"
        )
    return rows


def adapting() -> list[str]:
    """Run the comparison with PEFT in a process of its own, where PEFT is installed."""
    script = Path(__file__).with_name("lora.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def importing() -> list[str]:
    base = "import torch, torchvision, torchvision.models"
    code = f"{base}, time\nt = time.perf_counter()\nimport torchgraft\nprint(time.perf_counter() - t)"
    added = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(7)]
    return [
        f"| `import torchgraft` after torch and torchvision | {statistics.median(added) * 1e3:.0f} ms | under 100 ms | median of 7 |"
    ]


def main() -> None:
    head = [
        "# Benchmarks",
        "",
        f"Measured by `make bench` on {CPUS} cores with torch {torch.__version__} and torchvision {torchvision.__version__}.",
        "Each ratio compares two things that take turns in one run; both are medians.",
        "Building is compared with torchvision's `create_feature_extractor` on the same model, forwards with the model itself, LoRA with the injection of PEFT (which edits the model in place) into the same layers.",
        "Of sixteen edits in one pipe, freezing and replacing change no forward or one; wrapping and injecting follow and rewrite the forwards of sixteen blocks or of the four stages around them.",
        "The batch is 1.",
        "The cyclic garbage collector is off while a call is timed, as in `timeit`.",
        "",
        "| what | measured | target | in absolute terms |",
        "|---|---|---|---|",
    ]
    rows = []
    for part in (
        memory,
        building,
        checking,
        swapping,
        many,
        adapting,
        forwards,
        growth,
        selecting,
        importing,
    ):
        for row in part():
            print(row, flush=True)
            rows.append(row)
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join([*head, *rows, ""]))


if __name__ == "__main__":
    main()

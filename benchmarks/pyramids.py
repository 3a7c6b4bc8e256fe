"""Ask many models for the maps that tables written by hand declare; write ``docs/pyramids.md``.

The tables are timm's, of which ``tests/data/timm_pyramids.json`` holds what was checked
against real outputs. Models have random weights on the meta device.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import timm
import torch
import torchvision

from torchgraft import feature_info, features, pipe, tiers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
TABLE = ROOT / "tests" / "data" / "timm_pyramids.json"
Row = dict[str, object]


def prepare() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def on_meta(make: object) -> torch.nn.Module:
    """Build on the meta device, or on the CPU where a constructor reads values."""
    try:
        with torch.device("meta"):
            return make().eval()
    except Exception:
        return make().eval().to("meta")


def timm_row(entry: Row) -> Row:
    """Compare the maps of one model with its table."""
    row = {"name": entry["name"], "family": entry["family"], "levels": len(entry["channels"]), "wrong": []}
    x = torch.empty(2, *entry["input_size"], device="meta")
    try:
        model = on_meta(lambda: timm.create_model(entry["name"], pretrained=False))
        found = {m.stride: m for m in tiers(model, example=x).maps}
        asked = [stride for stride in entry["reduction"] if stride in found]
        given = pipe(model, features(strides=asked), example=x)(x)
        widths = {stride: value.shape[1] for stride, value in zip(asked, given.values(), strict=True)}
        places = [
            (tuple(v.shape[2:]), found[s].layout.grid) for s, v in zip(asked, given.values(), strict=True)
        ]
        if any(one != other for one, other in places):
            row["wrong"].append(("grid", str(places), ""))
        for width, stride, module in zip(entry["channels"], entry["reduction"], entry["module"], strict=True):
            if widths.get(stride) != width:
                path = found[stride].path if stride in found else "no map"
                row["wrong"].append((stride, f"{width} at {module}", f"{widths.get(stride)} at {path}"))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def torchvision_row(name: str) -> Row:
    """Tell the maps of one model of torchvision."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        model = on_meta(lambda: torchvision.models.get_model(name, weights=None, **options))
        told = tiers(model)
        return {
            "name": name,
            "stem": " ".join(told.stem) or "none",
            "maps": ", ".join(f"{i.stride}: {i.name} {i.channels}" for i in feature_info(model)),
            "blocks": " ".join(str(len(stage.blocks)) for stage in told.stages),
            "head": " ".join(told.head),
            "features": told.num_features,
        }
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


PAGE = """# Maps found by structure

Measured by `make sweep` (`benchmarks/pyramids.py`): models with random weights on the meta device are asked for the maps at the strides that timm's tables, written by hand, declare for them. A model counts as right when `features(strides=...)` gives the declared number of channels at every stride, on a grid of the size that `tiers` tells. The rules stand in `docs/decisions/0007-tiers-are-read-off-a-run.md`.

"""


def page(rows: list[Row], models: list[Row]) -> str:
    """Write the results as a page."""
    right = sum(not row["wrong"] and "error" not in row for row in rows)
    levels = sum(row["levels"] for row in rows)
    wrong = sum(row["levels"] if "error" in row else len(row["wrong"]) for row in rows)
    models_right = f"{right} of {len(rows)} models of timm are right in full ({right / len(rows):.1%})"
    lines = [
        f"{models_right}, and {levels - wrong} of {levels} maps ({1 - wrong / levels:.1%}).",
        "",
        "## What differs",
        "",
    ]
    grouped = defaultdict(list)
    for row in rows:
        said = row.get("error") or "; ".join(f"{s}: declared {a}, found {b}" for s, a, b in row["wrong"])
        if said:
            grouped[row["family"]].append(f"`{row['name']}` ({said})")
    for family, found in sorted(grouped.items()):
        lines += [f"- {family}, {len(found)}: " + "; ".join(found)]
    lines += ["", "## By file", "", "| file | models | right |", "|---|---|---|"]
    for family in sorted({row["family"] for row in rows}):
        part = [row for row in rows if row["family"] == family]
        lines.append(f"| {family} | {len(part)} | {sum(not r['wrong'] and 'error' not in r for r in part)} |")
    lines += [
        "", "## torchvision", "",
        "| model | stem | map of each stride | blocks | head | features |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in models:
        cells = [row.get(key, row.get("error", "")) for key in ("stem", "maps", "blocks", "head", "features")]
        lines.append(f"| {row['name']} | " + " | ".join(map(str, cells)) + " |")
    return PAGE + "\n".join(lines) + "\n"


def main() -> None:
    from zoo import classifiers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "docs" / "pyramids.md"))
    parser.add_argument("--table", default=str(TABLE))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    entries = json.loads(Path(given.table).read_text())
    with multiprocessing.get_context("spawn").Pool(given.workers, prepare, maxtasksperchild=40) as pool:
        rows = pool.map(timm_row, entries, chunksize=4)
        models = pool.map(torchvision_row, classifiers(), chunksize=4)
    Path(given.out).write_text(page(rows, models))
    print(page(rows, []).split("## By file")[0])


if __name__ == "__main__":
    main()

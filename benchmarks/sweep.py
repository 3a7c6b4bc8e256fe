"""Check every promise on every classifier of torchvision and one timm model a file.

Each model runs in a process of its own; the table goes to ``docs/sweep.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))


def one(name: str, only: list[str]) -> dict[str, object]:
    """Run the checks on one model, in this process."""
    import traceback
    import warnings

    import checks
    import torch
    from checks import CHECKS
    from zoo import build, example, late_stage

    from torchgraft.errors import SpecialisedError

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    row: dict[str, object] = {"name": name}
    started = time.perf_counter()
    try:
        model = build(name)
        x = example(model)
        row["input"] = "x".join(map(str, x.shape[1:]))
        stage = late_stage(model)
        row["stage"] = stage
    except Exception as error:
        return {**row, "setup": f"{type(error).__name__}: {error}"[:300]}
    for title, check in CHECKS.items():
        if only and title not in only:
            continue
        model.train()
        try:
            try:
                check(model, x, stage)
            except SpecialisedError:
                checks.EXAMPLE[0] = x
                check(model, x, stage)
            row[title] = "yes" if checks.EXAMPLE[0] is None else "yes, with example="
        except checks.OriginalCannotEitherError as error:
            row[title] = f"no, nor the original: {error}"
        except Exception as error:
            row[title] = f"{type(error).__name__}: {error}"[:500]
            row[f"{title} at"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.perf_counter() - started)
    return row


def in_process(name: str, only: list[str]) -> dict[str, object]:
    """Run the checks on one model in a new process."""
    command = [sys.executable, __file__, "--one", name, *[f"--only={o}" for o in only]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
        return {"name": name, "setup": f"{type(error).__name__}"}


def failures(row: dict[str, object]) -> dict[str, str]:
    """Return what failed for a model, by check."""
    skipped = ("name", "input", "stage")
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, str)
        and key not in skipped
        and not value.startswith("yes")
        and not key.endswith(" at")
    }


PAGE = """# Every promise on every model

Measured by `make sweep`: the 80 classification models of torchvision and one timm model of each architecture file, with random weights and BatchNorm statistics that are not trivial, each in a process of its own.

- same: `pipe(m)` is bit-equal to `m` in evaluation and, under one seed, in training, after mode switches; keys, order, classes and attributes are kept.
- independent: `m` is untouched by the edit, and by training, freezing and switching the result; so is a second copy.
- block and head: `wrap(stage, se)` leaves outputs bit-equal, old checkpoints load with the new keys missing, every new parameter gets a gradient within two steps, and `swap_head(10)` runs in both modes.
- again, copy, pickle: the result of both edits survives each, bit-equal.
- maps: `features` at every stride that the model has gives, bit for bit, what hooks at those places see, in both modes, with and without the output; a full checkpoint loads with nothing missing.
- compile: it compiles as a full graph. export: it exports with a dynamic batch.
- `yes, with example=`: the forward decides on sizes, and the input of the test is not of the size guessed.
"""


def table(rows: list[dict[str, object]]) -> str:
    """Write the results as a page."""
    from checks import CHECKS

    titles = list(CHECKS)
    lines = [PAGE, "| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for label, part in (("torchvision", False), ("timm", True)):
        chosen = [row for row in rows if str(row["name"]).startswith("timm/") is part]
        counts = [sum(str(row.get(title, "")).startswith("yes") for row in chosen) for title in titles]
        lines.append(f"| {label}, {len(chosen)} models | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "## What does not hold", ""]
    for row in rows:
        for title, text in failures(row).items():
            first = " ".join(text.split())[:300].replace(str(Path(sys.prefix)), "").replace(str(ROOT), "")
            lines.append(f"- `{row['name']}`, {title}: {first}")
    lines += ["", "## All models", "", "| model | input | stage | " + " | ".join(titles) + " |"]
    lines.append("|---|---|---|" + "---|" * len(titles))
    for row in rows:
        cells = [str(row.get(title, "no")).split(":")[0][:40] for title in titles]
        cells = [cell if cell.startswith(("yes", "no")) else "no" for cell in cells]
        lines.append(
            f"| `{row['name']}` | {row.get('input', '')} | `{row.get('stage', '')}` | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--match", default="")
    parser.add_argument("--not-timm", action="store_true")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="", help="the page to write")
    parser.add_argument("--json", default="", help="all details")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.only)))
        return
    from zoo import classifiers, families

    names = [
        n
        for n in (*classifiers(), *(f"timm/{n}" for n in families()))
        if chosen.match in n and not (chosen.not_timm and n.startswith("timm/")) and n not in chosen.without
    ]
    rows = []
    with ThreadPoolExecutor(chosen.workers) as pool:
        for number, row in enumerate(pool.map(lambda n: in_process(n, chosen.only), names), 1):
            bad = failures(row)
            print(
                f"{number:4}/{len(names)} {row['name']:40} {row.get('stage', ''):24} {row.get('seconds', '')}s {bad or 'ok'}",
                flush=True,
            )
            rows.append(row)
            if chosen.json:
                Path(chosen.json).write_text(json.dumps(rows, indent=1))
    if chosen.out:
        Path(chosen.out).write_text(table(rows))


if __name__ == "__main__":
    main()

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--match", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.only)))
        return
    from zoo import classifiers, families

    names = [n for n in (*classifiers(), *(f"timm/{n}" for n in families())) if chosen.match in n]
    rows = []
    with ThreadPoolExecutor(chosen.workers) as pool:
        for number, row in enumerate(pool.map(lambda n: in_process(n, chosen.only), names), 1):
            bad = {
                k: v
                for k, v in row.items()
                if isinstance(v, str)
                and k not in ("name", "input", "stage")
                and v != "yes"
                and not k.endswith(" at")
            }
            print(
                f"{number:4}/{len(names)} {row['name']:40} {row.get('stage', ''):24} {row.get('seconds', '')}s {bad or 'ok'}",
                flush=True,
            )
            rows.append(row)
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

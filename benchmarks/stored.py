"""Save and load every classifier of torchvision and one timm model of each architecture file.

    python benchmarks/stored.py --rows rows.jsonl --out docs/saving.md

Each model is built by ``get_model``, gets statistics that are not trivial, a block on a late stage
and a new head, runs, and is saved in one process; another process loads it and runs it on the
same input. Rows that are in the file of rows are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
LARGEST = 12e9
"""Bytes of memory that a model may need."""
LARGE = 50
"""Megabytes from which memory is compared with the file; the graph of a model takes a few itself."""


def ready() -> None:
    """Import what loading needs, and let one model pass through it."""
    import warnings

    import timm  # noqa: F401
    import torch

    from torchgraft import pipe, swap_head
    from torchgraft.sources.get import get_model
    from torchgraft.store.load import load
    from torchgraft.store.save import save

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load(save(pipe(get_model("squeezenet1_1"), swap_head(2)), f"{folder}/m.safetensors"))


def memory(field: str) -> int:
    """Return a figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def forget_peak() -> int:
    """Begin to measure the peak anew, and return what is taken now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def built(name: str) -> object:
    """Build a model with a head, unless it does not fit."""
    import torch

    from torchgraft.graph.history import Origin
    from torchgraft.sources.get import get_model, skeleton_of

    full = name if "/" in name else f"torchvision/{name}"
    options = {}
    bare = skeleton_of(Origin(full))
    if getattr(bare, "num_classes", None) == 0:
        options = {"num_classes": 1000}
        bare = skeleton_of(Origin(full, options=tuple(options.items())))
    size = sum(t.nbytes for t in bare.state_dict().values())
    if 4 * size > LARGEST:
        raise MemoryError(f"{size / 1e9:.1f} GB of weights")
    torch.manual_seed(0)
    return get_model(full, **options)


def saved(name: str, folder: Path) -> dict[str, object]:
    """Build, edit, run and save a model."""
    import torch
    from checks import flat
    from safetensors import safe_open
    from zoo import enliven, example, late_stage

    from torchgraft import GraftError, pipe, swap_head, wrap
    from torchgraft.blocks import se
    from torchgraft.store.reading import read_record
    from torchgraft.store.save import save

    model = enliven(built(name))
    x = example(model)
    with contextlib.suppress(GraftError):
        model = pipe(model, wrap(late_stage(model), se), example=x)
    with contextlib.suppress(GraftError):
        model = pipe(model, swap_head(10), example=x)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".se." in key or key.startswith("se."):  # or it would do nothing
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        outputs = flat(model.eval()(x))
    torch.save({"x": x, "outputs": [t.clone() for t in outputs]}, folder / "case.pt")
    start, before = time.perf_counter(), forget_peak()
    path = save(model, folder / "m.safetensors", max_shard_size="50GB")
    seconds, grown = time.perf_counter() - start, memory("VmHWM") - before
    record = read_record(path)
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    missing = set(model.state_dict()) - keys - set(record.ties)
    return {
        "name": name,
        "steps": len(record.recipe.steps),
        "tensors": len(keys),
        "ties": len(record.ties),
        "base": record.recipe.base,
        "size": path.stat().st_size,
        "record": len(record.to_text()),
        "save": seconds,
        "save_grown": grown,
        "problem": f"keys are not in the file: {missing}" if missing else "",
    }


def loaded(folder: Path) -> dict[str, object]:
    """Load a model and compare what it gives."""
    import torch
    from checks import flat

    from torchgraft.store.load import load

    ready()
    before, start = forget_peak(), time.perf_counter()
    model = load(folder / "m.safetensors")
    seconds, grown = time.perf_counter() - start, memory("VmHWM") - before
    case = torch.load(folder / "case.pt")
    with torch.no_grad():
        outputs = flat(model(case["x"]))
    same = len(outputs) == len(case["outputs"]) and all(map(_equal, outputs, case["outputs"]))
    return {"load": seconds, "load_grown": grown, "same": same}


def _equal(one: object, other: object) -> bool:
    import torch

    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(one.nan_to_num(), other.nan_to_num())
    )


def one(name: str, part: str, folder: Path) -> dict[str, object]:
    """Do one part in this process."""
    try:
        if part == "load":
            return loaded(folder)
        import warnings

        import torch

        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        return saved(name, folder)
    except MemoryError as error:
        return {"name": name, "skipped": f"it does not fit: {error}"}
    except Exception as error:
        return {"name": name, "problem": f"{part}: {type(error).__name__}: {error}"[:400]}


def measured(name: str) -> dict[str, object]:
    """Do both parts, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        row = _in_process(name, "save", folder)
        if row.get("problem") or row.get("skipped"):
            return row
        return {**row, **_in_process(name, "load", folder)}


def _in_process(name: str, part: str, folder: str) -> dict[str, object]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--part", part, "--folder", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
        return {"name": name, "problem": f"{part}: {type(error).__name__}"}


PAGE = """# Saving and loading

```python
>>> import tempfile
>>> from torchvision.models import squeezenet1_1
>>> from torchgraft import load, pipe, save, swap_head
>>> model = pipe(squeezenet1_1(), swap_head(5))
>>> with tempfile.TemporaryDirectory() as folder:
...     again = load(save(model, f"{folder}/five.safetensors"))
>>> again.classifier[1]
Conv2d(512, 5, kernel_size=(1, 1), stride=(1, 1))

```

One file of safetensors holds the tensors under the names of the state dict, and in its metadata what the model was made from: base, options, steps, digest of the base's weights, versions, modes, ties.
Any reader of the format reads the tensors. `load` builds the base without memory, does the steps on it, checks every name, shape and dtype, and reads each tensor into its place. Nothing in a file is run; no other file is opened.

- A base that no source knows: `load(path, base=<a function that builds it>)`.
- Large models: `save(model, path, max_shard_size="5GB")` writes shards and an index beside them; `load` takes either path.
- A file takes the place of an old one in one moment. A process that is killed leaves the old model whole, or the new one.
- One model gives the same bytes each time.
- Tensors that share memory without being one, steps that cannot be written, and tensors that the format does not know are errors.
- Tensors that a forward keeps for later runs and that are in no state dict are not saved; the builder computes them.
- Buffers that no state dict holds are computed by the builder; where the model has others, they stand in the file too.
- A model that was changed by hand since its recipe, or that no source knows, is saved without its base; `load` says what differs and asks for `base=`.
- Steps that filled tensors out of memory (`transfer`) are left out: the tensors are in the file.

## Files of strangers

Whatever is wrong with a file is a `CheckpointError` or another error of the library, before memory is taken for tensors: headers, records, shapes, dtypes, ties, steps and options of a base are bounded and checked.
`python benchmarks/fuzz_store.py --minutes 10` throws broken files at `load` and `read_record`; on two shared cores:

| minutes | reads | models loaded | typed errors | kinds of message | slowest | peak memory | others |
|---|---|---|---|---|---|---|---|
| 10.0 | 182,472 | 16,066 | CheckpointError 92,338, StoreError 62,314, RecipeError 11,754 | 2952 | 10.02 s | 1014 MB | 0 |

## Measured

By `benchmarks/stored.py`, which `make sweep` runs, on two cores of a shared machine: the 80 classification models of torchvision and one timm model of each architecture file, with random weights, statistics that are not trivial, a block on a late stage and a new head where the model allows it. Each is saved in one process and loaded in another; outputs are compared in evaluation, bit by bit. Memory is the peak of resident memory beyond what was taken before the call, after one small model was loaded.

"""


def page(rows: list[dict[str, object]]) -> str:
    """Write the page."""
    lines = ["| | models | bit-equal | base is known | most memory per byte of file, files over "]
    lines[0] += f"{LARGE} MB | largest file | does not fit |"
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for label, part in (("torchvision", False), ("timm", True)):
        chosen = [row for row in rows if str(row["name"]).startswith("timm/") is part]
        done = [row for row in chosen if "same" in row]
        ratios = [row["load_grown"] / row["size"] for row in done if row["size"] > LARGE * 1e6]
        cells = [
            len(chosen),
            sum(bool(row["same"]) for row in done),
            sum(bool(row["base"]) for row in done),
            f"{max(ratios, default=0):.2f}",
            f"{max((row['size'] for row in done), default=0) / 1e6:,.0f} MB",
            sum("skipped" in row for row in chosen),
        ]
        lines.append(f"| {label} | " + " | ".join(map(str, cells)) + " |")
    wrong = [row for row in rows if row.get("problem") or row.get("skipped") or not row.get("same", False)]
    lines += ["", "### What does not hold", ""]
    for row in wrong:
        said = row.get("problem") or row.get("skipped") or "the outputs differ"
        lines.append(f"- `{row['name']}`: {' '.join(str(said).split())[:300]}")
    lines += [] if wrong else ["Nothing."]
    lines += ["", "### All models", ""]
    titles = ("model", "steps", "tensors", "file, MB", "record, kB", "save, s", "load, s")
    lines.append("| " + " | ".join((*titles, "memory to save, MB", "memory to load, MB", "bit-equal")) + " |")
    lines.append("|---|" + "---:|" * 8 + "---|")
    for row in rows:
        if "same" not in row:
            continue
        figures = (
            row["steps"],
            row["tensors"],
            f"{row['size'] / 1e6:,.1f}",
            f"{row['record'] / 1e3:,.1f}",
            f"{row['save']:.2f}",
            f"{row['load']:.2f}",
            f"{row['save_grown'] / 1e6:,.0f}",
            f"{row['load_grown'] / 1e6:,.0f}",
            "yes" if row["same"] else "no",
        )
        lines.append(f"| `{row['name']}` | " + " | ".join(map(str, figures)) + " |")
    return PAGE + "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", default="")
    parser.add_argument("--part", default="save")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--match", default="")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir()) / "torchgraft-stored.jsonl")
    parser.add_argument("--out", default="", help="the page to write")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.part, chosen.folder)))
        return
    from zoo import classifiers, families

    names = [n for n in (*classifiers(), *(f"timm/{n}" for n in families())) if chosen.match in n]
    names = [n for n in names if not chosen.only or n in chosen.only]
    old = chosen.rows.read_text().splitlines() if chosen.rows.exists() else []
    rows = {str(row["name"]): row for row in map(json.loads, old)}
    waiting = [name for name in names if name not in rows or rows[name].get("problem")]
    with ThreadPoolExecutor(chosen.workers) as pool, chosen.rows.open("a") as file:
        for number, row in enumerate(pool.map(measured, waiting), 1):
            rows[str(row["name"])] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number:4}/{len(waiting)} {row['name']:40} {_short(row)}", flush=True)
    if chosen.out:
        Path(chosen.out).write_text(page([rows[name] for name in names if name in rows]))


def _short(row: dict[str, object]) -> str:
    if "same" not in row or row.get("problem"):
        return str(row.get("problem") or row.get("skipped"))
    size = row["size"]
    return (
        f"{'ok' if row['same'] else 'DIFFERS'} {row['steps']} steps, {size / 1e6:.1f} MB, base {row['base'] or 'UNKNOWN'}, "
        f"save {row['save']:.2f} s, load {row['load']:.2f} s, {row['load_grown'] / size:.2f} of the file"
    )


if __name__ == "__main__":
    main()

"""One process a model, within bounds; one line of results a model, keyed by what it depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import multiprocessing
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from columns import answers
from meta import answers_on_meta
from subject import Subject

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "timm", "transformers", "segmentation_models_pytorch", "vit_pytorch")
SECONDS = 90
"""Of processor time a model; a machine that is busy with other things takes longer."""
MEMORY = 16 * 2**30
BIG = 200_000_000
"""Parameters from which a model has the machine for itself."""
LARGEST = MEMORY // 20
"""Parameters that fit: weights, those of two copies, gradients, and what is saved."""
Row = dict[str, object]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runs", "transformers"])


def present() -> dict[str, str]:
    """Return what a result depends on: versions and the source."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "torchgraft").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return {**{p: importlib.metadata.version(p) for p in PACKAGES}, "source": digest.hexdigest()[:16]}


def child(sender: Connection, name: str, big: int, seconds: int) -> None:
    """Measure a model in this process, within bounds."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    measure(name, sender.send, big, LARGEST)


def measure(name: str, tell: Callable[[dict[str, object]], None], big: int, largest: int) -> None:
    """Ask everything of the model of that name, in this process, and tell the answers one by one.

    A model of more parameters than ``big`` waits for its turn, one of more than ``largest`` is not run.
    """
    started = time.process_time()
    try:
        if name.startswith("meta/"):
            found = answers_on_meta(name.removeprefix("meta/"))
        else:
            subject = Subject(name, min(big, largest))
            tell({"parameters": sum(p.numel() for p in subject.model.parameters()), "sizes": subject.sizes})
            found = answers(subject)
        for question, said in found:
            tell({"answers": {question: " ".join(said.split())[:600]}})
    except MemoryError as error:
        tell({"stopped": "waits" if big < largest else "too large", "parameters": int(str(error).split()[0])})
    except Exception as error:
        tell({"stopped": f"not built: {type(error).__name__}: {error}"[:400]})
    tell({"seconds": round(time.process_time() - started, 1)})


def measured(name: str, big: int = BIG, *, seconds: int = SECONDS, memory: int = MEMORY) -> Row:
    """Measure a model in a new process, and return what it told until its end."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=child, args=(sender, name, big, seconds))
    process.start()
    sender.close()
    row: Row = {"name": name, "answers": {}}
    until = time.monotonic() + 10 * seconds + 60
    while True:
        try:
            if receiver.poll(0.2):
                part = receiver.recv()
                row["answers"].update(part.pop("answers", {}))
                row.update(part)
            elif psutil.Process(process.pid).memory_info().rss > memory or time.monotonic() > until:
                row["stopped"] = f"over {memory / 2**30:.0f} GiB" if time.monotonic() < until else "hangs"
                process.kill()
        except (EOFError, psutil.NoSuchProcess):
            break
    process.join()
    if process.exitcode:
        over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row.setdefault("stopped", f"over {seconds} s" if over else f"ended with {process.exitcode}")
    return row


def rows_of(path: Path) -> dict[str, Row]:
    """Read the last row of each model; a line that was not written in full is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows[row["name"]] = row
        except ValueError:
            continue
    return rows


def run(names: list[str], path: Path, key: dict[str, str], jobs: int, *, again: bool = False) -> None:
    """Measure the models that have no row of this key yet, and add their rows to the file."""
    rows = rows_of(path)
    waiting = [name for name in names if again or rows.get(name, {}).get("key") != key]
    lock, done = threading.Lock(), 0
    path.parent.mkdir(parents=True, exist_ok=True)

    def one(name: str, big: int = BIG) -> str:
        nonlocal done
        row = measured(name, big)
        if row.get("stopped") == "waits":
            return name
        with lock, path.open("a") as file:
            file.write(json.dumps({**row, "key": key}) + "\n")
            done += 1
            bad = {
                q: said for q, said in row["answers"].items() if not said.startswith(("same", "not asked"))
            }
            print(
                f"{done:4}/{len(waiting)} {name:50} {row.get('seconds', '')}s {row.get('stopped', '')} {bad or ('' if 'stopped' in row else 'ok')}",
                flush=True,
            )
        return ""

    with ThreadPoolExecutor(jobs) as pool:
        alone = [name for name in pool.map(one, waiting) if name]
    for name in alone:
        one(name, LARGEST)

"""Apply a saved alignment to a large safetensors file, against a plain read and write of it, in one run.

Both write a file beside the source and wait until it is on the disk; each run is a process of its own,
whose resident memory is told as what it grew by while the file was written, and in all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from torchgraft.alignment.alignment import Alignment, Entry, Part
from torchgraft.alignment.files.container import header, listing
from torchgraft.alignment.files.rewrite import apply_to_file

CHUNK = 1 << 22
WIDTH = 1280


def peak(field: str) -> float:
    """Read a field of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field))


def shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a vision transformer, with as many blocks as the size asks for."""
    block = {
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
    }
    count = round(gigabytes * 1e9 / 4 / sum(torch.Size(shape).numel() for shape in block.values()))
    return {f"blocks.{at}.{name}": shape for at in range(count) for name, shape in block.items()}


def mapping(source: dict[str, tuple[int, ...]], *, plain: bool) -> Alignment:
    """Rename everything; and unless plain, split q, k, v and turn one of the weights."""
    target, entries = {}, []
    for key, shape in source.items():
        name = key.replace("blocks", "encoder.layer")
        if not plain and ".qkv." in key:
            for at, letter in enumerate("qkv"):
                made = name.replace("qkv", letter)
                target[made] = (WIDTH, *shape[1:])
                entries.append(Entry(made, (Part(key, rows=(at * WIDTH, (at + 1) * WIDTH)),)))
        elif not plain and "fc1.weight" in key:
            target[name] = shape[::-1]
            entries.append(Entry(name, (Part(key, axes=(1, 0)),)))
        else:
            target[name] = shape
            entries.append(Entry(name, (Part(key),)))
    return Alignment(source, target, tuple(entries))


def plain(source: Path, target: Path) -> None:
    """Read a file and write it, chunk by chunk."""
    buffer = memoryview(bytearray(CHUNK))
    with source.open("rb", buffering=0) as read, target.open("wb") as write:
        while got := read.readinto(buffer):
            write.write(buffer[:got])
        write.flush()
        os.fsync(write.fileno())


def child(what: str, folder: Path) -> None:
    source, target = folder / "source.safetensors", folder / "target.safetensors"
    torch.set_num_threads(1)
    before = peak("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    started = time.perf_counter()
    if what == "plain":
        plain(source, target)
    else:
        apply_to_file(Alignment.load(folder / f"{what}.json"), source, target)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "grown": peak("VmHWM") - before, "all": peak("VmHWM")}))
    target.unlink()


def run(what: str, folder: Path) -> dict[str, float]:
    out = subprocess.run(
        [sys.executable, __file__, "--child", what, "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def write_source(path: Path, held: dict[str, tuple[int, ...]]) -> None:
    with path.open("wb") as file:
        file.write(header([(key, "F32", shape) for key, shape in held.items()], {"format": "pt"}))
        for shape in held.values():
            file.write(torch.randn(shape).numpy().data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        held = shapes(args.gigabytes)
        write_source(folder / "source.safetensors", held)
        tensors, _ = listing(folder / "source.safetensors")
        size = (folder / "source.safetensors").stat().st_size
        largest = max(stored.size for stored in tensors.values())
        for what in ("renamed", "turned"):
            mapping(held, plain=what == "renamed").save(folder / f"{what}.json")
        found: dict[str, list[dict[str, float]]] = {"plain": [], "renamed": [], "turned": []}
        run("plain", folder)  # so that no one pays for memory and disk used for the first time
        for number in range(args.rounds):
            names = list(found)  # each is the first one as often
            for what in names[number % 3 :] + names[: number % 3]:
                found[what].append(run(what, folder))
    middle = {what: statistics.median(row["seconds"] for row in rows) for what, rows in found.items()}
    print(
        f"torch {torch.__version__}, {size / 1e9:.2f} GB in {len(tensors)} tensors, the largest {largest / 1e6:.0f} MB"
    )
    print("| what | seconds | MB/s | speed of plain | memory grown by | in all |")
    print("|---|---|---|---|---|---|")
    for what, rows in found.items():
        grown, whole = (max(row[field] for row in rows) for field in ("grown", "all"))
        print(
            f"| {what} | {middle[what]:.2f} | {size / 1e6 / middle[what]:.0f} | "
            f"{middle['plain'] / middle[what]:.2f} | {grown:.0f} MB | {whole:.0f} MB |"
        )


if __name__ == "__main__":
    main()

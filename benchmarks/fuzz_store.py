"""Throw broken files at the readers of models, and see that nothing but typed errors comes back.

    python benchmarks/fuzz_store.py --minutes 10

Valid files, shards and indices are cut, peppered with bytes, and changed at places of their
header and of the record in it; each result goes through ``read_record`` and ``load``. Anything
that is raised and is no ``GraftError``, any file other than the one meant that is opened, and
any input that takes longer than ten seconds or lets the process grow by more than 256 MB, is
kept in a folder and printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from torch import nn

from torchgraft import GraftError, adapt_input, freeze, pipe, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.sources.get import get_model
from torchgraft.store.load import load
from torchgraft.store.reading import read_record
from torchgraft.store.save import save

SECONDS, MEGABYTES = 10, 256
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, "", "0", "a", "F32", "F64"),
    *("BOOL", "\x00", "\ud800", "a" * 300, "..", "/etc/passwd", "m.safetensors", [], {}, [[]], [0], [1], [2**62] * 8, [1] * 70),
    *({"": True}, {"": 1}, {"tensor": [1, 3, 8, 8], "dtype": "float32"}, {"tuple": [1, {"list": []}]}, "0 2 3 1", "3 2 1 0"),
    *("torchvision/resnet18", "timm/resnet18", "hf//etc", "hf/x", "registered/x", "x/y", "resnet18", "timm/hf-hub:a/b"),
    *('freeze("0")', "swap_head(4)", 'wrap("0", se)', "features(0)", "adapt_input(5)", "drop_head()", "swap_head(10**9)"),
    *('load_weights("/etc/passwd")', 'inject("0", lora(2))', "eval('1')", "dilate(8)", "adapt_input(99999)", 'remove("0")'),
    *("swap_head(999999999)", 'inject("0", conv(9999))', 'freeze("**") >> unfreeze("0")', 'rename({"0": "1"})', "fpn(4)"),
]  # fmt: skip
RAW = [
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"NaN",
    b"1e999",
    b"9" * 40,
    b"\\u0000",
    b"\\ud800",
    b"[" * 2000,
]


class Given(nn.Module):
    """A base that no source knows, with a tie, a buffer and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(self.one(self.norm(self.stem(x)).mean((2, 3)))) + self.table)


def seeds(folder: Path) -> list[Path]:
    """Save models of several forms; an index has its shards beside it."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 8, 8)
    given = pipe(Given(), wrap("stem", se), freeze("one"), swap_head(3), example=(image,))
    known = pipe(get_model("squeezenet1_1", num_classes=3), freeze("features"), adapt_input(1))
    halved = pipe(Given()).half().to(memory_format=torch.channels_last)
    made = [(given, "5GB"), (known, "5GB"), (halved, "5GB"), (Given(), "5GB"), (given, 200), (halved, 100)]
    paths = []
    for number, (model, size) in enumerate(made):
        place = folder / f"seed{number}"
        place.mkdir()
        paths.append(save(model, place / "m.safetensors", max_shard_size=size))
    return paths


def spots(value: object) -> Iterator[tuple[object, object]]:
    """List the places in plain data: container and key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield value, key
            yield from spots(item)
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield value, key
            yield from spots(item)


def altered(value: object, rng: random.Random) -> object:
    """Change plain data in place at one place or at several."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        found = list(spots(value))
        if not found:
            return rng.choice(VALUES)
        held, key = rng.choice(found)
        kind = rng.randrange(7)
        if kind == 0:
            del held[key]
        elif kind == 1 and isinstance(held, list):
            held.insert(key, json.loads(json.dumps(rng.choice(VALUES))))
        elif kind == 2 and isinstance(held, dict):
            held[rng.choice([v for v in VALUES if isinstance(v, str)])] = held[key]
        elif kind == 3:
            other, place = rng.choice(found)
            held[key] = json.loads(json.dumps(other[place]))
        elif kind == 4 and type(held[key]) is int:
            held[key] += rng.choice([-1, 1, 8, 2**40])
        elif kind == 5 and isinstance(held[key], list):
            held[key] *= rng.choice([0, 2, 50])
        else:
            held[key] = json.loads(json.dumps(rng.choice(VALUES)))
    return value


def peppered(raw: bytes, rng: random.Random, upto: int) -> bytes:
    """Change bytes, most of them near the beginning."""
    for _ in range(rng.choice([1, 1, 2, 3, 10, 50])):
        start = rng.randrange(min(len(raw), upto) + 1)
        end = min(len(raw), start + rng.choice([0, 0, 1, 1, 2, 8]))
        new = rng.choice(
            [rng.choice(RAW), rng.randbytes(rng.choice([0, 1, 4])), raw[start:end] * rng.choice([0, 2])]
        )
        raw = raw[:start] + new + raw[end:]
    return raw


def broken(raw: bytes, rng: random.Random, *, index: bool) -> bytes:
    """Break a file: its bytes, its header, or its record."""
    kind = rng.randrange(10)
    if kind == 0:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind == 1:
        return peppered(raw, rng, len(raw))
    length = 0 if index else int.from_bytes(raw[:8], "little")
    if kind == 2:
        return peppered(raw, rng, 8 + length) if index else raw[:8] + peppered(raw[8:], rng, length)
    if kind == 3 and not index:
        return (
            rng.choice(
                [0, 1, length - 1, length + 1, length * 2, 2**40, 2**64 - 1, rng.randrange(2**64)]
            ).to_bytes(8, "little")
            + raw[8:]
        )
    held = json.loads(raw if index else raw[8 : 8 + length])
    metadata = held["metadata" if index else "__metadata__"]
    if kind > 4 and "torchgraft" in metadata:
        record = altered(json.loads(metadata["torchgraft"]), rng)
        text = json.dumps(record)
        metadata["torchgraft"] = (
            peppered(text.encode(), rng, len(text)).decode(errors="replace") if kind == 9 else text
        )
    else:
        held = altered(held, rng)
    text = json.dumps(held).encode()
    return text if index else len(text).to_bytes(8, "little") + text + raw[8 + length :]


@attrs.define
class Tally:
    """What came back."""

    runs: int = 0
    loaded: int = 0
    errors: collections.Counter[str] = attrs.field(factory=collections.Counter)
    messages: set[str] = attrs.field(factory=set)
    slowest: float = 0.0
    bad: list[str] = attrs.field(factory=list)


def attempt(path: Path, tally: Tally, base: object, label: str) -> None:
    """Read one file, and count what comes back."""
    before, started = peak(), time.perf_counter()
    signal.alarm(SECONDS)
    WATCHED[:] = [str(path.parent)]
    said = ""
    try:
        for read in (read_record, lambda file: load(file, base=base)):
            tally.runs += 1
            try:
                read(path)
                tally.loaded += 1
            except GraftError as error:
                str(error)
                tally.errors[type(error).__name__] += 1
                tally.messages.add(" ".join(error.summary.split()[:8]))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = f"{type(error).__name__}: {error}"[:300] + "\n" + traceback.format_exc()[-1500:]
    signal.alarm(0)
    WATCHED.clear()
    seconds = time.perf_counter() - started
    tally.slowest = max(tally.slowest, seconds)
    grown = peak() - before
    if tally.runs > 200 and grown > MEGABYTES:  # the first ones import
        said = said or f"grew by {grown:.0f} MB"
    if said:
        tally.bad.append(label)
        print(f"{label}: {said}", flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


WATCHED: list[str] = []
"""The folder of the file that is being read."""


def watch() -> None:
    """Refuse to open any file but those meant, while one is read, and to begin anything."""

    def hook(event: str, args: tuple) -> None:
        if not WATCHED:
            return
        if event == "open" and isinstance(args[0], str):
            known = args[0].startswith(
                (*WATCHED, sys.prefix, sys.base_prefix, "/proc", "/sys", "/usr", "/dev")
            )
            source = args[0].endswith((".py", ".pyc", ".pyi", "METADATA", ".so", ".pth")) or args[
                0
            ].startswith("<")
            if not (known or source):
                raise RuntimeError(f"opened {args[0]}")
        if event in ("os.system", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"):
            raise RuntimeError(f"{event} {args}"[:200])

    sys.addaudithook(hook)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="", help="a folder for what went wrong")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    faulthandler.enable()
    signal.signal(signal.SIGALRM, too_slow)
    tally, started = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        paths = seeds(Path(folder))
        for path in paths:
            load(path, base=Given if read_record(path).base_class == "Given" else None)
        watch()
        number = chosen.seed * 10_000_000
        while time.perf_counter() - started < chosen.minutes * 60:
            number += 1
            rng = random.Random(number)
            path = rng.choice(paths)
            index = path.suffix == ".json"
            base = rng.choice([Given, None]) if read_is_given(path) else None
            victim = rng.choice(sorted(path.parent.iterdir())) if index and rng.random() < 0.3 else path
            whole = victim.read_bytes()
            victim.write_bytes(made := broken(whole, rng, index=victim.suffix == ".json"))
            count = len(tally.bad)
            attempt(path, tally, base, f"input {number}")
            if len(tally.bad) > count and chosen.keep:
                Path(chosen.keep).mkdir(exist_ok=True)
                shutil.copytree(path.parent, Path(chosen.keep) / str(number), dirs_exist_ok=True)
            victim.write_bytes(whole)
            del made
    minutes = (time.perf_counter() - started) / 60
    kinds = ", ".join(f"{name} {count:,}" for name, count in tally.errors.most_common())
    print(
        "| minutes | reads | models loaded | typed errors | kinds of message | slowest | peak memory | others |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {minutes:.1f} | {tally.runs:,} | {tally.loaded:,} | {kinds} | {len(tally.messages)} "
        f"| {tally.slowest:.2f} s | {peak():.0f} MB | {len(tally.bad)} |"
    )
    sys.exit(bool(tally.bad))


def read_is_given(path: Path) -> bool:
    """Tell whether a seed is of a base that no source knows."""
    return path.parent.name != "seed1"


if __name__ == "__main__":
    main()

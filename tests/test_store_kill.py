"""A process that is killed while it saves leaves the old model whole, or the new one."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import struct
import time

import pytest
import torch
from torch import nn

from torchgraft.store.load import load
from torchgraft.store.save import save

SINGLE, SHARDED = 10**9, 200_000
TIMES = 30


def build() -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))


@pytest.mark.parametrize(
    "sizes",
    [(SINGLE, SINGLE), (SHARDED, SHARDED), (SHARDED, SINGLE)],
    ids=["one file", "shards", "in turns"],
)
def test_killed_at_any_moment(tmp_path, sizes):
    path, number = tmp_path / "m.safetensors", 0.0
    chance, start = random.Random(0), time.perf_counter()
    for size in sizes:
        save(_filled(1.0), tmp_path / "other.safetensors", max_shard_size=size)
    once = (time.perf_counter() - start) / 2
    finished = 0
    for _ in range(TIMES):
        last = _written_until_killed(path, sizes, chance.uniform(0.5, 3.5) * once)
        finished += last > 0
        if not last and not number and not _anything(path):
            continue
        model = load(path, base=build)
        found = {float(value) for tensor in model.parameters() for value in tensor.detach().unique()}
        # What was said to be saved, or what was being saved after it; or what stood before.
        assert found in ([{last}, {last + 1}] if last else [{number}, {1.0}])
        number = found.pop()
    assert finished


def _anything(path) -> bool:
    return path.exists() or path.with_name(f"{path.name}.index.json").exists()


def _written_until_killed(path, sizes, seconds: float) -> float:
    """Save one model after the other in a process that is killed; return the last that was saved."""
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        try:
            for number in itertools.count(1):
                save(_filled(number), path, max_shard_size=sizes[number % 2])
                os.write(writing, struct.pack("d", number))
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(writer, signal.SIGKILL)
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    with os.fdopen(reading, "rb") as said:
        return struct.unpack("d", said.read()[-8:] or bytes(8))[0]


@pytest.mark.parametrize("old", [SINGLE, SHARDED])
@pytest.mark.parametrize("new", [SINGLE, SHARDED])
def test_killed_between_any_two_steps(tmp_path, monkeypatch, old, new):
    """Stop at every change of the folder in turn: what is loaded is all old or all new."""
    stops, seen = 0, set()
    while True:
        folder = tmp_path / str(stops)
        folder.mkdir()
        path = folder / "m.safetensors"
        first, second = _filled(1.0), _filled(2.0)
        save(first, path, max_shard_size=old)
        with monkeypatch.context() as patch:
            stopped = _stopping(patch, stops)
            try:
                save(second, path, max_shard_size=new)
            except _Killed:
                pass
            finished = not stopped()
        found = {float(p.detach().flatten()[0]) for p in load(path, base=build).parameters()}
        assert len(found) == 1
        seen |= found
        if finished:
            assert found == {2.0}
            break
        stops += 1
    assert stops >= 2
    assert seen == {1.0, 2.0}


class _Killed(BaseException):
    """Stand for the end of the process."""


def _filled(value: float) -> nn.Module:
    model = build()
    for tensor in model.parameters():
        tensor.data.fill_(value)
    return model


def _stopping(patch, after: int):
    """Let calls that change a folder end the process at one of them, as if nothing came after."""
    done = [0]

    def counted(call):
        def checked(*args, **kwargs):
            if done[0] >= after:
                done[0] += 1
                raise _Killed
            done[0] += 1
            return call(*args, **kwargs)

        return checked

    for name in ("replace", "unlink", "rename", "fsync"):
        patch.setattr(os, name, counted(getattr(os, name)))
    return lambda: done[0] > after


def test_who_reads_the_old_file_goes_on_to_read_it(tmp_path):
    path = save(_filled(1.0), tmp_path / "m.safetensors")
    before = path.read_bytes()
    with path.open("rb") as reader:
        start = reader.read(100)
        save(_filled(2.0), path)
        assert start + reader.read() == before
    assert path.read_bytes() != before


def test_what_fails_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(_filled(1.0), path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchgraft.store.writing._bytes", full)
    for size in (SINGLE, SHARDED):
        with pytest.raises(OSError, match="No space left"):
            save(_filled(2.0), path, max_shard_size=size)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before


def test_shards_that_are_left_over_do_no_harm(tmp_path):
    """A writer that was killed leaves shards that no index names; they are no part of the model."""
    path = tmp_path / "m.safetensors"
    index = save(_filled(1.0), path, max_shard_size=SHARDED)
    (tmp_path / "m-00000000-00001-of-00002.safetensors").write_bytes(b"half")
    assert torch.equal(load(path, base=build)[0].weight, _filled(1.0)[0].weight)
    assert all("00000000" not in name for name in json.loads(index.read_text())["weight_map"].values())

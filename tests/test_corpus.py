"""The corpus itself: what it sees, where it stops, how a run goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "corpus")]

import columns  # noqa: E402
import page  # noqa: E402
import runs  # noqa: E402
from subject import NotAskedError, Subject  # noqa: E402

from torchgraft import GraftError, pipe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
KEY = {"torch": "1", "source": "a"}


@pytest.mark.parametrize("name", ["tests/Small", "tests/ByMode"])
def test_small_nets_hold_in_a_process_of_their_own(name):
    row = runs.measured(name)
    assert "stopped" not in row
    assert row["sizes"] == [(2, 16, 16), (3, 16, 24)]
    assert set(row["answers"]) == {"pipe", "deep", "again", "swap_head", "features", "freeze", "save"}
    assert {said.split(",")[0] for said in row["answers"].values()} == {"same"}


def test_bounds_of_time_memory_and_size():
    assert runs.measured("timm/resnet18", seconds=1)["stopped"] == "over 1 s"
    assert runs.measured("tests/Small", memory=1)["stopped"] == "over 0 GiB"
    assert runs.measured("tests/Small", big=10)["stopped"] == "waits"
    assert runs.measured("tests/NoSuchNet")["stopped"].startswith("not built: AttributeError")


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def measured(name, big=runs.BIG):
        asked.append(name)
        waits = {"stopped": "waits"} if name == "large" and big == runs.BIG else {}
        return {"name": name, "answers": {"pipe": "same"}, **waits}

    monkeypatch.setattr(runs, "measured", measured)
    rows = tmp_path / "rows.jsonl"
    runs.run(["a", "large", "b"], rows, KEY, 1)
    assert asked == ["a", "large", "b", "large"], "large ones alone, at the end"
    rows.write_text(rows.read_text() + '{"name": "c", "answ')
    runs.run(["a", "large", "b", "c"], rows, KEY, 1)
    assert asked[4:] == ["c"], "a line that was cut off does not count"
    runs.run(["a"], rows, {**KEY, "source": "b"}, 1)
    assert asked[5:] == ["a"], "another source is measured anew"
    assert {name: row["key"]["source"] for name, row in runs.rows_of(rows).items()}["a"] == "b"


def test_each_kind_of_answer(monkeypatch):
    subject = Subject("tests/Small", 10**9)

    def answer(graft):
        monkeypatch.setattr(columns, "graft", graft)
        return columns.answer(lambda: columns.piped(subject, ""), subject.calls[""][0])

    def moved(model, *steps):
        result = pipe(model)
        result.fc.bias.data[0] += 1e-3
        return result

    def statistics(model, *steps):
        result = pipe(model)
        result.stage[0].bn.momentum = 0.2
        return result

    def raising(error):
        def graft(model, *steps):
            raise error

        return graft

    assert answer(moved) == "WRONG: outputs differ in eval at size (2, 16, 16)"
    assert answer(statistics).startswith("WRONG")
    assert answer(raising(GraftError("no", found="it"))) == "refused: GraftError: no; it"
    assert answer(raising(KeyError("x"))).startswith("crash: KeyError: 'x' (test_corpus.py:")
    assert answer(raising(NotAskedError("none"))) == "not asked: none"


def test_the_page_counts_what_was_asked():
    said = {"pipe": "same", "pipe labels=": "refused: TraceError: why", "save": "not asked: none"}
    rows = [
        {"name": "timm/a", "key": KEY, "parameters": 5, "seconds": 1.0, "answers": said},
        {
            "name": "smp/b",
            "key": {},
            "parameters": 5,
            "answers": {"deep": "WRONG: x"},
            "stopped": "over 90 s",
        },
    ]
    text = page.page(json.loads(json.dumps(rows)), KEY)
    assert "Silently wrong: **1**. Refused: **1 of 3** (33.3%). Crashes: **0**." in text
    assert "- 1: TraceError: why: `timm/a` pipe labels=" in text
    assert "1 models were measured with another state of the source" in text
    assert "- over 90 s: `smp/b`" in text

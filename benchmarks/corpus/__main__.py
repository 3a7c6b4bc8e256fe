"""Ask everything of every model of the corpus, each in a process of its own; write ``docs/corpus.md``.

    python benchmarks/corpus --only 'timm/*' --jobs 2

A row of the results is keyed by the versions of the packages and a hash of the source, so that a
run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("benchmarks", "tests/support", "src")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="models to measure")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--meta", action="store_true", help="all models of timm on meta tensors instead")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--again", action="store_true", help="also what has a row already")
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks" / "results" / "corpus.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "corpus.md")
    chosen = parser.parse_args()
    from runs import present, rows_of, run

    key = present()
    if not chosen.page_only:
        if chosen.meta:
            import timm

            names = [f"meta/{name}" for name in timm.list_models()]
        else:
            import cases

            names = cases.names()
        names = [n for n in names if not chosen.only or any(fnmatch.fnmatch(n, glob) for glob in chosen.only)]
        run(names, chosen.rows, key, chosen.jobs, again=chosen.again)
    from page import page

    chosen.out.write_text(page(list(rows_of(chosen.rows).values()), key))


if __name__ == "__main__":
    main()

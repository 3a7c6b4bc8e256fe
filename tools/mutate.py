"""Change the library in one place at a time and see whether a test fails.

Mutants are made by mutmut's operators and two more (a condition turned round, a call left out), at a seeded
draw: lines at even distances through all files, one change a line. Each is tried on a copy of the tree, in a
child of this process, which has imported torch and pytest but not the library, by the tests on that line,
quick ones first. A run that is broken off goes on where it stopped; notes in the report are kept.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import pytest
import timm  # noqa: F401  # imported once, for all children
import torch
import torchvision  # noqa: F401  # imported once, for all children
from hypothesis import HealthCheck, Phase, settings
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "src/torchgraft"
PARTS = ("edits/**/*.py", "graph/**/*.py", "select/**/*.py", "transform.py")
OPTIONS = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
NO_TESTS, WRONG_TREE = 5, 99  # exit codes of pytest and of our own
ENDS = {0: "survived", 1: "failed", 2: "import", 3: "import", 4: "import", -signal.SIGALRM: "timeout"}
HEAD = """# Mutants

`make mutants` changes one place of the library at a time and runs the quick tests that run that line; where a
survivor has 0 tests, none does. Lines are drawn at even distances (seed {seed}), without types and messages.
A mutant is killed by a failing test, a broken import, a crash, or a test that runs into its time limit.

| | mutants | failed | import | crash | timeout | survived | score |
|---|---|---|---|---|---|---|---|
"""
Seconds = dict[str, float]
Mutant = dict[str, Any]  # file, line, change, code; when tried: end, by, tests, took


def coarse(node: cst.If | cst.While | cst.CompIf | cst.Expr) -> Iterator[cst.CSTNode]:
    """Turn a condition round, or leave out a statement that is one call."""
    if not isinstance(node, cst.Expr):
        inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))
    elif isinstance(node.value, cst.Call):
        yield cst.Pass()


# types, messages (they have golden tests), what cannot happen; decorators are left as mutmut leaves them
PASSED_OVER = (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.Import, cst.ImportFrom)
OPERATORS = [*mutation_operators, ((cst.If, cst.While, cst.CompIf, cst.Expr), coarse)]


def changes(node: cst.CSTNode, positions: Mapping[cst.CSTNode, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield line, old and new of the changes in a node, less those that no test is meant to see."""
    of = {cst.Call: "func", cst.If: "test"}.get(type(node), "")
    of = node.targets[0].target if isinstance(node, cst.Assign) else getattr(node, of, None)
    name = of.value if isinstance(of, cst.Name) else ""
    alias = isinstance(node, cst.Assign) and re.fullmatch(r"_?[A-Z]([a-z]\w*)?", name)
    if alias or isinstance(node, PASSED_OVER) or re.fullmatch("TYPE_CHECKING|cast|__all__|.*Error", name):
        return
    if node in positions and name not in ("isinstance", "len"):  # with None for an argument they only raise
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                yield from ((positions[node].start.line, node, new) for new in operator(node))
    for part in node.children:
        yield from changes(part, positions)


def sample(source: Path, count: int, seed: int) -> list[Mutant]:
    """Draw mutants: lines at even distances through all files, and one change of each line."""
    pool = []
    for file in [file for part in PARTS for file in sorted(source.glob(part))]:
        wrapper, name = MetadataWrapper(cst.parse_module(file.read_text())), str(file.relative_to(source))
        found = sorted(changes(wrapper.module, wrapper.resolve(PositionProvider)), key=itemgetter(0))
        for line, group in itertools.groupby(found, key=itemgetter(0)):
            pool.append((name, wrapper.module, *random.Random(f"{seed} {name} {line}").choice(list(group))))
    count, first = min(count, len(pool)), random.Random(seed).random()
    drawn = [pool[int((first + number) * len(pool) / count)] for number in range(count)]
    return [
        {"file": name, "line": line, "change": described(of, *pair), "code": of.deep_replace(*pair).code}
        for name, of, line, *pair in drawn
    ]


def described(module: cst.Module, *nodes: cst.CSTNode) -> str:
    """Show what changes, with a little of what stands around it."""
    old, new = (" ".join(re.sub(r"(?m)^\s*#.*$", "", module.code_for_node(n)).split()) for n in nodes)
    common = os.path.commonprefix
    start = len(common([old, new]))
    head, tail = max(start - 24, 0), max(len(common([old[start:][::-1], new[start:][::-1]])) - 24, 0)
    shown = ("…" * bool(head) + text[head : len(text) - tail] + "…" * bool(tail) for text in (old, new))
    return " → ".join(f"`{text}`" for text in shown).replace("|", "\\|")


class Watch:
    """The plugin of one run: picks and sorts the tests, times them, and notes those that fail."""

    def __init__(self, tree: Path, chosen: Seconds | None) -> None:
        self.tree, self.chosen = tree, chosen
        self.said: dict[str, Any] = {"failed": [], "seconds": {}}
        self.until = time.monotonic() + (3600 if chosen is None else 120 + 5 * sum(chosen.values()))
        self.limit(60)

    def limit(self, seconds: float) -> None:
        """Let the process end by a signal, whose default action works in the middle of C code too."""
        signal.setitimer(signal.ITIMER_REAL, max(min(seconds, self.until - time.monotonic()), 0.01))
        (self.tree / "said.json").write_text(json.dumps(self.said))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen tests, the quick ones first, else in their usual order."""
        if (chosen := self.chosen) is not None:
            items[:] = sorted((i for i in items if i.nodeid in chosen), key=lambda i: chosen[i.nodeid] > 0.3)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Set the clock of one test."""
        self.said["last"] = nodeid
        self.limit(15 + 10 * (self.chosen or {}).get(nodeid, 60))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how long a test took, and whether it failed."""
        self.said["seconds"][report.nodeid] = self.said["seconds"].get(report.nodeid, 0) + report.duration
        self.said["failed"] += [report.nodeid] * report.failed


def fork(tree: Path, chosen: Seconds | None) -> int:
    """Start tests on a copy of the tree in a child: the chosen up to the first failure, or all, measured."""
    if pid := os.fork():
        return pid
    code = WRONG_TREE
    try:
        os.setsid()
        os.chdir(tree)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # some mutants allocate without end
        sys.path[:1] = [str(tree / "src"), str(tree)]  # before the path of the installed package
        os.environ["PYTHONPATH"] = str(tree / "src")
        sys.dont_write_bytecode = chosen is not None
        watch = Watch(tree, chosen)
        if chosen == {}:
            os._exit(0)
        wanted = ["-x", *dict.fromkeys(name.split("::")[0] for name in chosen or ())]  # in the usual order
        wanted = ["--cov=src", "--cov-context=test", "--cov-report="] if chosen is None else wanted
        code = int(pytest.main([*OPTIONS, *wanted], plugins=[watch]))
        watch.limit(60)
        ours = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("torchgraft")]
        if not all(file.startswith(str(tree / "src")) for file in ours) or (not ours and code <= 1):
            code = WRONG_TREE
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(running: dict[int, tuple[Any, ...]]) -> tuple[Any, ...]:
    """Wait for a child; return what is noted for it, how its tests ended, and what the plugin said."""
    pid, status = os.wait()
    noted, code = running.pop(pid), os.waitstatus_to_exitcode(status)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that a test has started
    if code in (NO_TESTS, WRONG_TREE):
        sys.exit(f"no tests, or not of the copy: {(noted[0] / 'output.txt').read_text()[-3000:]}")
    said = json.loads((noted[0] / "said.json").read_text())
    return *noted, ENDS.get(code if said["failed"] or code != 1 else 2, "crash"), said


def survey(tree: Path, longest: float) -> tuple[Seconds, dict[str, dict[int, list[str]]]]:
    """Run all tests unchanged; return the seconds of each, and for each line of each file the tests on it."""
    seconds: Seconds | None = None
    for again in itertools.count():  # some tests may fail in the order of the trials
        _, end, said = wait({fork(tree, seconds): (tree,)})
        if end not in ("survived", "failed"):
            sys.exit(f"without a change: {end}, {(tree / 'output.txt').read_text()[-3000:]}")
        taken = (seconds or {}) | said["seconds"]
        seconds = {n: t for n, t in taken.items() if t <= longest and n not in said["failed"]}
        print(f"{len(seconds)} tests, {sum(seconds.values()):.0f} s; failed:", *said["failed"], flush=True)
        if again and end == "survived":
            break
    data = coverage.CoverageData(str(tree / ".coverage"))
    data.read()
    lines = {
        str(file).partition(f"/{SOURCE}/")[2]: data.contexts_by_lineno(file) for file in data.measured_files()
    }
    return seconds, lines


def chosen_for(mutant: Mutant, seconds: Seconds, contexts: dict[int, list[str]]) -> Seconds:
    """Choose the tests that run the line; for what runs on import only, those of what is around it."""
    nodes = [n for n in ast.walk(ast.parse(mutant["code"])) if isinstance(n, ast.stmt)]
    within = [(n.lineno, n.end_lineno) for n in nodes if n.lineno <= mutant["line"] <= n.end_lineno]
    for first, last in [(mutant["line"], mutant["line"]), *reversed(within), (1, 9999)]:
        names = {n.rpartition("|")[0] for line in contexts if first <= line <= last for n in contexts[line]}
        kept = {name: taken for name, taken in seconds.items() if name in names}
        if kept or (not names and (first, last) == within[-1]):  # not even on import
            return kept
    return {}


def report(out: Path, mutants: list[Mutant], seed: int) -> None:
    """Write the counts and scores, and the survivors with the notes that stand there already."""
    old = out.read_text() if out.exists() else ""
    notes = {row[:2]: row[2] for row in re.findall(r"(?m)^\| (\S+):\d+ \| (.*?) \| \d+ \| (.*) \|$", old)}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    lines, survivors = [], ["", "## Survivors", "", "| where | change | tests | note |", "|---|---|---|---|"]
    for mutant in mutants:
        counts[mutant["file"].split("/")[0]][mutant["end"]] += 1
        counts["**all**"][mutant["end"]] += 1
        if mutant["end"] == "survived":
            end = f"{mutant['tests']} | {notes.get((mutant['file'], mutant['change']), '')} |"
            survivors.append(f"| {mutant['file']}:{mutant['line']} | {mutant['change']} | {end}")
    for name, count in sorted(counts.items(), reverse=True):
        ends = " | ".join(str(count[end]) for end in ("failed", "import", "crash", "timeout", "survived"))
        lines.append(f"| {name} | {count.total()} | {ends} | {1 - count['survived'] / count.total():.1%} |")
    out.write_text(HEAD.format(seed=seed) + "\n".join([*lines, *survivors, ""]))


def main() -> None:
    """Try the mutants that have no result yet, several at a time, write down each result, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "build/mutants.json", help="results so far")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/mutation.md")
    parser.add_argument("--again", action="store_true", help="try the survivors once more, after new tests")
    for name, default in {"count": 320, "seed": 1, "workers": 2, "examples": 20, "longest": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{default} if not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "OMP_NUM_THREADS": "1"}
    quick = settings(max_examples=given.examples, derandomize=True, database=None, deadline=None)
    phases = [Phase.explicit, Phase.generate]  # the smallest example is of no use here
    settings.register_profile("mutants", quick, phases=phases, suppress_health_check=list(HealthCheck))
    with tempfile.TemporaryDirectory() as work:
        whole, *trees = (Path(work).resolve() / str(number) for number in range(given.workers + 1))
        shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
        texts = b"".join(file.read_bytes() for file in sorted((whole / SOURCE).rglob("*.py")))
        state = {"of": [hashlib.sha256(texts).hexdigest(), given.count, given.seed]}
        state["mutants"] = sample(whole / SOURCE, given.count, given.seed)
        if given.json.exists():
            before = json.loads(given.json.read_text())
            if before["of"] != state["of"]:
                sys.exit(f"{given.json} is of other code or another draw: remove it to begin anew")
            state = before
        given.json.parent.mkdir(parents=True, exist_ok=True)
        todo = [m for m in state["mutants"] if "end" not in m or (given.again and m["end"] == "survived")]
        seconds, contexts = survey(whole, given.longest) if todo else ({}, {})
        for tree in trees:
            shutil.copytree(whole, tree)
        running: dict[int, tuple[Path, Mutant, float]] = {}
        while todo or running:
            if todo and trees:
                tree, mutant = trees.pop(), todo.pop(0)
                (tree / SOURCE / mutant["file"]).write_text(mutant["code"])
                chosen = chosen_for(mutant, seconds, contexts.get(mutant["file"], {}))
                mutant["tests"] = len(chosen)
                running[fork(tree, chosen)] = (tree, mutant, time.monotonic())
                continue
            tree, mutant, started, end, said = wait(running)
            shutil.copy2(whole / SOURCE / mutant["file"], tree / SOURCE / mutant["file"])
            trees.append(tree)
            by, took = said["failed"] or said.get("last"), time.monotonic() - started
            mutant |= {"end": end, "by": by, "took": took}
            given.json.write_text(json.dumps(state, indent=1))
            print(len(todo), "left;", end, mutant["file"], mutant["line"], mutant["change"], flush=True)
    report(given.out, state["mutants"], given.seed)


if __name__ == "__main__":
    main()

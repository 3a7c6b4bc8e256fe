"""Write the tables of ``docs/laws.md`` from the docstrings of the property tests.

The page says what is promised and what shows it. ``python tools/laws.py`` writes what stands
below its mark; with ``--check`` it fails where that is stale. The tests are read and not imported.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
LAWS = ROOT / "property_tests" / "laws"
PAGE = ROOT / "docs" / "laws.md"
GROUPS = {
    "test_purity.py": "Purity",
    "test_composition.py": "Composition",
    "test_round_trips.py": "Round trips",
    "test_meaning.py": "Meaning",
    "test_targets.py": "Targets",
    "test_weights.py": "Weights",
}
MARK = "<!-- What follows is written by tools/laws.py from the docstrings of the tests. -->"


@attrs.frozen
class Law:
    """One test of one law."""

    number: int
    says: str
    test: str
    file: str
    known: str


def laws() -> Iterator[Law]:
    """Read the tests.

    Raises:
        ValueError: a test does not say which law it is of.
    """
    for file in GROUPS:
        for node in ast.parse((LAWS / file).read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            name = re.match(r"test_law_(\d+)_", node.name)
            said = re.fullmatch(r"Law (\d+): (.+)\.", " ".join((ast.get_docstring(node) or "").split()))
            if not name or not said or name[1] != said[1]:
                raise ValueError(
                    f"{file}:{node.lineno}: {node.name} and its docstring begin with one number of a law"
                )
            yield Law(int(name[1]), said[2], node.name, file, known(node))


def known(node: ast.FunctionDef) -> str:
    """Return why a test is expected to fail; empty where it is not."""
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.xfail":
            return next(str(ast.literal_eval(k.value)) for k in mark.keywords if k.arg == "reason")
    return ""


def tables() -> str:
    """Write the tables, one for each group of laws."""
    found = list(laws())
    missing = set(range(1, 26)) - {law.number for law in found}
    if missing:
        raise ValueError(f"no test of law {', '.join(map(str, sorted(missing)))}")
    lines = []
    for file, group in GROUPS.items():
        head = [f"## {group}", "", f"`property_tests/laws/{file}`", ""]
        rows = [(law.number, law.says + _but(law), f"`{law.test}`") for law in found if law.file == file]
        said = [f"| {number} | {says} | {test} |" for number, says, test in sorted(rows, key=lambda r: r[0])]
        lines += ["", *head, "| law | what holds | shown by |", "|---|---|---|", *said]
    return "\n".join([*lines, ""])


def _but(law: Law) -> str:
    return f" (does not hold yet: {law.known})" if law.known else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the page is stale")
    written, mark, old = PAGE.read_text().partition(f"{MARK}\n")
    if not parser.parse_args().check:
        PAGE.write_text(f"{written}{mark}{tables()}")
    elif old != tables():
        sys.exit("docs/laws.md is stale; write: python tools/laws.py")

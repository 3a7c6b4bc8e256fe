"""The page of the corpus: what is wrong on top, then what is refused and why, then every model."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from columns import COLUMNS

Row = dict[str, object]
KINDS = ("same", "refused", "WRONG", "crash", "not asked")
ROOT = Path(__file__).resolve().parents[2]

HEAD = """# The corpus

Made by `make corpus` (`benchmarks/corpus`): one model of each architecture file of timm, of each family of torchvision, of each vision type of transformers (small configs), every architecture of segmentation_models_pytorch over ten encoders, and the files of vit_pytorch, with random weights and statistics that are not trivial; and all models of timm on the meta device.
Each model runs in a process of its own, with at most 90 s of processor time and 16 GiB of memory.

- pipe, deep: `pipe(m)`, and a block that multiplies by one behind the leaf in the middle of the order of execution, are bit-equal to `m` under one seed at two sizes, in evaluation and training by turns, and so are all buffers afterwards; keys, order and classes are kept, and the block runs as often as the leaf. Asked once for each optional argument of the forward that can be filled, and for all of them at once.
- again: the model with the block inside can be edited again, told about by `explain` and deep-copied, and is still bit-equal.
- swap_head: the result equals the model with the new layers set in the place of the old ones; outputs change their shape.
- features: the maps of all strides are what hooks at those places see.
- freeze: over a step of training the frozen part keeps the bits of parameters and statistics, and the rest still trains.
- save: a model with a block inside is bit-equal after `save` and `load` onto a base that was built anew.
- structure, keys, shapes: classes by path, names and shapes of the state dict, shapes of outputs and of what `shapes` tells, on meta tensors, after `pipe(m)` and with the block.

An answer is *same*; *refused* by a typed error; **WRONG**, different without a word; *crash*, an error without a type of ours; or *not asked*, where the model itself cannot do it or has no such thing.
"""


def asked(rows: list[Row]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the model, the question, the kind of the answer and the answer."""
    for row in rows:
        for question, said in row.get("answers", {}).items():
            yield row["name"], question, re.split("[:,]", said)[0], said


def page(rows: list[Row], key: dict[str, str]) -> str:
    """Write the results as a page."""
    rows = sorted(rows, key=lambda row: str(row["name"]))
    found = list(asked(rows))
    counts = Counter(kind for *_, kind, _ in found)
    total = sum(counts[kind] for kind in KINDS[:4])
    old = sum(row["key"] != key for row in rows)
    lines = [
        HEAD,
        f"Silently wrong: **{counts['WRONG']}**. Refused: **{counts['refused']} of {total}** ({counts['refused'] / max(total, 1):.1%}). Crashes: **{counts['crash']}**.",
        f"{len(rows)} models, {sum('stopped' in row for row in rows)} of them not measured in full. "
        + ", ".join(f"{k} {v}" for k, v in key.items() if k != "source")
        + (f". {old} models were measured with another state of the source." if old else "."),
        "",
        *_table(found),
    ]
    for kind, title in (("WRONG", "Silently wrong"), ("crash", "Crashes"), ("refused", "Refused")):
        lines += ["", f"## {title}", "", *_reasons(found, kind)]
    lines += ["", "## Not measured in full", ""]
    stopped = defaultdict(list)
    for row in rows:
        if "stopped" in row:
            size = f" ({row['parameters'] / 1e6:,.1f} M)" if row.get("parameters") else ""
            stopped[_plain(str(row["stopped"]))].append(f"`{row['name']}`{size}")
    lines += [f"- {reason}: {', '.join(names)}" for reason, names in sorted(stopped.items())] or ["None."]
    return "\n".join([*lines, "", "## Every model", "", *_models(rows), ""])


def _table(found: list[tuple[str, str, str, str]]) -> list[str]:
    """Count the answers by source and column."""
    lines = ["| | column | asked | same | refused | WRONG | crash | not asked |", "|---|---|" + "---:|" * 6]
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for name, question, kind, _ in found:
        counts[name.partition("/")[0], question.split()[0]][kind] += 1
    order = {column: number for number, column in enumerate(COLUMNS)}
    for (source, column), kinds in sorted(counts.items(), key=lambda one: (one[0][0], order[one[0][1]])):
        cells = [sum(kinds.values()) - kinds["not asked"], *(kinds[kind] for kind in KINDS)]
        lines.append(f"| {source} | {column} | " + " | ".join(map(str, cells)) + " |")
    return lines


def _reasons(found: list[tuple[str, str, str, str]], wanted: str) -> list[str]:
    """List the answers of a kind by what they say, the most frequent first."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, question, kind, said in found:
        if kind == wanted:
            places[_plain(said.partition(": ")[2])].append(f"`{name}` {question}")
    lines = []
    for reason, where in sorted(places.items(), key=lambda one: -len(one[1])):
        more = f" and {len(where) - 12} more" if len(where) > 12 else ""
        lines.append(f"- {len(where)}: {reason}: {', '.join(where[:12])}{more}")
    return lines or ["None."]


def _plain(text: str) -> str:
    """Leave out where things are installed."""
    text = re.sub(r"\S*/(site-packages|corpus_extra)/", "", " ".join(text.split()))
    return text.replace(str(ROOT), "").replace(str(Path(sys.prefix)), "").replace("|", "\\|")[:300]


def _models(rows: list[Row]) -> list[str]:
    """Write a line for each model that ran with values: the answer of each column that is the worst."""
    columns = COLUMNS[:7]
    lines = [
        "| model | parameters, M | sizes | ways | " + " | ".join(columns) + " | s |",
        "|---|---:|---|---:|" + "---|" * 7 + "---:|",
    ]
    rank = {kind: number for number, kind in enumerate(("not asked", *KINDS[:2], "crash", "WRONG"))}
    for row in rows:
        if not row.get("answers") or row["name"].startswith("meta/"):
            continue
        worst: dict[str, str] = {}
        for _, question, kind, _ in asked([row]):
            column = question.split()[0]
            worst[column] = max(worst.get(column, kind), kind, key=rank.__getitem__)
        ways = sum(question.split()[0] == "pipe" for question in row["answers"])
        sizes = ", ".join("x".join(map(str, size)) for size in row.get("sizes", ()))
        cells = [
            f"{row['parameters'] / 1e6:.1f}",
            sizes,
            ways,
            *(worst.get(c, "") for c in columns),
            row.get("seconds", ""),
        ]
        lines.append(f"| `{row['name']}` | " + " | ".join(map(str, cells)) + " |")
    return lines

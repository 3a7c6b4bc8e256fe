"""Align pairs of independent implementations by simple methods and by ours; write ``docs/alignment.md``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import multiprocessing
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
OURS, STRUCTURE, BARE = "ours", "ours, by structure", "ours, from a bare state dict"
Row = dict[str, object]


def methods() -> dict[str, Callable[[nn.Module, nn.Module, Tensor], dict[str, Tensor]]]:
    """List what is compared, ours first: where it solves a pair, it tells the truth for the rest."""
    from simple_aligners import call_order, equal_names, longest_suffix, position_and_shape

    from torchgraft.alignment.align import align

    return {
        OURS: lambda a, b, x: align(a, b, example=x).apply(a.state_dict()),
        STRUCTURE: lambda a, b, x: align(a, b, example=x, evidence="structure").apply(a.state_dict()),
        BARE: lambda a, b, x: align(dict(a.state_dict()), b, example=x).apply(a.state_dict()),
        "equal names": equal_names,
        "longest common suffix": longest_suffix,
        "position and shape": position_and_shape,
        "call order and shape": call_order,
    }


def prepare() -> None:
    """Keep a worker to one core, and quiet."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def row(name: str) -> Row:
    """Judge every method on one pair."""
    from pairs import GROUPS, PAIRS, case, judge
    from truths import known, made, read

    found: Row = {"pair": name, "family": GROUPS[name.rpartition("_")[0]].family, "methods": {}}
    try:
        held = case(PAIRS[name])
        states = held.source.state_dict(), held.target.state_dict()
        truth = made(read(name), *states) if name in known() else None
    except Exception as error:
        return {**found, "error": said(error)}
    for method, align in methods().items():
        given: dict[str, Tensor] = {}
        try:
            judged = judge(PAIRS[name], kept(align, given), truth)
        except Exception as error:
            found["methods"][method] = {"error": said(error), "missing": len(held.needed)}
            continue
        if method == OURS and truth is None and judged.solved:
            truth = given
        found["methods"][method] = {
            "right": judged.right,
            "wrong": judged.wrong,
            "missing": judged.missing,
            "differs": judged.error,
            "seconds": judged.seconds,
            "solved": judged.solved and not judged.wrong and not judged.missing,
        }
    return {**found, "truth": truth is not None}


def kept(
    align: Callable[..., dict[str, Tensor]], given: dict[str, Tensor]
) -> Callable[..., dict[str, Tensor]]:
    """Let an aligner leave a copy of what it gives."""

    def run(source: nn.Module, target: nn.Module, x: Tensor) -> dict[str, Tensor]:
        result = align(source, target, x)
        given.update({key: value.detach().clone() for key, value in result.items()})
        return result

    return run


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


PAGE = """# Weight alignment side by side

Made by `python benchmarks/alignment.py`. A pair is two independent implementations of one function (torchvision, timm, Hugging Face), each with random weights of its own; an aligner is asked for the weights of the second out of the first. `tests/support/pairs.py` lists the pairs.

A pair is solved when every tensor that counts is right and the outputs then agree to 1e-4 of the largest output. A target tensor is right when it holds the very values that it needs, wherever the output depends on them; dead tensors (key biases of attention, index tables, counters) do not count. What is needed is written down for some pairs in `tests/data/alignment`; elsewhere a mapping of ours that makes the outputs agree tells it, for all values are random and distinct. Where neither tells, right and wrong are unknown, and only `missing` is counted.

- equal names: the tensor of the same name and shape.
- longest common suffix: the tensor of the same shape whose name ends in the most equal words (of several the one of the most alike length), if there is one such.
- position and shape: the k-th tensor of a shape is taken from the k-th of that shape, in the order of registration.
- call order and shape: the k-th leaf module of a type and shapes, in the order of calls, takes the tensors of the k-th such.
- ours: `align(source, target, example=x)`; by structure: with `evidence="structure"`, which runs neither model on values; from a bare state dict: `align(source.state_dict(), target, example=x)`, without the source model.

"""


def page(rows: list[Row]) -> str:
    """Write the results as a page."""
    families = len({found["family"] for found in rows})
    unknown = [found["pair"] for found in rows if not found.get("truth")]
    lines = [
        f"{len(rows)} pairs of {families} families; for {len(rows) - len(unknown)} it is known what is right.",
        "", "## By method", "",
        "| method | pairs solved | keys right | keys wrong | keys missing | failed |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    names = list(methods())
    for method in [*names[3:], *names[:3]]:
        got = [found["methods"].get(method, {}) for found in rows]
        total = [sum(one.get(cell) or 0 for one in got) for cell in ("right", "wrong", "missing")]
        solved, failed = sum(one.get("solved", False) for one in got), sum("error" in one for one in got)
        lines.append(
            f"| {method} | {solved} of {len(rows)} | " + " | ".join(map(str, total)) + f" | {failed} |"
        )
    lines += [
        "",
        "## By pair",
        "",
        "Right, wrong and missing; then the difference of the outputs, and seconds.",
        "",
    ]
    lines += [
        "| pair | family | ours | differs | seconds | by structure | bare state dict |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        ours, others = (
            found["methods"].get(OURS, {}),
            [found["methods"].get(m, {}) for m in (STRUCTURE, BARE)],
        )
        cells = [
            counts(ours),
            number(ours, "differs", ".1e"),
            number(ours, "seconds", ".2f"),
            *map(counts, others),
        ]
        lines.append(f"| `{found['pair']}` | {found['family']} | " + " | ".join(cells) + " |")
    failures = defaultdict(list)
    for found in rows:
        for method, one in {"building": found, **found["methods"]}.items():
            if "error" in one:
                failures[f"{method}: {one['error']}"].append(f"`{found['pair']}`")
    if failures:
        lines += ["", "## What failed", ""]
        lines += [f"- {what} ({len(named)}: {', '.join(named)})" for what, named in failures.items()]
    return PAGE + "\n".join(lines) + "\n"


OWN = """## A model's own state dict

Made by `python benchmarks/alignment.py --own`. A model is asked for its weights out of its own bare state dict, under six kinds of names: its own; those with a prefix; with other words for stages, blocks, layers and features; with a prefix and other words for some layers; with no word kept; with other words and sorted by the alphabet, as in many files. `tests/support/own.py` lists the models. A tensor is right when it takes its own values, open when it is ambiguous or missing; a wrong one takes others.

"""


def own_row(name: str) -> Row:
    """Align a model's own state dict with it, under all kinds of names."""
    from own import WAYS, called, own

    from torchgraft.alignment.align import align

    model, x = own(name)
    found: Row = {"model": name, "tensors": len(model.state_dict()), "ways": {}}
    for way in WAYS:
        state, names = called(model, way)
        made = align(state, model, example=x).apply(state)
        right = sum(value.reshape(-1).equal(state[names[key]].reshape(-1)) for key, value in made.items())
        found["ways"][way] = (right, len(made) - right, found["tensors"] - len(made))
    return found


def own_page(rows: list[Row]) -> str:
    """Write what became of models' own state dicts."""
    ways = list(rows[0]["ways"])
    total = [[sum(row["ways"][way][cell] for row in rows) for cell in range(3)] for way in ways]
    lines = [
        "Right, wrong and open:",
        "",
        f"| model | tensors | {' | '.join(ways)} |",
        "|---" * (len(ways) + 2) + "|",
    ]
    for row in rows:
        cells = [" ".join(map(str, row["ways"][way])) for way in ways]
        lines.append(f"| {row['model']} | {row['tensors']} | {' | '.join(cells)} |")
    cells = [" ".join(map(str, counted)) for counted in total]
    lines.append(f"| all | {sum(row['tensors'] for row in rows)} | {' | '.join(cells)} |")
    return OWN + "\n".join(lines) + "\n"


def write(path: str, *, pairs: str = "", own: str = "") -> None:
    """Write one of the two parts of the page; the other stays."""
    mark = OWN.splitlines()[0]
    file = Path(path)
    known = file.read_text().partition(mark) if file.exists() else ("", "", "")
    file.write_text((pairs or known[0].rstrip() + "\n") + "\n" + (own or mark + known[2]))


def counts(one: Row) -> str:
    """Write right, wrong and missing in one cell."""
    if "right" not in one:
        return "failed"
    return " ".join("?" if one[cell] is None else str(one[cell]) for cell in ("right", "wrong", "missing"))


def number(one: Row, cell: str, form: str) -> str:
    return format(one[cell], form) if cell in one else ""


def main() -> None:
    from pairs import PAIRS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="*", help="which pairs, as a glob")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("--out", default=str(ROOT / "docs" / "alignment.md"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--own", action="store_true", help="models and their own state dicts, and no pairs")
    given = parser.parse_args()
    if given.own:
        from own import LARGE, OWN

        with multiprocessing.get_context("spawn").Pool(given.workers, prepare) as pool:
            write(given.out, own=own_page(pool.map(own_row, [*OWN, *LARGE], chunksize=1)))
        return
    names = fnmatch.filter(PAIRS, given.pairs)
    with multiprocessing.get_context("spawn").Pool(given.workers, prepare, maxtasksperchild=40) as pool:
        rows = []
        for found in pool.imap(row, names):
            rows.append(found)
            print(f"{found['pair']:40} {counts(found['methods'].get(OURS, {}))}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))
    if given.pairs == "*":
        write(given.out, pairs=page(rows))
    print(page(rows).removeprefix(PAGE))


if __name__ == "__main__":
    main()

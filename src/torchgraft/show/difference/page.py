"""A difference as one page that needs nothing else, for people who would rather look than read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files

from torchgraft.show.difference.facts import Side
from torchgraft.show.difference.rows import MARKS, rows, safe, short
from torchgraft.show.difference.tensors import TensorDiff
from torchgraft.show.difference.tree import ModuleDiff
from torchgraft.show.difference.words import TOTALS, counts, opened_in, signed, steps

_MOST_TENSORS = 400
_ARROW = "\N{RIGHTWARDS ARROW}"


def page(sides: tuple[Side, Side], tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> str:
    """Write a difference as a page.

    Args:
        sides: the two models in figures.
        tree: their modules.
        tensors: their tensors that differ.

    Returns:
        The page; it loads nothing, and runs no script but its own.
    """
    style, script = _part("page.css"), _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    heads = [side.base or side.model for side in sides]
    title = f"{safe(heads[0])} {_ARROW} {safe(heads[1])}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{_heading(sides)}</h1>
<p class="sub">{_summary(sides, tree, tensors)}</p>
<dl class="totals">{"".join(_totals(*sides))}</dl>
{_steps(*sides)}
</header>
<main>
<nav hidden><button type="button" data-do="next">Next change <kbd>n</kbd></button>\
<button type="button" data-do="open">Open all</button>\
<button type="button" data-do="fold">Fold what is the same</button></nav>
<div class="heads" aria-hidden="true">{_columns("Before", "b")}<span></span>{_columns("After", "a")}</div>
<div class="tree">
{rows(tree)}</div>
{_tensors(tensors)}
</main>
<script>{script}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8").strip()


def _heading(sides: tuple[Side, Side]) -> str:
    said = []
    for side in sides:
        source, _, name = side.base.rpartition("/")
        said.append(f"<small>{safe(source)}/</small>{safe(name)}" if source else safe(name or side.model))
    return f"<span>{said[0]}</span> <i>{_ARROW}</i> <span>{said[1]}</span>"


def _summary(sides: tuple[Side, Side], tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> str:
    said = [" ".join(line.split()) for line in counts(tree, tensors)] or ["nothing differs"]
    opened = opened_in(*sides)
    said += [f"opened {opened}"] if opened else []
    inputs = list(dict.fromkeys(side.inputs for side in sides if side.inputs))
    if inputs:
        said.append(f"multiply-adds on {f' {_ARROW} '.join(inputs)}")
    said += [f"multiply-adds unknown: {side.unknown}" for side in sides if side.unknown]
    return "".join(f"<span>{safe(text)}</span>" for text in said)


def _totals(before: Side, after: Side) -> Iterator[str]:
    for label, field in TOTALS:
        a, b = getattr(before, field), getattr(after, field)
        change, part = ("", "") if a is None or b is None else signed(a, b)
        most = max(a or 0, b or 0) or 1
        bars = "".join(f'<i style="--w:{100 * (n or 0) / most:.2f}%"></i>' for n in (a, b))
        exact = " ".join(f"{n:,}" if n is not None else "unknown" for n in (a, b)).replace(" ", f" {_ARROW} ")
        turn = "" if change in ("", "same") else " up" if change[0] == "+" else " down"
        texts = [_unit(short(n), field) for n in (a, b)]
        yield (
            f"<div><dt>{label}</dt>"
            f'<dd class="big"><span>{texts[0]}</span> <i>{_ARROW}</i> <b>{texts[1]}</b></dd>'
            f'<dd class="bars" aria-hidden="true">{bars}</dd><dd class="exact">{exact}</dd>'
            f'<dd class="turn{turn}">{_kept(change, part)}</dd></div>\n'
        )


def _unit(text: str, field: str) -> str:
    if field == "bytes":
        text = f"{text}B" if text[-1].isalpha() else f"{text} B"
    return _kept(text)


def _kept(*texts: str) -> str:
    """Keep each number on one line with its sign and its unit."""
    words = (text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts)
    return " ".join(words).replace("-", MARKS["removed"])


def _steps(before: Side, after: Side) -> str:
    kinds = {"": "same", "+": "added", "-": "removed"}
    lines = [
        f'<li class="{kinds[mark]}"><span class="mark">{MARKS[kinds[mark]]}</span>'
        f"<code>{safe(step)}</code></li>"
        for mark, _, step in steps(before, after)
    ]
    return f'<ol class="steps" aria-label="steps">{"".join(lines)}</ol>' if lines else ""


def _columns(side: str, name: str) -> str:
    return (
        f'<span class="side {name}"><span class="name">{side}</span><span class="shape">output</span>'
        '<span class="count">parameters</span><span class="macs">multiply-adds</span></span>'
    )


def _tensors(tensors: Sequence[TensorDiff]) -> str:
    if not tensors:
        return ""
    lines = "".join(_tensor(tensor) for tensor in tensors[:_MOST_TENSORS])
    more = len(tensors) - _MOST_TENSORS
    rest = f"<p>and {more:,} more; to_json() lists all</p>" if more > 0 else ""
    return (
        f'<details class="tensors"><summary>{len(tensors):,} tensors that differ</summary>'
        f"<table><thead><tr><th></th><th>key</th><th>role</th><th>what differs</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>{rest}</details>"
    )


def _tensor(tensor: TensorDiff) -> str:
    was, now = tensor.before, tensor.after
    look = now or was
    assert look is not None
    if was is None or now is None:
        status, said = "removed" if now is None else "added", [f"{_dims(look.shape)} {look.dtype}"]
    else:
        status = "changed"
        said = [
            f"{name} {_word(getattr(was, name))} {_ARROW} {_word(getattr(now, name))}"
            for name in tensor.changed
            if name != "values"
        ]
        said += ["values differ"] * bool(tensor.values)
    cells = (look.key, look.role, "; ".join(said))
    inner = "".join(f"<td>{safe(cell)}</td>" for cell in cells)
    return f'<tr class="{status}"><td class="mark">{MARKS[status]}</td>{inner}</tr>\n'


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return _dims(value) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _dims(shape: tuple[object, ...]) -> str:
    return " ".join(map(str, shape))

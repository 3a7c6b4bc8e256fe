"""A difference as one page that needs nothing else, for people who would rather look than read."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby

import attrs
import jinja2
from markupsafe import Markup

from torchgraft.show.difference import view as seen
from torchgraft.show.difference.overlay import ModuleDiff, TensorDiff
from torchgraft.show.difference.snapshot import Look, Side, TensorLook
from torchgraft.text import plural

_ARROW = "\N{RIGHTWARDS ARROW}"
_MARKS = {"same": "", "added": "+", "removed": "\N{MINUS SIGN}", "changed": "~", "moved": _ARROW}
_SHORTEST = 3


def make_page(before: Side, after: Side, tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> str:
    """Write a difference as a page that loads nothing, and runs no script but its own."""
    style, script = _read("page.css"), _read("page.js")
    return _template().render(
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - likewise
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        marks=_MARKS,
        sides=(before, after),
        summary=_summarise(before, after, tree, tensors),
        totals=list(_totals(before, after)),
        steps=list(seen.steps_of(before, after)),
        tree=_row_of(seen.View(tree)),
        most=max(look.macs or 0 for look in (tree.before, tree.after) if look) or 1,
        tensors=[_tensor_row(tensor) for tensor in tensors],
    )


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8").strip()


@functools.cache
def _template() -> jinja2.Template:
    page = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else seen.clean(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page.filters["short"] = _shorten
    page.filters["thousands"] = "{:,}".format
    return page.from_string(_read("page.html"))


@attrs.frozen
class _Row:
    """A row of the tree, for both sides; ``style`` is what it looks like."""

    status: str
    style: str
    before: Look | None
    after: Look | None
    notes: list[str]
    opened: bool
    under: list[_Row]


def _row_of(view: seen.View, like: str = "", *, shown: bool = True) -> _Row:
    """Make the row of a module; one that differs like its neighbour, or is not shown, stays closed."""
    module, holds = view.module, view.opened
    opened = shown and not like and (holds or not module.path)
    notes = view.notes(folded=not opened, figures=False) + [f"as in {like}"] * bool(like)
    mild = bool(module.changes) and all(change.aspect == "shape" for change in module.changes)
    within = module.status == "same" and holds
    style = module.status + " mild" * mild + " within" * within
    under = list(_rows_under(view))
    return _Row(module.status, style, module.before, module.after, notes, opened, under)


def _rows_under(view: seen.View) -> Iterator[_Row]:
    last: object = None
    like = ""
    for (differs, _), group in groupby(
        view.under, key=lambda v: (v.module.touched or v.opened, v.notes(folded=True))
    ):
        held = list(group)
        if not differs and len(held) >= _SHORTEST and view.module.touched:
            yield _fold_run(held)
            continue
        for child in held:
            form = _form_of(child.module)
            like = like if child.opened and form == last else ""
            yield _row_of(child, like)
            last, like = form, like or child.name


def _fold_run(run: Sequence[seen.View]) -> _Row:
    """Make one row of neighbours in which nothing differs."""
    path = f"{run[0].name} \N{HORIZONTAL ELLIPSIS} {run[-1].name}"
    both = [(v.module.before or v.module.look, v.module.after or v.module.look) for v in run]
    sides = []
    for looks in zip(*both, strict=True):
        macs = [look.macs for look in looks if look.macs is not None]
        whole = sum(macs) if len(macs) == len(looks) else None
        parameters = sum(look.parameters for look in looks)
        sides.append(Look(path, plural(len(run), "module"), "", parameters, "", whole, False, ""))
    under = [_row_of(child, shown=False) for child in run]
    return _Row("same", "same run", sides[0], sides[1], run[0].notes(folded=True), False, under)


def _form_of(module: ModuleDiff) -> object:
    """Return what has to be equal for two neighbours to differ in the same way."""
    below = [(seen.View(child).name, _form_of(child)) for child in module.under]
    return module.status, module.look.kind, module.changes, below


def _summarise(before: Side, after: Side, tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> list[str]:
    said = [f"{what} {text}" for what, text in seen.counts_of(tree, tensors).items()] or ["nothing differs"]
    opened = seen.opened_in(before, after)
    said += [f"opened {opened}"] if opened else []
    inputs = list(dict.fromkeys(side.inputs for side in (before, after) if side.inputs))
    said += [f"multiply-adds on {f' {_ARROW} '.join(inputs)}"] if inputs else []
    return said + [f"multiply-adds unknown: {side.unknown}" for side in (before, after) if side.unknown]


def _totals(before: Side, after: Side) -> Iterator[dict[str, object]]:
    for label, field in seen.TOTALS.items():
        counts: list[int | None] = [getattr(before, field), getattr(after, field)]
        change, share = seen.difference_of(*counts)
        most = max(count or 0 for count in counts) or 1
        unit = "B" if field == "bytes" else ""
        yield {
            "label": label,
            "short": [_keep_together(_shorten(count, unit)) for count in counts],
            "parts": [100 * (count or 0) / most for count in counts],
            "exact": ["unknown" if count is None else f"{count:,}" for count in counts],
            "turn": {"+": " up", "-": " down"}.get(change[:1], ""),
            "change": Markup(" ").join(map(_keep_together, (change, share))),
        }


def _shorten(count: int | None, unit: str = "") -> str:
    """Write a large number with a unit: ``4.09 G``."""
    if count is None:
        return "unknown"
    for letter, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {letter}{unit}"
    return f"{count} {unit}".strip()


def _keep_together(text: str) -> Markup:
    """Keep a number on one line with its sign and its unit."""
    return Markup(text.replace(" ", "&nbsp;").replace("-", _MARKS["removed"]))  # noqa: S704 - only digits


def _tensor_row(tensor: TensorDiff) -> dict[str, object]:
    was, now = tensor.before, tensor.after
    if was is not None and now is not None:
        names = [name for name in tensor.changed if name != "values"]
        differ = [f"{name} {_say(was, name)} {_ARROW} {_say(now, name)}" for name in names]
        differ += ["values differ"] * bool(tensor.values)
        return {"status": "changed", "look": now, "said": "; ".join(differ)}
    look = now or was
    assert look is not None
    said = f"{_say(look, 'shape')} {look.dtype}"
    return {"status": "removed" if now is None else "added", "look": look, "said": said}


def _say(look: TensorLook, name: str) -> str:
    value = getattr(look, name)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or ("scalar" if name == "shape" else "none")
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

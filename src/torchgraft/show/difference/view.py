"""A difference as people see it: what is said at each module, what is folded, and the whole as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import attrs

from torchgraft.paths import last_of
from torchgraft.select.drawing import Line, draw_rows, join_alike, rows_of
from torchgraft.show.difference.overlay import Change, ModuleDiff, Spread, TensorDiff
from torchgraft.show.difference.snapshot import Side
from torchgraft.text import columns, plural, some

_MARKS = {"same": "", "added": "+", "removed": "-", "changed": "~", "moved": ">"}
TOTALS = {"parameters": "parameters", "trainable": "trainable", "bytes": "bytes", "multiply-adds": "macs"}
_SEEN = 0.0005
"""Share from which on one digit behind the point tells of it."""
_SAID = {
    ("gradient", "frozen"): "frozen",
    ("gradient", "trainable"): "unfrozen",
    ("mode", "eval"): "in eval mode",
    ("mode", "train"): "in train mode",
}


@attrs.frozen
class View:
    """A module of a difference; ``known`` differs everywhere around it, and is not said again."""

    module: ModuleDiff
    known: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def name(self) -> str:
        """The last part of its path."""
        return last_of(self.module.path)

    @property
    def under(self) -> list[View]:
        """The modules below it."""
        evenly = {_key_of(item) for item in self.module.spread if item.here and item.aspect != "values"}
        return [View(child, self.known | evenly) for child in self.module.under]

    @property
    def opened(self) -> bool:
        """Whether there is more to see below it than at it."""
        module = self.module
        if module.status in ("added", "removed"):  # with parts that stood elsewhere, or went there
            views = [View(child, self.known) for child in module.under]
            return any(view.module.status != module.status or view.opened for view in views)
        scattered = any(
            not (item.here or item.quiet() or _key_of(item) in self.known) for item in module.spread
        )
        return any(child.touched for child in module.under) or (scattered and bool(module.under))

    def notes(self, *, folded: bool | None = None, figures: bool = True) -> list[str]:
        """Put into words what differs at it: also what is below where that is folded, and figures."""
        module = self.module
        folded = not self.opened if folded is None else folded
        if module.look.shared and not module.changes:
            return [f"the same module as {module.look.shared}"]
        if module.status in ("added", "removed"):
            if not figures or self.opened or not module.look.parameters:
                return []
            return [
                f"{'+' if module.status == 'added' else '-'}{plural(module.look.parameters, 'parameter')}"
            ]
        said = []
        if module.status == "moved" and module.before and module.after:
            said.append(f"was {module.before.path}")
        said += [_describe(change) for change in module.changes if figures or change.aspect != "shape"]
        said += [
            _describe_spread(item)
            for item in module.spread
            if _key_of(item) not in self.known
            and (folded or (item.here and item.aspect != "values") or not module.path)
        ]
        return said


def print_diff(before: Side, after: Side, tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> str:
    """Write a difference as lines: steps, totals, and the tree of what differs."""
    head = " -> ".join(side.base or side.model for side in (before, after))
    opened, differs = opened_in(before, after), bool(tree.touched or tree.spread)
    if not (differs or tensors):
        held = f"{plural(after.modules, 'module')}, {plural(after.tensors, 'tensor')}"
        return clean(f"{head}: nothing differs in {held}" + (f"; opened: {opened}" if opened else ""))
    lines = [head]
    lines += [
        f"  {_MARKS[mark]:<1} step {number:<8} {step}" for mark, number, step in steps_of(before, after)
    ]
    lines += [f"  {line}" for line in columns(_totals(before, after)).splitlines()]
    said = {"opened": opened, **counts_of(tree, tensors)}
    reasons = before.unknown, after.unknown
    if reasons[0] == reasons[1]:
        said["unknown"] = reasons[0]
    lines += [f"  {label:<13}  {text}" for label, text in said.items() if text]
    if reasons[0] != reasons[1]:
        both = zip(("before", "after"), reasons, strict=True)
        lines += [f"  {'unknown':<13}  {when}: {why}" for when, why in both if why]
    rows = rows_of(_lines_under(View(tree)))
    root = "; ".join(View(tree).notes(folded=True))
    if root:
        rows.insert(0, (f"{_MARKS[tree.status]:<2}the root", tree.look.kind, root))
    lines += draw_rows(rows, "  ... {}; to_html() shows all").splitlines() if differs else []
    return "\n".join(map(clean, lines))


def _lines_under(view: View) -> tuple[Line, ...]:
    lines = []
    for child in view.under:
        module, under = child.module, _lines_under(child) if child.opened else ()
        kind = module.look.kind if module.touched or child.opened else ""
        said = "; ".join(child.notes())
        lines.append(Line((clean(child.name),), _MARKS[module.status], kind, said, under))
    return join_alike(lines)


def _totals(before: Side, after: Side) -> Iterator[tuple[str, ...]]:
    rows = []
    for field in TOTALS.values():
        a, b = getattr(before, field), getattr(after, field)
        said = ["unknown" if n is None else f"{n:,}" for n in (a, b)]
        rows.append((said[0], "->", said[1], *difference_of(a, b)))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, row in zip(TOTALS, rows, strict=True):
        yield f"{label:<13}", *(cell.rjust(width) for cell, width in zip(row, wide, strict=True))


def steps_of(before: Side, after: Side) -> Iterator[tuple[str, int, str]]:
    """Yield the steps of both models: ``"same"``, ``"added"`` or ``"removed"``; number; as written."""
    for tag, i, j, k, m in SequenceMatcher(None, before.steps, after.steps, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from (("removed", number + 1, before.steps[number]) for number in range(i, j))
        status = "same" if tag == "equal" else "added"
        yield from ((status, number + 1, after.steps[number]) for number in range(k, m))


def opened_in(before: Side, after: Side) -> str:
    """Name the levels that were opened."""
    return some([path or "the root" for path in after.opened if path not in before.opened], 6)


def difference_of(before: int | None, after: int | None) -> tuple[str, str]:
    """Write a difference with its sign, and in percent of what there was."""
    if before is None or after is None:
        return "", ""
    if before == after:
        return "same", ""
    share = (after - before) / before if before else 0.0
    return f"{after - before:+,}", f"{share:+.1%}".replace("%", " %") if abs(share) >= _SEEN else ""


def counts_of(tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> dict[str, str]:
    """Count the modules and tensors that differ; what does not differ is left out."""
    modules = [m.status for m in tree.walk() if m.after is not None or m.status == "removed"]
    new = sum(t.before is None for t in tensors)
    gone = sum(t.after is None for t in tensors)
    named = sum(t.changed == ("key",) for t in tensors)
    kinds = {"added": new, "removed": gone, "renamed": named, "changed": len(tensors) - new - gone - named}
    counts = {
        "modules": {status: modules.count(status) for status in _MARKS if status != "same"},
        "tensors": kinds,
    }
    said = {
        what: ", ".join(f"{n:,} {kind}" for kind, n in held.items() if n) for what, held in counts.items()
    }
    return {what: text for what, text in said.items() if text}


def clean(text: str) -> str:
    """Write signs that cannot be seen, or that would break a line, by their numbers."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _key_of(item: Spread) -> tuple[str, str, str]:
    return item.aspect, item.before, item.after


def _describe(change: Change) -> str:
    before, after = change.before, change.after
    if change.aspect == "tensor" and not (before and after):
        return f"+{change.name} {after}" if after else f"-{change.name} {before}"
    if change.aspect == "calls":
        names = [f"{sign}{n}" for sign, held in (("+", after), ("-", before)) for n in held.split(", ") if n]
        return f"calls {some(names, 4)}"
    if change.aspect in ("tied", "shared"):
        label = "tied to" if change.aspect == "tied" else "the same module as"
        said = f"{label} {after}" if after else f"no longer {label} {before}"
        return f"{change.name} {said}".strip()
    if change.aspect == "moved":
        return f"now {after}"
    label = "gives" if change.aspect == "shape" else change.name
    return f"{label} {before or 'none'} -> {after or 'none'}".strip()


def _describe_spread(item: Spread) -> str:
    text = _SAID.get((item.aspect, item.after), f"{item.before} -> {item.after}")
    text = "values differ" if item.aspect == "values" else text
    if item.here:
        return text
    some = f"{item.changed:,} of " if item.changed < item.of else ""
    return f"{text} in {some}{plural(item.of, 'module' if item.aspect == 'mode' else 'tensor')}"

"""A difference as text that is short enough to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

from torchgraft.select.drawing import Line, joined, lines_of
from torchgraft.show.difference.facts import Side
from torchgraft.show.difference.tensors import TensorDiff
from torchgraft.show.difference.tree import Change, ModuleDiff, Spread
from torchgraft.text import columns, plural

_LONGEST = 60
_SEEN = 0.0005
"""Share from which on one digit behind the point tells of it."""
_WHEN = ("before", "after")
MARKS = {"same": "", "added": "+", "removed": "-", "changed": "~", "moved": ">"}
TOTALS = (
    ("parameters", "parameters"),
    ("trainable", "trainable"),
    ("bytes", "bytes"),
    ("multiply-adds", "macs"),
)
_SAID = {
    ("gradient", "frozen"): "frozen",
    ("gradient", "trainable"): "unfrozen",
    ("mode", "eval"): "in eval mode",
    ("mode", "train"): "in train mode",
}


def words(same: bool, sides: tuple[Side, Side], tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> str:
    """Write a difference.

    Args:
        same: whether there is no difference.
        sides: the two models in figures.
        tree: their modules.
        tensors: their tensors that differ.

    Returns:
        The lines: steps, totals, and the tree of what differs.
    """
    before, after = sides
    heads = [side.base or side.model for side in sides]
    if same:
        held = f"{plural(after.modules, 'module')}, {plural(after.tensors, 'tensor')}"
        also = f"; opened: {opened_in(before, after)}" if opened_in(before, after) else ""
        return clean(f"{heads[0]} -> {heads[1]}: nothing differs in {held}{also}")
    lines = [f"{heads[0]} -> {heads[1]}"]
    lines += [f"  {mark or ' '} step {number:<8} {step}" for mark, number, step in steps(before, after)]
    lines += [f"  {line}" for line in columns(_totals(before, after)).splitlines()]
    lines += [f"  opened         {opened_in(before, after)}"] if opened_in(before, after) else []
    lines += [f"  {line}" for line in counts(tree, tensors)]
    reasons = [side.unknown for side in sides]
    if reasons[0] == reasons[1]:
        lines += [f"  unknown        {reasons[0]}"] if reasons[0] else []
    else:
        lines += [f"  unknown        {when}: {why}" for when, why in zip(_WHEN, reasons, strict=True) if why]
    rows = lines_of(_under(tree), 1)
    root = "; ".join(noted(tree))
    if root:
        rows.insert(0, (f"{MARKS[tree.status]:<2}", "the root", tree.look.kind, root))
    more = len(rows) - _LONGEST
    drawn = columns([(mark + text, alike, said) for mark, text, alike, said in rows[:_LONGEST]])
    lines += [clean(line) for line in drawn.splitlines()] if tree.touched or tree.spread else []
    lines += [f"  ... {plural(more, 'more line')}; to_html() shows all"] if more > 0 else []
    return "\n".join(map(clean, lines))


def steps(before: Side, after: Side) -> Iterator[tuple[str, int, str]]:
    """Yield the steps of both models: ``""`` in both, ``"+"`` new, ``"-"`` gone; number; as written."""
    for tag, i, j, k, m in SequenceMatcher(None, before.steps, after.steps, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from (("-", number, before.steps[number - 1]) for number in range(i + 1, j + 1))
        mark = "" if tag == "equal" else "+"
        yield from ((mark, number, after.steps[number - 1]) for number in range(k + 1, m + 1))


def signed(before: int, after: int) -> tuple[str, str]:
    """Write a difference with its sign, and in percent of what there was."""
    if before == after:
        return "same", ""
    share = (after - before) / before if before else 0.0
    part = f"{share:+.1%}".replace("%", " %") if abs(share) >= _SEEN else ""
    return f"{after - before:+,}", part


def counts(tree: ModuleDiff, tensors: Sequence[TensorDiff]) -> list[str]:
    """Count the modules and tensors that differ."""
    modules = [m for m in tree.walk() if m.after is not None or m.status == "removed"]
    found = {status: sum(m.status == status for m in modules) for status in MARKS if status != "same"}
    new = sum(t.before is None for t in tensors)
    gone = sum(t.after is None for t in tensors)
    named = sum(t.changed == ("key",) for t in tensors)
    kinds = {"added": new, "removed": gone, "renamed": named, "changed": len(tensors) - new - gone - named}
    said = [
        ("modules", ", ".join(f"{number:,} {status}" for status, number in found.items() if number)),
        ("tensors", ", ".join(f"{number:,} {status}" for status, number in kinds.items() if number)),
    ]
    return [f"{label:<13}  {text}" for label, text in said if text]


def noted(
    module: ModuleDiff, *, known: frozenset[Spread] = frozenset(), folded: bool = True, figures: bool = True
) -> list[str]:
    """Put into words what differs at a module.

    Args:
        module: the module.
        known: what differs everywhere in the module that holds it, which is not said again.
        folded: whether what is below it is not shown.
        figures: whether shapes and counts are to be said; ``False`` where they stand beside.
    """
    if module.look.shared and not module.changes:
        return [f"the same module as {module.look.shared}"]
    if module.status in ("added", "removed"):
        if not figures or holds(module, known):
            return []
        sign = "+" if module.status == "added" else "-"
        return [f"{sign}{plural(module.look.parameters, 'parameter')}"] if module.look.parameters else []
    said = []
    if module.status == "moved" and module.before and module.after:
        said.append(f"was {module.before.path}")
    said += [_change(change).strip() for change in module.changes if figures or change.aspect != "shape"]
    said += [_spread(item) for item in spread_at(module, known, folded=folded)]
    return said


def spread_at(module: ModuleDiff, known: frozenset[Spread], *, folded: bool) -> Iterator[Spread]:
    """Yield what of the differences in many places is to be said at a module, and not above or below it."""
    above = _kinds(known)
    for item in module.spread:
        if (item.aspect, item.before, item.after) not in above and (
            folded or (item.here and item.aspect != "values") or not module.path
        ):
            yield item


def holds(module: ModuleDiff, known: frozenset[Spread]) -> bool:
    """Tell whether there is more to see below a module than at it, and than is known of it."""
    if module.status in ("added", "removed"):  # with parts that stood elsewhere, or went there
        return any(child.status != module.status or holds(child, known) for child in module.under)
    said = _kinds(known)
    scattered = any(
        not (item.here or item.quiet() or (item.aspect, item.before, item.after) in said)
        for item in module.spread
    )
    return any(child.touched for child in module.under) or (scattered and bool(module.under))


def evenly(module: ModuleDiff, known: frozenset[Spread]) -> frozenset[Spread]:
    """Tell what differs everywhere in a module, so that those below it need not say it."""
    return known | {item for item in module.spread if item.here and item.aspect != "values"}


def _kinds(spread: Iterable[Spread]) -> set[tuple[str, str, str]]:
    return {(item.aspect, item.before, item.after) for item in spread}


def clean(text: str) -> str:
    """Write signs that cannot be seen, or that would break a line, by their numbers."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def opened_in(before: Side, after: Side) -> str:
    """Name the levels that were opened."""
    opened = [path or "the root" for path in after.opened if path not in before.opened]
    return ", ".join(opened[:6]) + _more(opened, 6)


def _under(module: ModuleDiff, known: frozenset[Spread] = frozenset()) -> tuple[Line, ...]:
    known = evenly(module, known)
    lines = []
    for child in module.under:
        name, opened = clean(child.path.rpartition(".")[2]), holds(child, known)
        said = "; ".join(noted(child, known=known, folded=not opened))
        shown = child.look.kind if child.touched or opened else ""
        lines.append(Line((name,), MARKS[child.status], shown, said, _under(child, known) if opened else ()))
    return joined(lines)


def _change(change: Change) -> str:
    before, after = change.before, change.after
    if change.aspect == "tensor" and not (before and after):
        return f"+{change.name} {after}" if after else f"-{change.name} {before}"
    if change.aspect == "calls":
        names = [*(f"+{n}" for n in after.split(", ") if n), *(f"-{n}" for n in before.split(", ") if n)]
        return "calls " + ", ".join(names[:4]) + _more(names, 4)
    if change.aspect in ("tied", "shared"):
        label = "tied to" if change.aspect == "tied" else "the same module as"
        return f"{change.name} {label} {after}" if after else f"{change.name} no longer {label} {before}"
    if change.aspect == "moved":
        return f"now {after}"
    label = {"shape": "gives", "option": change.name, "tensor": change.name}.get(change.aspect, "")
    return f"{label} {before or 'none'} -> {after or 'none'}"


def _spread(item: Spread) -> str:
    text = _SAID.get((item.aspect, item.after), f"{item.before} -> {item.after}")
    text = "values differ" if item.aspect == "values" else text
    if item.here:
        return text
    noun = "module" if item.aspect == "mode" else "tensor"
    some = f"{item.changed:,} of " if item.changed < item.of else ""
    return f"{text} in {some}{plural(item.of, noun)}"


def _totals(before: Side, after: Side) -> Iterator[tuple[str, ...]]:
    pairs = [(label, getattr(before, f), getattr(after, f)) for label, f in TOTALS]
    texts = [["unknown" if n is None else f"{n:,}" for n in (a, b)] for _, a, b in pairs]
    wide = [max(len(row[i]) for row in texts) for i in (0, 1)]
    changes = [("", "") if a is None or b is None else signed(a, b) for _, a, b in pairs]
    ends = [max(len(c[i]) for c in changes) for i in (0, 1)]
    for (label, _, _), (a, b), (number, part) in zip(pairs, texts, changes, strict=True):
        yield (
            f"{label:<13}",
            a.rjust(wide[0]),
            "->",
            b.rjust(wide[1]),
            number.rjust(ends[0]),
            part.rjust(ends[1]),
        )


def _more(items: Sequence[str], most: int) -> str:
    return f" and {len(items) - most} more" if len(items) > most else ""

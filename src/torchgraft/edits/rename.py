"""Rename: move modules to other paths, with the forwards that use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from keyword import iskeyword
from typing import ClassVar

import attrs
from torch import nn

from torchgraft.errors import NameClashError, OptionError, TargetError, TraceError
from torchgraft.graph.code_of import codes_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import has_forward, is_container
from torchgraft.graph.level import Level, runs_graph, state_of
from torchgraft.graph.names import Node
from torchgraft.paths import join_path, last_of, parent_of, parents_of
from torchgraft.text import kind, literal, spelled, wrong
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Rename(Transform):
    """Move modules to other paths, all at once."""

    name: ClassVar[str] = "rename"
    pairs: tuple[tuple[str, str], ...] = attrs.field(eq=frozenset)

    def _edit(self, draft: Draft) -> None:
        draft.order()  # what was placed beside a module stands there before that one moves
        moved = {old: draft.get(old) for old, _ in self.pairs}
        paths = _Paths(dict(self.pairs))
        _check_shared(draft, paths)
        levels = _open(draft, paths)
        changes = [change for path in levels for change in _changes(draft, paths, path)]
        moves = {
            path: {inner: _inside(paths, path, inner) for inner in state_of(level).patterns[0].paths}
            for path, level in levels.items()
        }
        _move(draft, paths, moved)
        for node, target in changes:
            node.target = target
        for path, level in levels.items():
            state_of(level).patterns[0].move(moves[path])
        draft.opened[:] = [paths.new(path) for path in draft.opened]
        draft.changed()
        draft.rerun()

    def __repr__(self) -> str:
        return _written(dict(self.pairs))


@spelled
def rename(mapping: Mapping[str, str]) -> Rename:
    """Rename modules, or move them to other containers; keys of the state dict follow.

    All names are looked up before anything moves, so two modules can trade names. The
    forwards that use a moved module are opened and call it by its new path, which has to
    stay inside each of them. Containers that are not there are made, and such that nothing
    is left in go. Registration keeps its order where the new places allow it. Of a module
    with two paths the one given moves. Renaming back restores the names.

    Args:
        mapping: new paths by old paths.

    Returns:
        The transform; the order of the mapping does not matter to equality.

    Raises:
        OptionError: the mapping is empty, or a new name cannot be one.

    Example:
        >>> rename({"layer4": "body.stage4", "fc": "head"})
        rename({"layer4": "body.stage4", "fc": "head"})
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise wrong("rename takes new paths by old paths", mapping, '{"fc": "head"}')
    for old, new in mapping.items():
        right = isinstance(old, str) and isinstance(new, str) and all(map(_is_name, str(new).split(".")))
        if not right or not old:
            raise OptionError(
                "a path consists of identifiers and numbers, with dots between them",
                found=f"{literal(old)}: {literal(new)}",
                write='rename({"fc": "head"})',
            )
    if len(set(mapping.values())) < len(mapping):
        double = next(new for new in mapping.values() if list(mapping.values()).count(new) > 1)
        raise OptionError(
            "two modules cannot have one path",
            found=f"{literal(double)} twice",
            write="another path for one of them",
        )
    return Rename(tuple(mapping.items()))


def _written(mapping: Mapping[str, str]) -> str:
    return f"rename({{{', '.join(f'{literal(old)}: {literal(new)}' for old, new in mapping.items())}}})"


def _is_name(part: str) -> bool:
    return part.isdecimal() or (part.isidentifier() and not iskeyword(part))


class _Paths:
    """Tell where a path goes, and where it came from.

    Args:
        mapping: new paths by old paths.
    """

    def __init__(self, mapping: dict[str, str]) -> None:
        self.mapping = mapping
        self._back = {new: old for old, new in mapping.items()}

    def new(self, path: str) -> str:
        """Return the new path of what stands at a path."""
        return _mapped(path, self.mapping)

    def old(self, path: str) -> str:
        """Return the old path of what will stand at a path."""
        return _mapped(path, self._back)

    def standing(self, draft: Draft) -> dict[str, str]:
        """Return where what stays in the tree stood, by the paths at which it will stand."""
        return {self.new(path): path for path in ("", *(path for path, _ in draft.modules() if path))}


def _mapped(path: str, mapping: Mapping[str, str]) -> str:
    head, tail = path, ""
    while head and head not in mapping:
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return mapping[head] + tail if head else path


def _check_shared(draft: Draft, paths: _Paths) -> None:
    """Refuse a move out of or into a container that stands at several places, as it would show at each."""
    standing = paths.standing(draft)
    for old, new in paths.mapping.items():
        (source, _, name), last = old.rpartition("."), last_of(new)
        left = list(dict.fromkeys(draft.names(draft.get(source))))
        into = next(standing[at] for at in parents_of(new) if at in standing)
        entered = list(dict.fromkeys(draft.names(draft.get(into))))
        wanted = {f"{path}.{name}": f"{paths.new(path)}.{last}" for path in left}
        if len(left) == 1 < len(entered) or (len(left) > 1 and not wanted.items() <= paths.mapping.items()):
            raise TargetError(
                f"what {literal(old)} leaves or enters stands at several places, and a change shows at each",
                wrong=old,
                found=", ".join(left if len(left) > 1 else entered),
                write=_written(wanted) if len(left) > 1 else "a new path outside it",
            )


def _open(draft: Draft, paths: _Paths) -> dict[str, Level]:
    """Open the levels whose forward uses what moves, or might use what comes.

    Raises:
        TraceError: one of them cannot be followed.
    """
    inner = {id(part) for old in paths.mapping for part in draft.get(old).modules()}
    found: dict[str, None] = {}
    standing = paths.standing(draft)
    for old, new in paths.mapping.items():
        levels = [path for path in parents_of(old) if has_forward(draft.get(path))]
        found.update(dict.fromkeys(levels[:1]))
        found.update((path, None) for path in levels[1:] if _uses(draft, path, old, inner))
        around = [
            standing[at] for at in parents_of(new) if at in standing and has_forward(draft.get(standing[at]))
        ]
        # A Sequential would call what is put into it.
        found.update((path, None) for path in around[:1] if is_container(draft.get(path)))
    return {path: draft.open(path) for path in found}


def _uses(draft: Draft, path: str, old: str, inner: set[int]) -> bool:
    """Tell whether a level uses what stands at a path below one that it calls."""
    module = draft.get(path)
    if runs_graph(module):
        return True
    try:
        graphs = draft.graphs(path)
    except TraceError:
        words = {str(word) for code in codes_of(module) for word in (*code.co_names, *code.co_consts)}
        parts = old[len(path) :].strip(".").split(".")
        if parts[-1].isdecimal() or not words.issuperset(part for part in parts if not part.isdecimal()):
            return False
        raise
    return any(
        id(draft.get(_module_of(path, n))) in inner for graph in graphs for n in graph.nodes if _reads(n)
    )


def _reads(node: Node) -> bool:
    return node.op in ("call_module", "get_attr")


def _module_of(path: str, node: Node) -> str:
    whole = join_path(path, str(node.target))
    return whole if node.op == "call_module" else parent_of(whole)


def _changes(draft: Draft, paths: _Paths, path: str) -> Iterator[tuple[Node, str]]:
    for graph in draft.graphs(path):
        for node in graph.nodes:
            if _reads(node):
                yield node, _inside(paths, path, str(node.target))


def _inside(paths: _Paths, level: str, target: str) -> str:
    """Return the new path of what a level uses, as seen from the level.

    Raises:
        TargetError: it would stand outside the level.
    """
    whole, around = join_path(level, target), paths.new(level)
    new = paths.new(whole)
    if around and not new.startswith(f"{around}."):
        old = next(path for path in (whole, *parents_of(whole)) if path in paths.mapping)
        goal = paths.mapping[old]
        raise TargetError(
            f"{literal(old)} cannot leave {literal(level)}, whose forward uses it",
            wrong=goal,
            found=f"{literal(goal)} is outside {literal(around)}",
            write=_written({old: f"{around}.{goal.rpartition('.')[2]}"}),
        )
    return new[len(around) :].lstrip(".")


def _move(draft: Draft, paths: _Paths, moved: Mapping[str, nn.Module]) -> None:
    order = {path: place for place, path in enumerate(_registered("", draft.root))}
    for old in sorted(moved, key=len, reverse=True):
        parent, _, last = old.rpartition(".")
        draft.get(parent)._modules.pop(last, None)
        for path in parents_of(old):
            left = draft.get(path) if path and draft.has(path) else None
            empty = type(left) is nn.Module and not (left._modules or left._parameters or left._buffers)
            if empty and not any(new.startswith(f"{paths.new(path)}.") for new in paths.mapping.values()):
                draft.discard(path)
    made: set[str] = set()
    for new in sorted(paths.mapping.values(), key=len):
        module = moved[paths.old(new)]
        parts = new.split(".")
        for depth in range(1, len(parts)):
            at = ".".join(parts[:depth])
            if not draft.has(at):
                made.add(at)
                _register(draft, paths, new, at, nn.Module().train(draft.get(parent_of(at)).training))
        if not (draft.has(new) and draft.get(new) is module):  # under another name of its parent already
            _register(draft, paths, new, new, module)
    for path in {parent_of(at) for at in (*made, *paths.mapping.values())}:
        held = draft.get(path)._modules
        where = {n: _place(paths, order, made, join_path(path, n), m) for n, m in held.items()}
        for name in sorted(held, key=where.__getitem__):
            held[name] = held.pop(name)
    draft._names = None  # what stands where is looked up anew


def _register(draft: Draft, paths: _Paths, new: str, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    if not draft.free(owner, name):
        fresh = join_path(owner, draft.fresh(owner, name))
        raise NameClashError(
            f"{literal(path)} is already used in {owner or 'the root'}",
            found=f"{name!r} is {kind(getattr(draft.get(owner), name, None))}",
            write=_written({paths.old(new): fresh + new[len(path) :]}),
        )
    draft.place(owner, name, module)


def _registered(path: str, module: nn.Module) -> Iterator[str]:
    """Yield the paths of all that is registered, places that hold ``None`` included."""
    for name, child in module._modules.items():
        here = join_path(path, name)
        yield here
        if child is not None:
            yield from _registered(here, child)


def _place(
    paths: _Paths, order: Mapping[str, int], made: set[str], path: str, child: nn.Module | None
) -> int:
    """Return where something stood; a new container stands where the first of its modules did."""
    if path not in made or child is None:
        return order[paths.old(path)]
    return min(_place(paths, order, made, f"{path}.{name}", inner) for name, inner in child._modules.items())

"""What features and fpn share: which values are asked for, and how they become maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import torch

from torchgraft.errors import AnalysisError, GraftError, LayoutError, OptionError, TargetError, TraceError
from torchgraft.graph.deep.axes import Layout, layout_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import axes_of, spec_of, value_shape
from torchgraft.graph.nodes import canonical, name_of
from torchgraft.graph.taps.layouts import Turn
from torchgraft.graph.taps.measured import Numbers, chosen, turn_for
from torchgraft.graph.taps.places import Places, Tap
from torchgraft.graph.taps.signs import axis_taken, makes_tensor
from torchgraft.graph.tiers.tiers import find_tiers
from torchgraft.select import Selector, parse
from torchgraft.text import kind, literal

_WAYS = ("strides", "stages", "blocks")


@attrs.frozen(eq=False)
class Found:
    """A value that is asked for.

    Args:
        tap: where it is made.
        layout: the layout that was measured; ``None`` where nobody looked.
    """

    tap: Tap
    layout: Layout | None = None


@attrs.frozen
class Choice:
    """Say which values are asked for, in one of four ways.

    Args:
        targets: modules and operations.
        strides: places of the image for each place of a map.
        stages: numbers of stages, negative ones from the last.
        blocks: numbers of blocks, likewise.
    """

    targets: tuple[Selector, ...] = ()
    strides: Numbers | None = None
    stages: Numbers | None = None
    blocks: Numbers | None = None

    def written(self) -> str:
        """Write it as numbers by what they count."""
        held = [(way, getattr(self, way)) for way in _WAYS]
        return ", ".join(f"{way}={literal(numbers)}" for way, numbers in held if numbers is not None)

    def find(self, draft: Draft, names: Sequence[str] | None) -> list[Found]:
        """Find the values in a model.

        Args:
            draft: the model.
            names: their names; by default those that they are asked for by.

        Raises:
            TargetError: one of them is no tensor, is not there, or is not one value.
            OptionError: two of them have one name, or the model has no such tier.
        """
        found = list(self._targets(draft) if self.targets else self._tiers(draft))
        own = [one.tap.name for one in found]
        if names is not None and len(names) != len(own):
            raise OptionError(
                f"there are {len(own)} maps and {len(names)} names",
                found=", ".join(own),
                write=f"names={literal(tuple(own))}",
            )
        check_distinct(names or own)
        return [
            attrs.evolve(one, tap=attrs.evolve(one.tap, name=name))
            for one, name in zip(found, names or own, strict=True)
        ]

    def _targets(self, draft: Draft) -> Iterator[Found]:
        places = Places(draft)
        for target in self.targets:
            for site in target.find(draft):
                try:
                    if site.is_module:
                        yield Found(places.of_module(site.path, site.path))
                    else:
                        yield Found(places.of_nodes(site.path, site.path, site.owner or "", site.nodes))
                except TraceError as error:
                    if not error.write.startswith("model."):  # nothing to switch off before
                        error.write = _of_a_part(draft, error.module, site.path) or error.write
                    raise

    def _tiers(self, draft: Draft) -> Iterator[Found]:
        places = Places(draft)
        for name, place in chosen(find_tiers(draft), self.strides, self.stages, self.blocks):
            yield Found(places.of_module(name, place.path, place.call, place.item), place.layout)


def choice(
    targets: Iterable[object],
    strides: Sequence[int] | None,
    stages: Sequence[int] | None,
    blocks: Sequence[int] | None,
) -> Choice:
    """Check which values are asked for.

    Raises:
        OptionError: more than one way is taken, or one is not of numbers.
    """
    given = {"strides": strides, "stages": stages, "blocks": blocks}
    made = Choice(tuple(map(_parsed, targets)), **{way: _numbers(way, held) for way, held in given.items()})
    ways = [f"{way}={literal(getattr(made, way))}" for way in _WAYS if given[way] is not None]
    ways = [", ".join(literal(target) for target in made.targets), *ways] if made.targets else ways
    if len(ways) > 1:
        raise OptionError(
            "maps are asked for in one way: by targets, by strides, by stages or by blocks",
            found="; ".join(ways),
            write=ways[0],
        )
    check_distinct([literal(target) for target in made.targets])
    return made


def check_distinct(names: Sequence[str]) -> None:
    """Check that no name is given twice.

    Raises:
        OptionError: one is.
    """
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise OptionError(
            f"two maps would have the name {twice}",
            found=", ".join(names),
            write="each of them once, or names=(...) with a name for each",
        )


def turns_of(draft: Draft, found: Sequence[Found], layout: str) -> dict[str, Turn]:
    """Tell what turns values to ``n c h w``, by name, where they are not so and have places.

    Raises:
        TargetError: one of them is no tensor.
        LayoutError: nothing tells how one of them is laid out.
    """
    turns = {}
    for one in found:
        tap = one.tap
        axis = axis_taken(draft, tap.owner, tap.nodes[0]) if one.layout is None else None
        if not (one.layout or axis or tap.item or makes_tensor(draft, tap.owner, tap.nodes[0])):
            _check_tensor(draft, tap)
        turn = None if layout == "native" or axis == 1 else _turn(draft, one, axis)
        if turn is not None:
            turns[tap.name] = turn
    return turns


def _check_tensor(draft: Draft, tap: Tap) -> None:
    try:
        value = draft.value(tap.owner, tap.nodes[0])
    except AnalysisError:
        return  # a model that does not run on meta tensors may still run
    if isinstance(value, torch.Tensor):
        return
    users = (user for node in tap.nodes for user in node.users)
    items = sorted({name_of(user, tap.owner) for user in users if canonical(user) == "getitem"})
    held = len(value) if isinstance(value, (tuple, list, dict)) else 0
    raise TargetError(
        f"{tap.name!r} is no tensor",
        found=f"a {type(value).__name__}" + (f" of {held} items" if held else ""),
        write=f'one of its items: "{items[0]}"' if items else "a target that gives a tensor",
    )


def _turn(draft: Draft, found: Found, axis: int | None) -> Turn | None:
    tap, node = found.tap, found.tap.nodes[0]
    if found.layout is not None:
        return turn_for(found.layout)
    try:
        if (axis or spec_of(draft, tap.owner, node).axis) == 1:
            return None
    except LayoutError as error:
        error.write = f'layout="native", which leaves {tap.name!r} as it is'
        raise
    layout = layout_of(axes_of(draft, tap.owner, node) or ())
    if layout is not None:
        return turn_for(layout)
    rank = len(value_shape(draft, tap.owner, node))
    if rank == 3:
        raise LayoutError(
            f"the tokens of {tap.name!r} cannot be laid out on a grid",
            found="no measured grid that they stand for",
            write='layout="native", which leaves them as they are',
        )
    return Turn((0, 3, 1, 2)) if rank == 4 else None


def _of_a_part(draft: Draft, stopped: str, path: str) -> str:
    """Write how to get a value out of the largest part around it that can be followed; "" for none."""
    names = path.split(".")
    for start in range(stopped.count(".") + 1 + bool(stopped), len(names)):
        part, rest = ".".join(names[:start]), ".".join(names[start:])
        try:
            inner = Draft(draft.get(part))
            turns_of(inner, Choice((parse(rest),)).find(inner, None), "native")
        except (GraftError, AttributeError):
            continue
        return f"pipe(model.get_submodule({literal(part)}), features({literal(rest)}))"
    return ""


def _parsed(target: object) -> Selector:
    if isinstance(target, (list, tuple, dict)):
        said = ", ".join(literal(item) for item in target)
        named = f", names={literal(tuple(target.values()))}" if isinstance(target, dict) else ""
        raise OptionError("targets are given one by one", found=kind(target), write=f"{said}{named}")
    return parse(target)


def _numbers(way: str, held: Sequence[int] | None) -> Numbers | None:
    if held is None:
        return None
    numbers = tuple(held) if isinstance(held, (tuple, list)) else ()
    least = 1 if way == "strides" else None
    fits = numbers and all(type(n) is int and (least is None or n >= least) for n in numbers)
    if not fits or len(set(numbers)) < len(numbers):
        one = f"({held},)" if isinstance(held, int) else "(8, 16, 32)" if least else "(-3, -2, -1)"
        raise OptionError(
            f"{way} are {'positive ' if least else ''}integers, each of them once",
            found=f"{way}={literal(held)}",
            write=f"{way}={one}",
        )
    return numbers

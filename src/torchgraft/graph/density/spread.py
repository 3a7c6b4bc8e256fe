"""How dense every map of a recorded run becomes, and which steps have to change for that.

A step is the call of a layer, or one operation of a forward that calls layers. One that
treats every place of a map alone takes a denser map as it is. One that makes a map of a map
in another way is given the maps of the original that lie in the denser one, and any other
step only the first of these, which is the one that it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import cast

import attrs
import torch
from torch import nn

from torchgraft.errors import TargetError
from torchgraft.graph.binding import own_ops
from torchgraft.graph.deep.atoms import HEIGHT, WIDTH, Atom, Axes
from torchgraft.graph.deep.axes import follow
from torchgraft.graph.deep.ranges import cat_rule, expand_rule, stack_rule
from torchgraft.graph.deep.record import Op, Record, Ref
from torchgraft.graph.deep.rules import RULES
from torchgraft.graph.density.dense import Side
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container
from torchgraft.paths import join_path

Pair = tuple[int, int]
Key = tuple[str, int]
"""The path of a layer and -1, or that of a level and which of its operations it is."""

ONE = (1, 1)


@attrs.frozen
class Grid:
    """Say which axes of a map count its places, height first, and how far these lie apart."""

    axes: Pair
    stride: tuple[Fraction, Fraction]


@attrs.frozen(eq=False)
class Step:
    """The call of a layer, or one operation.

    Args:
        key: what it is in the model.
        name: the same for messages.
        ops: the operations that it runs on values, of which it takes and gives some.
    """

    key: Key
    name: str
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@attrs.frozen
class Change:
    """Say what a step needs in a dilated model.

    Args:
        place: which of its inputs is the map.
        sides: height and width, if the step makes a dense map.
        cuts: else the axes with the places, and how far those of the original lie apart.
    """

    place: int
    sides: tuple[Side, ...] = ()
    cuts: tuple[Pair, ...] = ()


def grids_of(axes: Mapping[int, Axes]) -> dict[int, Grid]:
    """Return the values that are maps."""
    found = {}
    for value, places in axes.items():
        alone = {axis[0].kind: (i, axis[0]) for i, axis in enumerate(places) if len(axis) == 1}
        counted = _atoms(places)
        if len(counted) == 2 and {HEIGHT, WIDTH} <= alone.keys() and not any(a.whole for a in counted):
            (i, high), (j, wide) = alone[HEIGHT], alone[WIDTH]
            found[value] = Grid((i, j), (high.step, wide.step))
    return found


def strides_of(record: Record) -> list[int]:
    """List the strides of the maps that convolutions, poolings and slices give."""
    grids = grids_of(follow(record))
    made = [grids[op.outputs[0]] for op in record.ops if op.name in _WINDOWS and op.outputs[0] in grids]
    return sorted({int(step) for grid in made for step in grid.stride if step.denominator == 1})


class Spread:
    """Plan how dense the maps of a run become.

    Args:
        draft: the model.
        record: a run of it.
        limit: the largest stride that maps may have.

    Raises:
        TargetError: something on the way cannot be made denser.
    """

    def __init__(self, draft: Draft, record: Record, limit: int) -> None:
        self._record = record
        self._limit = limit
        self._axes = follow(record)
        self.grids = grids_of(self._axes)
        self._shown = {op.outputs[0]: op.inputs[0] for op in record.ops if op.name == "expand"}
        self._makers = {value: op for op in record.ops for value in op.outputs}
        self._cut: dict[Op, str] = {}
        """Operations behind which maps are not dense any more, and what cannot take them denser."""
        self.steps = list(self._all_steps(draft))
        done = False
        while not done:
            self.density: dict[int, Pair] = {}
            self.changes: dict[Step, tuple[Change, ...]] = {}
            self._lost: dict[int, str] = {}
            done = all(map(self._follow, self.steps))

    def changes_between(self, name: str, inputs: Sequence[int], output: int) -> tuple[Change, ...]:
        """Return what a step needs that takes and gives some values.

        Raises:
            TargetError: it makes one dense map of several.
        """
        maps = [value for value in inputs if value in self.grids]
        dense = self.dense(maps)
        if output not in self.density:
            cuts = {x: tuple(zip(self.grids[x].axes, self.density[x], strict=True)) for x in dense}
            return tuple(Change(inputs.index(x), cuts=cuts[x]) for x in dense)
        if len(dense) > 1 or not maps:
            raise self._refusal(name, (*dense, output)[0], name)
        x = (dense or maps)[0]
        one, two, d, e = self.grids[x], self.grids[output], self.density.get(x, ONE), self.density[output]
        kept = [two.stride[i] * d[i] / (one.stride[i] * e[i]) for i in (0, 1)]
        sides = tuple((one.axes[i], two.axes[i], d[i], e[i], int(kept[i])) for i in (0, 1))
        return (Change(inputs.index(x), sides),)

    def dense(self, values: Sequence[int]) -> list[int]:
        """List those of some values that are denser than in the original, each once."""
        return [v for v in dict.fromkeys(values) if self.density.get(v, ONE) != ONE]

    def _all_steps(self, draft: Draft) -> Iterator[Step]:
        record, layers, end = self._record, list[int](), 0
        for number, scope in enumerate(record.scopes):
            above = layers[scope.parent] if number else 0
            layers.append(above or (0 if is_container(draft.get(scope.path)) else number))
        counts: dict[int, int] = {}
        numbers: dict[Op, Key] = {}
        for op in own_ops(record.ops):
            counts[op.scope] = counts.get(op.scope, -1) + 1
            numbers[op] = record.scopes[op.scope].path, counts[op.scope]
        for number, op in enumerate(record.ops):
            layer = record.scopes[layers[op.scope]]
            if number < end or self._axes.keys().isdisjoint(op.inputs):
                continue
            if layers[op.scope]:
                end = layer.end
                outputs = tuple(value for _, value in layer.outputs)
                yield Step((layer.path, -1), layer.path, record.ops[number:end], layer.inputs, outputs)
            else:
                key = numbers.get(op, ("", -1))
                name = join_path(record.scopes[op.scope].path, op.name.strip("_"))
                yield Step(key, name, (op,), op.inputs, op.outputs[:1])

    # Following -------------------------------------------------------------------------------

    def _follow(self, step: Step) -> bool:
        """Find out what a step gives; return False if an earlier one has to give something else for that."""
        dense = self.dense(step.inputs)
        cut = next((self._cut[op] for op in step.ops if op in self._cut), "")
        lost = next((self._lost[value] for value in step.inputs if value in self._lost), "")
        if dense and not cut and all(self._passes(step, op) for op in step.ops):
            return True
        if merged := [value for value in dense if value not in self.grids]:
            self._cut_before(merged, step)
            return False
        for value in (value for op in step.ops for value in op.outputs):
            self.density.pop(value, None)
        maps = dense or [value for value in step.inputs if value in self.grids]
        sized = any("output_size" in _arguments(op) for op in step.ops)
        density = self._density_made(step, maps[0]) if maps and not (cut or sized) else None
        if dense and step.ops[0].name == "written":
            raise self._refusal(step.name, dense[0], step.name)
        if density and (dense or density != ONE):
            self.density[step.outputs[0]] = density
        elif dense and not sized:
            lost = cut or step.name
        if dense or density not in (None, ONE):
            self.changes[step] = self.changes_between(step.name, step.inputs, (*step.outputs, -1)[0])
        if lost:
            self._lost.update((value, lost) for op in step.ops for value in op.outputs)
        if any(op.name in _WINDOWS[:3] for op in step.ops) and (lost or not maps):
            for value in self.grids.keys() & set(step.outputs):
                if max(self.grids[value].stride) > self._limit:
                    raise self._refusal(lost or step.name, value, step.name)
        return True

    def _density_made(self, step: Step, x: int) -> Pair | None:
        """Choose how dense the map is that a step makes of another; ``None`` if it does not make one."""
        y = step.outputs[0] if len(step.outputs) == 1 else -1
        one, two = self.grids[x], self.grids.get(y)
        if two is None or 0 in (*one.axes, *two.axes):
            return None
        found, windows = [], any(op.name in _WINDOWS for op in step.ops)
        for i, density in enumerate(self.density.get(x, ONE)):
            before, after = self._record.shapes[x][one.axes[i]], self._record.shapes[y][two.axes[i]]
            stride = two.stride[i] / one.stride[i]
            if stride.denominator != 1 or stride < 1 or (after == 1 < before and not windows):
                return None
            steps = [t for t in range(1, int(stride) + 1) if stride % t == 0]
            fits = [t for t in steps if one.stride[i] / density * t <= self._limit]
            found.append(int(density * stride) // max(fits, default=int(stride) if density == 1 else 1))
        return found[0], found[1]

    def _cut_before(self, values: Sequence[int], step: Step) -> None:
        """Have the places of the original taken where maps became values that a step cannot take."""
        waiting = list(values)
        while waiting:
            op = self._makers[waiting.pop()]
            dense = self.dense(op.inputs)
            waiting += [value for value in dense if value not in self.grids]
            if any(value in self.grids for value in dense):
                self._cut[op] = step.name

    # What passes -----------------------------------------------------------------------------

    def _passes(self, step: Step, op: Op) -> bool:
        """Return True if an operation treats every place alone, and note what it gives."""
        dense = self.dense(op.inputs)
        if not dense:
            return True
        if not self._is_local(op, dense):
            return False
        if others := self._others(op, dense[0]):
            if step.key[1] < 0 or all(value in self._record.given for value in others):
                return False
            lost = [self._lost[value] for value in others if value in self._lost]
            raise self._refusal([*lost, step.name][0], dense[0], step.name)
        self.density.update((value, self.density[dense[0]]) for value in op.outputs)
        return True

    def _is_local(self, op: Op, dense: Sequence[int]) -> bool:
        """Return True if an operation treats every place alone, as far as its own axes tell."""
        atoms = _atoms(self._axes[dense[0]])
        if any(_atoms(self._axes.get(value, ())) != atoms for value in (*dense, *op.outputs[:1])):
            return False
        if op.func is None:
            return op.name == "written"
        if torch.Tag.pointwise in op.func.tags or op.func.is_view or op.name in _EACH:
            return True
        rule, given = RULES.get(op.name), _arguments(op)
        if rule in _MOVES or op.name.endswith("_like") or op.name.startswith("new_"):
            return True
        places, rank = self._places(dense[0]), len(self._record.shapes[dense[0]])
        if rule is RULES["mm"]:
            left, right = (cast("Ref", argument).value for argument in op.args[-2:])
            ends = len(self._record.shapes[left]) - 1, len(self._record.shapes[right]) - 2
            return (
                len(dense) == 1 and ends[0] not in self._places(left) and ends[1] not in self._places(right)
            )
        if "batch_norm" in op.name:  # which an instance norm runs too, and then it looks at all places
            owner = self._record.scopes[op.scope].cls
            return issubclass(owner, nn.modules.batchnorm._BatchNorm) or not given["training"]
        if op.name == "convolution":
            return set(self._record.shapes[op.inputs[1]][2:]) == {1}
        if "normalized_shape" in given:
            return max(places) < rank - len(cast("Pair", given["normalized_shape"]))
        dims = next((given[name] for name in ("dim", "dims") if name in given), ())
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        if dims:
            return all(isinstance(dim, int) and dim % rank not in places for dim in dims)
        kinds = [str(argument.type) for argument in op.func._schema.arguments[1:]]
        return not any("int" in kind or "Tensor" in kind for kind in kinds)

    def _others(self, op: Op, first: int) -> list[int]:
        """List the operands that have a value for each place and are not as dense as the first."""
        rule = RULES.get(op.name)
        if op.func is not None and torch.Tag.pointwise not in op.func.tags and rule not in _MOVES:
            return []
        rank, found = len(self._record.shapes[first]), []
        for value in op.inputs:
            shape = self._record.shapes[self._shown.get(value, value)]
            at = [axis - rank for axis in self._places(first) if rank - axis <= len(shape)]
            if self.density.get(value, ONE) != self.density[first] and any(shape[i] > 1 for i in at):
                found.append(value)
        return found

    def _places(self, value: int) -> list[int]:
        return [i for i, axis in enumerate(self._axes.get(value, ())) if _atoms((axis,))]

    def _refusal(self, name: str, value: int, step: str) -> TargetError:
        density, grid = self.density.get(value, ONE), self.grids.get(value)
        stride = max(grid.stride) if grid else self._limit
        return TargetError(
            f"{name!r} mixes places in a way that cannot be dilated",
            found=f"{step} on a map of stride {stride}, {density[0]} x {density[1]} times as dense",
            write=f"dilate({stride}), with which the maps there stay as they are",
        )


_WINDOWS = ("convolution", "max_pool2d_with_indices", "avg_pool2d", "slice")
_EACH = ("_to_copy", "copy_", "_prelu_kernel")
_MOVES = (RULES["_unsafe_view"], cat_rule, stack_rule, expand_rule)


def _atoms(axes: Axes) -> list[Atom]:
    """List what the axes of a value count of the places of a map."""
    counted = [atom for axis in axes for atom in axis if atom.kind in (HEIGHT, WIDTH)]
    return sorted(counted, key=lambda atom: (atom.kind, atom.size, atom.step))


def _arguments(op: Op) -> dict[str, object]:
    """Return the arguments of an operation by name, defaults included."""
    if op.func is None:
        return {}
    found = {argument.name: argument.default_value for argument in op.func._schema.arguments}
    return {**found, **dict(zip(found, op.args, strict=False)), **op.kwargs}

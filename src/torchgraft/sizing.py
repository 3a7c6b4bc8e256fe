"""Shapes: what a model or a pipeline gives for inputs of some shapes, with nothing computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn

from torchgraft.errors import ModelError, TargetError
from torchgraft.graph.checks import check_model
from torchgraft.graph.draft import Draft
from torchgraft.graph.layout import layout_at
from torchgraft.graph.proxy import map_tensors, tensors_in
from torchgraft.graph.run import ModuleCall
from torchgraft.graph.shadow import Stage
from torchgraft.graph.shape_request import Request, Shape, is_shape, stages_of
from torchgraft.paths import parents_of
from torchgraft.select.drawing import draw_as_deep, lines_by_path
from torchgraft.text import columns, kind, literal, near, plural, spelled, write_dims

Input = object
"""A shape, or a value that is passed as it is; both may be nested in tuples, lists and dicts."""


@attrs.frozen
class ModuleShapes:
    """Describe what a module takes and gives in one run.

    Args:
        path: where it stands.
        kind: name of its class.
        inputs: shapes of the tensors that its first call takes.
        output: shape of what that call gives, nested as the value is; ``None`` without a call.
        layout: how the output is laid out: ``NCHW``, ``NHWC``, ``NLC``, ``NC``; ``None`` if nothing tells.
        grid: places of the map along height and width, for maps and for tokens that stand for one.
        prefix: number of tokens before those of the map.
        parameters: number of its parameters, those of its children included.
        calls: how often it is called.
    """

    path: str
    kind: str
    inputs: tuple[Shape, ...]
    output: object
    layout: str | None
    grid: tuple[int, int] | None
    prefix: int
    parameters: int
    calls: int


@attrs.frozen(repr=False)
class Shapes(Mapping[str, object]):
    """The shapes of a run: a mapping from the path of a module to the shape of its output.

    Args:
        model: class of the model.
        modules: every module, in the order of execution; a parent stands before its children.
    """

    model: str
    modules: tuple[ModuleShapes, ...]

    def of(self, path: str) -> ModuleShapes:
        """Return all that is known of a module.

        Raises:
            TargetError: there is none at this path.
        """
        known = {module.path: module for module in self.modules}
        if path not in known:
            raise TargetError(
                f"{literal(path)} is no module of this {self.model}",
                wrong=str(path),
                found=plural(len(known) - 1, "module"),
                near=near(str(path), known),
            )
        return known[path]

    def __getitem__(self, path: str) -> object:
        return self.of(path).output

    def __contains__(self, path: object) -> bool:
        return any(module.path == path for module in self.modules)

    def get(self, path: str, default: object = None) -> object:
        """Return the shape of a module's output, or the default where there is no such module."""
        try:
            return self[path]
        except TargetError:
            return default

    def __iter__(self) -> Iterator[str]:
        return (module.path for module in self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def table(self) -> str:
        """Write a line for every module."""
        texts = self._texts()
        return columns([(m.path or "the root", m.kind, texts[m.path]) for m in self.modules])

    def __repr__(self) -> str:
        root = self.modules[0]
        given = ", ".join(write_dims(shape) for shape in root.inputs)
        sides = f"{self.model} on {given} gives {_write_shape(root.output)}"
        return f"{sides}: {root.parameters:,} parameters in {plural(len(self), 'module')}{self._tree()}"

    def _tree(self) -> str:
        """Draw the tree as deep as it can be read."""
        texts = self._texts()
        lines = lines_by_path({m.path: (m.kind, texts[m.path]) for m in self.modules[1:]})
        tree = draw_as_deep(lines, ".table() lists every module")
        return "".join(f"\n{line}" for line in tree.splitlines())

    def _texts(self) -> dict[str, str]:
        """Write shapes, layout, parameters and calls of each module in columns."""
        counts = [f"{module.parameters:,}" for module in self.modules]
        wide = max(map(len, counts))
        busy = {path for module in self.modules if module.calls for path in parents_of(module.path)}
        cells = []
        for module, count in zip(self.modules, counts, strict=True):
            given = ", ".join(write_dims(shape) for shape in module.inputs)
            arrow = f"{given} -> {_write_shape(module.output)}" if module.calls else ""
            idle = "" if module.calls or module.path in busy else "not called"
            often = f"{module.calls} calls" if module.calls > 1 else idle
            cells.append((arrow, module.layout or "", count.rjust(wide), often))
        return dict(zip(self, columns(cells).splitlines(), strict=True))


def _shaped(value: object) -> object:
    """Put shapes in the place of the tensors of a nested value."""
    return map_tensors(lambda tensor: tuple(tensor.shape), value)


def _write_shape(shape: object) -> str:
    """Write a nested shape: ``(1 10, 1 10)``."""
    if is_shape(shape):
        return write_dims(shape)
    if isinstance(shape, (tuple, list)):
        return f"({', '.join(map(_write_shape, shape))})"
    if isinstance(shape, dict):
        return "{" + ", ".join(f"{name}: {_write_shape(item)}" for name, item in shape.items()) + "}"
    if dataclasses.is_dataclass(shape):
        fields = ", ".join(f"{name}: {_write_shape(item)}" for name, item in vars(shape).items())
        return f"{type(shape).__name__}({fields})"
    return repr(shape) if shape is None or isinstance(shape, (int, float, str)) else type(shape).__name__


@spelled
def output_shape(
    model: Stage | Sequence[Stage],
    *inputs: Input,
    dtype: torch.dtype | None = None,
    training: bool = False,
    **named: Input,
) -> object:
    """Tell the shape of what a model or a pipeline gives for inputs of some shapes.

    Everything runs on meta tensors: no value is computed and no memory is taken. Models are
    only read, and their hooks do not fire; a function is called as it is.

    Args:
        model: a module, a method of one, a function, a preset or another callable, or a list
            of them that are applied one after another.
        inputs: the shapes of the inputs. What is no shape is passed as it is: a tensor, of
            which only shape and dtype count, or a PIL image for a pipeline that takes one.
            Tuples, lists and dicts of shapes are passed as such.
        dtype: dtype of the inputs; that of the first floating parameter if missing.
        training: ``True`` for the shapes in training mode.
        named: shapes of inputs that are passed by name.

    Returns:
        A tuple of integers; where the model gives a tuple, a list, a dict or a dataclass, the
        same with shapes in the place of tensors.

    Raises:
        ModelError: it is nothing that can be run.
        OptionError: an input is given in a way that cannot be meant.
        ShapeError: it runs, but not on inputs of these shapes.
        AnalysisError: it does not run on meta tensors.

    Example:
        >>> from torchvision.models import resnet18
        >>> from torchvision.transforms import v2
        >>> output_shape(resnet18(num_classes=10), (2, 3, 224, 224))
        (2, 10)
        >>> image = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.Normalize([0.5], [0.5])])
        >>> output_shape([image, resnet18()], (1, 3, 480, 640))
        (1, 1000)
    """
    asked = Request("output_shape", stages_of(model), inputs, named, dtype, training)
    return _shaped(asked.run().output)


@spelled
def shapes(
    model: nn.Module,
    *inputs: Input,
    dtype: torch.dtype | None = None,
    training: bool = False,
    **named: Input,
) -> Shapes:
    """Tell what every module of a model takes and gives for inputs of some shapes.

    Everything runs on meta tensors, as in ``output_shape``.

    Args:
        model: any module; it is only read.
        inputs: the shapes of the inputs, as for ``output_shape``.
        dtype: dtype of the inputs; that of the first floating parameter if missing.
        training: ``True`` for the shapes in training mode.
        named: shapes of inputs that are passed by name.

    Returns:
        The shapes, by path: print them, look one up, or read the fields of each module.

    Raises:
        ModelError: it is no model.
        OptionError: an input is given in a way that cannot be meant.
        ShapeError: it runs, but not on inputs of these shapes.
        AnalysisError: it does not run on meta tensors.

    Example:
        >>> from torchvision.models import resnet18
        >>> told = shapes(resnet18(), (1, 3, 224, 224))
        >>> told["layer2"]
        (1, 128, 28, 28)
        >>> print(shapes(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5)), (1, 3, 8, 8)))
        Sequential on 1 3 8 8 gives 1 5: 1,669 parameters in 4 modules
          0  Conv2d   1 3 8 8 -> 1 8 6 6  NCHW    224
          1  Flatten  1 8 6 6 -> 1 288    NC        0
          2  Linear   1 288 -> 1 5        NC    1,445
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "shapes takes a model",
            asked=f"shapes({literal(model)}, ...)",
            found=kind(model),
            write="output_shape(<a callable>, ...)" if callable(model) else "shapes(<an nn.Module>, ...)",
        )
    check_model(model)
    asked = Request("shapes", [model], inputs, named, dtype, training)
    return _Teller(model, asked).shapes()


class _Teller:
    """Tell the shapes of a model and its layouts from one run."""

    def __init__(self, model: nn.Module, asked: Request) -> None:
        self._draft = Draft(model, asked.args() or asked.kwargs())
        self._calls: dict[int, list[ModuleCall]] = {}
        run = attrs.evolve(asked, stages=[self._draft.root]).run()
        self._draft.runs.adopt(run)
        for call in run.calls:
            self._calls.setdefault(id(call.module), []).append(call)

    def shapes(self) -> Shapes:
        """Tell the shapes of every module."""
        found = dict(self._draft.modules())
        paths = sorted(found, key=lambda path: self._started(found[path]))
        return Shapes(
            type(self._draft.root).__name__, tuple(self._module(path, found[path]) for path in paths)
        )

    def _started(self, module: nn.Module) -> float:
        """Tell when a module is first called; a list of modules stands where the first of them does."""
        calls = self._calls.get(id(module)) or [
            call for part in module.modules() for call in self._calls.get(id(part), ())
        ]
        return min((call.started for call in calls), default=float("inf"))

    def _module(self, path: str, module: nn.Module) -> ModuleShapes:
        calls = sorted(self._calls.get(id(module), []), key=lambda call: call.started)
        first = calls[0] if calls else None
        layout = layout_at(self._draft, path) if first else None
        return ModuleShapes(
            path,
            type(module).__name__,
            tuple(tuple(t.shape) for t in tensors_in((first.args, first.kwargs))) if first else (),
            _shaped(first.output) if first else None,
            layout.name if layout else None,
            layout.grid if layout else None,
            layout.prefix if layout else 0,
            sum(p.numel() for p in module.parameters()),
            len(calls),
        )

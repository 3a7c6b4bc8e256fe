"""Resize: a model for images, patches or windows of another size, with its tables resampled."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import attrs
import torch
from torch import nn

from torchgraft.edits.resampling import Size, relative_index
from torchgraft.edits.sized import Sized, find_sized
from torchgraft.errors import AnalysisError, OptionError, ShapeError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.probe import Example
from torchgraft.text import class_name, literal, spelled, wrong
from torchgraft.transform import Transform

_METHOD = "set_input_size"
"""With it models say themselves how they are resized; those of timm do."""
_USUAL = {"image_size": "384", "patch_size": "16", "window_size": "8"}
_COUNTS = ("num_patches", "num_positions", "num_embeddings", "seq_length")
Changes = dict[str, dict[object, object]]
"""The attributes that hold sizes, by name, each with its new values by the old ones."""


@attrs.frozen(repr=False)
class Resize(Transform):
    """Make a model one for images, patches or windows of another size."""

    name: ClassVar[str] = "resize"
    image_size: int | Size | None = attrs.field(kw_only=True, default=None)
    patch_size: int | Size | None = attrs.field(kw_only=True, default=None)
    window_size: int | Size | None = attrs.field(kw_only=True, default=None)

    def _edit(self, draft: Draft) -> None:
        given = {name: getattr(self, name) for name in _USUAL}
        asked = {k: (v, v) if isinstance(v, int) else v for k, v in given.items() if v is not None}
        example = _example(draft, asked.get("image_size"))
        flags = {name: held.requires_grad for name, held in draft.root.named_parameters()}
        own, inside = list[nn.Module](), set[int]()
        for _, module in draft.modules():
            if id(module) not in inside and callable(getattr(module, _METHOD, None)):
                own.append(module)
                inside.update(map(id, module.modules()))
        rest = [module for _, module in draft.modules() if id(module) not in inside]
        found, image = find_sized(draft, rest) if rest else ([], None)
        with torch.no_grad():
            for module in own:
                _ask(module, asked)
            done = _by_hand(rest, asked, found, image)
        if not (own or done):
            raise TargetError(
                f"nothing in {class_name(type(draft.root))} is known to be made for one {' or '.join(asked)}",
                found="no embeddings of positions, and no biases by an index of distances",
                write="the model as it is, which may take inputs of any size",
            )
        for name, held in draft.root.named_parameters():
            held.requires_grad_(flags.get(name, held.requires_grad))
        draft.example = example if example is not None else draft.example
        draft.forget()
        try:
            draft.runs.run(training=False)
        except AnalysisError as error:
            if example is None:
                return  # nor did it before
            raise ShapeError(
                f"{class_name(type(draft.root))} does not run on the new size: how to resize it is not known",
                found=error.found,
                write="the builder of the model with that size, and load_weights(<the weights>, resize=True)",
            ) from error


@spelled
def resize(
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    window_size: int | tuple[int, int] | None = None,
) -> Resize:
    """Make a model one for images, patches or windows of another size.

    A model that has a ``set_input_size``, as those of timm, is asked for it. In others, position
    embeddings are found by their shape beside the convolution that cuts the image into patches,
    and tables of biases by the index that reads them. They are resampled as timm does: positions
    by antialiased bicubic interpolation, with the tokens before those of the image kept; kernels
    of patches by the pseudo-inverse of that (FlexiViT); biases as BEiT does. Dtype and
    ``requires_grad`` stay. The result runs on the new size, or nothing is done.

    Args:
        image_size: height and width of the images, or one number for both.
        patch_size: height and width of the patches of an image.
        window_size: height and width of the windows of attention, in every stage.

    Returns:
        The transform.

    Raises:
        OptionError: no size is given, or one is none.
        TargetError: nothing in the model is made for such a size, or how is not known.
        ShapeError: the model does not run on the new size.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> small = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
        >>> small.encoder.pos_embedding.shape, resize(image_size=48)(small).encoder.pos_embedding.shape
        (torch.Size([1, 17, 8]), torch.Size([1, 37, 8]))

    Source:
        Beyer et al., FlexiViT, arXiv 2212.08013; Bao et al., BEiT, arXiv 2106.08254.
    """
    given = {"image_size": image_size, "patch_size": patch_size, "window_size": window_size}
    for name, value in given.items():
        sides = value if isinstance(value, (tuple, list)) else (value, value)
        right = len(sides) == 2 and all(type(one) is int and one > 0 for one in sides)
        if value is not None and not right:
            raise wrong(f"{name} is a number above 0, or two of them", value, _USUAL[name], name=name)
    if all(value is None for value in given.values()):
        raise OptionError("resize needs a size", asked="resize()", write="resize(image_size=384)")
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Resize(**sizes)


def _ask(module: nn.Module, asked: Mapping[str, Size]) -> None:
    """Let a module resize itself.

    Raises:
        TargetError: it does not take such a size.
    """
    method = getattr(module, _METHOD)
    takes = inspect.signature(method).parameters
    words = {
        "img_size" if name == "image_size" and "img_size" in takes else name: v for name, v in asked.items()
    }
    try:
        method(**words)
    except Exception as error:  # it is code of anybody
        said = {n: literal(v[0] if v[0] == v[1] else v) for n, v in asked.items()}
        known = [f"{n}={v}" for n, v in said.items() if n in takes or n == "image_size"]
        raise TargetError(
            f"{class_name(type(module))} cannot be given {', '.join(f'{n}={v}' for n, v in said.items())}",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            write=f"resize({', '.join(known or ['image_size=384'])})" if words.keys() - takes.keys() else "",
        ) from error


def _by_hand(
    rest: Sequence[nn.Module], asked: Mapping[str, Size], found: Sequence[Sized], image: Size | None
) -> int:
    """Resample tensors of modules that do not resize themselves, and set what they call their sizes.

    Returns:
        How many tensors and attributes were changed.
    """
    changes: Changes = {}
    sizes = {"window": asked["window_size"]} if "window_size" in asked else {}
    for one in found:
        if one.kind == "patch" and image is not None and asked.keys() - {"window_size"}:
            patch, larger = asked.get("patch_size", one.size), asked.get("image_size", image)
            grid = (image[0] // one.size[0], image[1] // one.size[1])
            sizes |= {"patch": patch, "grid": (larger[0] // patch[0], larger[1] // patch[1])}
            _change(changes, ("image_size", "img_size") * ("image_size" in asked), image, larger)
            _change(changes, ("patch_size",) * ("patch_size" in asked), one.size, patch)
            _change(changes, ("grid_size", "feat_size"), grid, sizes["grid"])
    done, anew = 0, dict[int, torch.Tensor]()
    for one in found:
        new = sizes.get(one.kind)
        if new is None or all(one.module is not module for module in rest):
            continue
        done += one.kind != "patch" or "patch_size" in asked
        if new == one.size:
            continue
        if id(one.tensor) not in anew:  # it may be tied
            made = one.resampled(one.tensor, one.size, new)
            anew[id(one.tensor)] = nn.Parameter(made) if isinstance(one.tensor, nn.Parameter) else made
        setattr(one.module, one.name, anew[id(one.tensor)])
        if isinstance(one.module, nn.Conv2d):
            one.module.kernel_size = one.module.stride = new
        elif one.kind == "grid":
            before, after = math.prod(one.size), math.prod(new)
            for name in _COUNTS:
                changes.setdefault(name, {}).update({before: after, before + one.prefix: after + one.prefix})
        else:
            _change(changes, ("window_size",), one.size, new)
            _change(changes, ("shift_size",), *((h // 2, w // 2) for h, w in (one.size, new)))
            changes.setdefault("window_area", {})[math.prod(one.size)] = math.prod(new)
            index = one.module._buffers[one.index]
            if index is not None:
                known = relative_index(new, one.prefix).to(index.device)
                one.module._buffers[one.index] = known.reshape(-1) if index.ndim == 1 else known
    configs: dict[int, object] = {}
    for module in rest:
        done += _set_sizes(vars(module), changes) + _number_anew(module, changes)
        config = vars(module).get("config")
        if config is not None and hasattr(config, "__dict__"):  # the modules of a model share one
            if id(config) not in configs:
                configs[id(config)] = copy.copy(config)
                _set_sizes(vars(configs[id(config)]), changes)
            vars(module)["config"] = configs[id(config)]
    return done


def _change(changes: Changes, names: Sequence[str], old: Size, new: Size) -> None:
    """Note what attributes of some names hold now, as a pair and as one number for both sides."""
    for name in names if all(old) else ():  # what does not shift stays where it is
        known = changes.setdefault(name, {})
        known[old] = new
        if old[0] == old[1]:
            known[old[0]] = new[0] if new[0] == new[1] else new


def _number_anew(module: nn.Module, changes: Changes) -> int:
    """Make buffers that number the positions number the new ones."""
    done, counts = 0, changes.get(_COUNTS[0], {})
    for name, held in module._buffers.items():
        if held is None or held.dtype is not torch.long or held.shape[-1:] != (held.numel(),):
            continue
        count, now = counts.get(held.numel()), torch.arange(held.numel())
        if isinstance(count, int) and (held.is_meta or held.reshape(-1).cpu().equal(now)):
            module._buffers[name] = torch.arange(count, device=held.device).reshape(*held.shape[:-1], -1)
            done += 1
    return done


def _set_sizes(held: dict[str, object], changes: Changes) -> int:
    """Set the attributes that hold a size which changes.

    Raises:
        ShapeError: one of them is a number for both sides, which differ now.
    """
    done = 0
    for name, known in changes.items():
        value = held.get(name)
        if type(value) not in (int, tuple, list):
            continue
        key = tuple(value) if isinstance(value, list) else value
        new, done = known.get(key, value), done + (key in known)
        if isinstance(value, int) and isinstance(new, tuple):
            raise ShapeError(
                f"{name} is one number here, for both sides",
                found=f"{name}={value}",
                write=f"resize({name}={new[0]})",
            )
        held[name] = list(new) if isinstance(value, list) and isinstance(new, tuple) else new
    return done


def _example(draft: Draft, image: Size | None) -> Example | None:
    """Return what the model runs on, with images of another size; ``None`` where that is not known."""
    try:
        taken = draft.runs.run(training=False).calls[-1]
    except AnalysisError:
        return None

    def other(value: object) -> object:
        if image is None or not isinstance(value, torch.Tensor) or value.ndim != 4:
            return value
        return value.new_empty(*value.shape[:2], *image)

    if taken.kwargs:
        return None if taken.args else {name: other(value) for name, value in taken.kwargs.items()}
    return tuple(map(other, taken.args))

"""Swap or drop the head of a model, found by structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.lora import LoRA
from torchgraft.blocks.parse import parse_block
from torchgraft.blocks.registry import names
from torchgraft.edits.tapping import choice, turns_of
from torchgraft.errors import AnalysisError, HeadError, OptionError, ShapeError
from torchgraft.graph.deep.record import Record, record
from torchgraft.graph.deep.tail import record_tail
from torchgraft.graph.detectors import heads_of_detector
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import around, before, insert_child, relative
from torchgraft.graph.heads import COUNTS, Head, NoHead, find_heads
from torchgraft.graph.taps.carrying import carry, return_only
from torchgraft.paths import parent_of
from torchgraft.spec import TensorSpec, made_on
from torchgraft.text import check_flags, spelled, write_error, wrong
from torchgraft.transform import Transform


def _heads(draft: Draft) -> list[Head]:
    try:
        return find_heads(draft)
    except AnalysisError as error:
        return heads_of_detector(draft, error)
    except HeadError as error:
        names = [path for path, _ in draft.root.named_modules() if draft.is_added(path)]
        found = [part.partition(" ")[0] + "." for part in error.found.split(", ")]
        if any(part.startswith(f"{name}.") for name in names for part in found):
            error.write = "the same steps with swap_head before those that stand behind the head"
            if any(isinstance(module, LoRA) for module in draft.root.modules()):
                error.write = f"merge_lora() before, or {error.write}"
        raise


@attrs.frozen(repr=False)
class SwapHead(Transform):
    """Exchange every head for a new one."""

    name: ClassVar[str] = "swap_head"
    head: int | Block
    dropout: float = attrs.field(kw_only=True, default=0.0)

    def _edit(self, draft: Draft) -> None:
        heads = _heads(draft)
        made: dict[int, nn.Parameter | None] = {}
        for head in heads:
            like = _weight(draft, head)
            if isinstance(self.head, int):
                new = _projection(head, self.head * head.each, like)
                for name, old in head.module._parameters.items():
                    if old is not None:  # heads that share a weight go on to share one
                        new._parameters[name] = made.setdefault(id(old), new._parameters[name])
                _count(draft, head, self.head)
            else:
                _check_single(heads)
                new = _built(head, self.head, like)
            draft.exchange(head.path, new.train(head.module.training))
            if self.dropout:
                _drop_before(draft, head.path, self.dropout)
        if isinstance(self.head, int):
            _check_count(draft, heads, self.head)
        draft.changed()


@attrs.frozen(repr=False)
class DropHead(Transform):
    """Exchange every head for nothing, so that the model returns what the heads took."""

    name: ClassVar[str] = "drop_head"
    pooled: bool = attrs.field(kw_only=True, default=True)

    def _edit(self, draft: Draft) -> None:
        if not self.pooled:
            found = choice((), None, (-1,), None).find(draft, None)
            carry(draft, [one.tap for one in found], turns_of(draft, found, "NCHW"), keep_output=False)
            return_only(draft)
            return
        heads = _heads(draft)
        _check_single(heads)
        for head in heads:
            _check_features(draft, head, heads)
        for head in heads:
            _count(draft, head, 0)
            nothing = NoHead(head.width, head.axes, bias=head.bias)
            draft.exchange(head.path, nothing.train(head.module.training))
        if len({head.width for head in heads}) == 1:
            _check_count(draft, heads, heads[0].width)
        draft.changed()


@spelled
def swap_head(head: int | Block, *, dropout: float = 0.0) -> SwapHead:
    """Exchange the classifier for a new one; it is found by structure, not by name.

    The head is the last projection on every way to an output: linear or convolutional,
    nested or several (auxiliary and distilled heads are all exchanged). It keeps its path,
    its kind, its bias or the lack of it, device, dtype and memory format.

    Args:
        head: number of classes, or a block that is built for the features.
        dropout: probability of a dropout before the new head, beside what the model has.

    Returns:
        The transform.

    Raises:
        OptionError: the number or the probability is out of range.

    Example:
        >>> swap_head(10, dropout=0.2)
        swap_head(10, dropout=0.2)
    """
    if isinstance(head, int):
        if isinstance(head, bool) or head < 1:
            raise OptionError(
                "the number of classes must be positive", found=f"{head!r}", write="drop_head()"
            )
    elif isinstance(head, str) and head not in names():
        raise wrong("a head is a number of classes or a block", head, "<classes>")
    else:
        head = parse_block(head)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise wrong("dropout is a probability below 1", dropout, "0.2", name="dropout")
    return SwapHead(head, dropout=float(dropout))


@spelled
def drop_head(*, pooled: bool = True) -> DropHead:
    """Take the classifier out, so that the model returns the pooled features.

    Args:
        pooled: ``False`` for the map before them, ``n c h w``, as ``features(stages=(-1,))`` gives it.

    Returns:
        The transform.

    Raises:
        OptionError: ``pooled`` is neither ``True`` nor ``False``.

    Example:
        >>> from torchvision.models import resnet18
        >>> import torch
        >>> drop_head()(resnet18())(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512])
        >>> drop_head(pooled=False)(resnet18())(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512, 2, 2])
    """
    check_flags(pooled=pooled)
    return DropHead(pooled=pooled)


def _weight(draft: Draft, head: Head) -> torch.Tensor:
    """Return the tensor whose device, dtype and memory format a new head takes."""
    if isinstance(head.module, NoHead):
        return draft.like
    return head.module.weight


def _projection(head: Head, classes: int, like: torch.Tensor) -> nn.Module:
    kind = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[head.axes]
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    kept = {name: getattr(head.module, name) for name in names if hasattr(head.module, name)}
    shape = {"kernel_size": 1, **kept} if head.axes > 2 else {}
    new = made_on(like, lambda: kind(head.width, classes, **shape, bias=head.bias, dtype=like.dtype))
    return new.to(memory_format=torch.contiguous_format if like.is_contiguous() else torch.channels_last)


def _built(head: Head, block: Block, like: torch.Tensor) -> nn.Module:
    new = block.build(TensorSpec(head.width, 1, head.axes, like.dtype, like.device))
    given = torch.empty((2, head.width, *(3,) * (head.axes - 2)), dtype=like.dtype, device="meta")
    try:
        record(new, ((given,), {}))
    except Exception as error:
        raise ShapeError(
            f"{block!r} does not take the {head.width} features before {head.path!r}",
            found=write_error(error),
            write="swap_head(lambda channels: nn.Linear(channels, 10))",
        ) from error
    return new


def _check_count(draft: Draft, heads: list[Head], classes: int) -> None:
    """Refuse a forward that has the number of classes written down behind a head.

    Raises:
        HeadError: it does not run with another number, or gives something of another shape.
    """
    head = next((head for head in heads if (head.classes or head.width) != classes), None)
    if head is None or draft.runs.known(training=False) is None:
        draft.changed()  # found at the end of a row: it is what the model gives
        return
    old = draft.runs.deep(fresh=False)
    draft.changed()
    was, error = head.classes or head.width, None
    paths = [head.path for head in heads]
    runs: tuple[Callable[[], Record], ...] = (
        lambda: record_tail(draft.runnable(), old, paths),
        draft.runs.deep,  # what looks wrong is looked at as a whole
    )
    for run in runs:
        try:
            new = run()
        except Exception as failed:  # noqa: BLE001 - a forward may fail in any way
            error = failed
            continue
        shapes = [[made.shapes[value] for value in made.outputs] for made in (old, new)]
        changed = [_changed(one, other, was, classes) for one, other in zip(*shapes, strict=False)]
        if any(changed) and None not in changed:
            return
    place = next((place for head in heads for place in head.counts(draft)), "what is behind the head")
    raise HeadError(
        f"the number of classes is written into the forward behind {head.path!r}",
        found=f"{place} with {head.classes}",
        write=f'replace("{place}", <a module without that number>) before',
    ) from error


def _changed(before: torch.Size, after: torch.Size, old: int, new: int) -> bool | None:
    """Return whether a shape has the new number where the old one was; ``None`` if it differs elsewhere."""
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if a != b]
    return bool(pairs) if len(before) == len(after) and all(pair == (old, new) for pair in pairs) else None


def _check_single(heads: list[Head]) -> None:
    """Refuse what only another number of classes can take the place of: scores and boxes of a detector.

    Raises:
        HeadError: the heads are those of a detector.
    """
    if any(head.each > 1 for head in heads):
        raise HeadError(
            "the heads of a detector take another number of classes, and nothing else",
            found=", ".join(head.path for head in heads),
            write="swap_head(10)",
        )


_TURNS_TO_ODDS = frozenset(("_softmax", "_log_softmax", "sigmoid", "log_sigmoid_forward"))


def _check_features(draft: Draft, head: Head, heads: list[Head]) -> None:
    """Refuse to drop a head where what it took cannot go on in the place of what it gave.

    Raises:
        HeadError: odds are made of its output, or it meets the output of one of another width.
    """
    for path, op in head.behind:
        if op.name.rstrip("_") in _TURNS_TO_ODDS:
            name = op.name.strip("_").replace("log_sigmoid_forward", "logsigmoid")
            layer = path and not draft.get(path)._modules
            target = f'"{path}"' if layer else f'op("{name}").last'
            raise HeadError(
                f"what is behind the head {head.path!r} would make odds of features",
                found=f"{name} on the way to the output",
                write=f"pipe(model, remove({target}), drop_head())",
            )
    for other in heads:
        if other.width != head.width and head.meets(other):
            raise HeadError(
                f"what the heads {head.path!r} and {other.path!r} give is put together, and what they take "
                "does not fit",
                found=f"{head.width} and {other.width} features",
                write="features(strides=(16,)), for the maps before the heads",
            )


def _count(draft: Draft, head: Head, classes: int) -> None:
    """Keep the class count right that the modules around the head declare."""
    path = head.path
    while path:
        path = parent_of(path)
        held = vars(draft.get(path))
        held.update({name: classes for name in COUNTS if held.get(name) == head.classes})
        config: Any = held.get("config")  # of Hugging Face models, which write it beside the weights
        if getattr(config, "num_labels", None) == head.classes:
            config.num_labels = classes


def _drop_before(draft: Draft, path: str, probability: float) -> None:
    for owner, edges in around(draft.calls(path), before).items():
        child = relative(path, owner)
        name = draft.fresh(owner, f"{child.replace('.', '_')}_dropout")
        level = draft.get(owner)
        before_it = level._modules.get(f"{child.replace('.', '_')}_dropout")
        if isinstance(before_it, nn.Dropout):  # of an earlier head
            before_it.p = probability
            continue
        draft.place(owner, name, nn.Dropout(probability).train(level.training))
        insert_child(draft, edges, name)

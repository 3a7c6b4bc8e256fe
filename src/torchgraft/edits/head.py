"""Swap or drop the head of a model, found by structure."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import nn

from torchgraft.blocks.block import Block
from torchgraft.blocks.parse import parse_block
from torchgraft.errors import OptionError, ShapeError
from torchgraft.graph.behind import check_behind
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import around, before, relative
from torchgraft.graph.heads import Head, NoHead, find_heads
from torchgraft.graph.run import run_on_meta
from torchgraft.spec import TensorSpec
from torchgraft.text import literal, spelled
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class SwapHead(Transform):
    """Exchange every head for a new one."""

    name: ClassVar[str] = "swap_head"
    head: int | Block
    dropout: float = attrs.field(kw_only=True, default=0.0)

    def _edit(self, draft: Draft) -> None:
        for head in find_heads(draft):
            check_behind(draft, head)
            if isinstance(self.head, int):
                new = _projection(head, self.head, _weight(draft, head))
                _count(draft, head, self.head)
            else:
                new = _built(head, self.head, _weight(draft, head))
            draft.exchange(head.path, new.train(head.module.training))
            if self.dropout:
                _drop_before(draft, head.path, self.dropout)


@attrs.frozen(repr=False)
class DropHead(Transform):
    """Exchange every head for nothing, so that the model returns what the heads took."""

    name: ClassVar[str] = "drop_head"

    def _edit(self, draft: Draft) -> None:
        for head in find_heads(draft):
            check_behind(draft, head, features=True)
            _count(draft, head, 0)
            nothing = NoHead(head.width, head.axes, bias=head.bias)
            draft.exchange(head.path, nothing.train(head.module.training))


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
    asked = f"swap_head({literal(head)}, dropout={dropout!r})"
    if isinstance(head, int):
        if isinstance(head, bool) or head < 1:
            raise OptionError(
                "the number of classes must be positive", asked=asked, found=f"{head!r}", write="drop_head()"
            )
    else:
        head = parse_block(head)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise OptionError(
            "dropout is a probability below 1",
            asked=asked,
            found=f"dropout={dropout!r}",
            write=f"swap_head({literal(head)}, dropout=0.2)",
        )
    return SwapHead(head, dropout=float(dropout))


@spelled
def drop_head() -> DropHead:
    """Take the classifier out, so that the model returns the pooled features.

    Returns:
        The transform.

    Example:
        >>> from torchvision.models import resnet18
        >>> import torch
        >>> drop_head()(resnet18())(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512])
    """
    return DropHead()


def _weight(draft: Draft, head: Head) -> torch.Tensor:
    """Return the tensor whose device, dtype and memory format a new head takes."""
    if isinstance(head.module, NoHead):
        return next((p for p in draft.root.parameters() if p.is_floating_point()), torch.empty(0))
    return head.module.weight


def _projection(head: Head, classes: int, like: torch.Tensor) -> nn.Module:
    with torch.device(like.device):
        if head.axes == 2:
            return nn.Linear(head.width, classes, bias=head.bias, dtype=like.dtype)
        kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[head.axes]
        stride = getattr(head.module, "stride", 1)
        new = kind(head.width, classes, 1, stride=stride, bias=head.bias, dtype=like.dtype)
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return new.to(memory_format=torch.channels_last if last else torch.contiguous_format)


def _built(head: Head, block: Block, like: torch.Tensor) -> nn.Module:
    new = block.build(TensorSpec(head.width, 1, head.axes, like.dtype, like.device))
    given = torch.empty((2, head.width, *(3,) * (head.axes - 2)), dtype=like.dtype, device="meta")
    try:
        run_on_meta(new, (given,), training=False)
    except Exception as error:
        raise ShapeError(
            f"{block!r} does not take the {head.width} features before {head.path!r}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            write="swap_head(lambda channels: nn.Linear(channels, 10))",
        ) from error
    return new


def _count(draft: Draft, head: Head, classes: int) -> None:
    """Keep the class count right that the modules around the head declare."""
    path = head.path
    while path:
        path = path.rpartition(".")[0]
        held = vars(draft.get(path))
        if held.get("num_classes") == head.classes:
            held["num_classes"] = classes


def _drop_before(draft: Draft, path: str, probability: float) -> None:
    for owner, edges in around(draft.calls(path), before).items():
        child = relative(path, owner)
        name = draft.fresh(owner, f"{child.replace('.', '_')}_dropout")
        level = draft.open(owner)
        before_it = level._modules.get(f"{child.replace('.', '_')}_dropout")
        if isinstance(before_it, nn.Dropout):  # of an earlier head
            before_it.p = probability
            continue
        draft.place(owner, name, nn.Dropout(probability).train(level.training))
        for edge in edges:
            edge.insert(name, channels_last=False)

"""Drop path: stochastic depth on the residual branches of a model, found by structure."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from torchgraft.errors import TargetError
from torchgraft.graph.anchor import anchor_of
from torchgraft.graph.draft import Draft
from torchgraft.graph.edges import Edge, insert_child
from torchgraft.graph.nodes import is_in_place
from torchgraft.graph.residual import Branch, branch_edges, residual_units
from torchgraft.graph.rewrites import Redirect
from torchgraft.text import literal, plural, spelled, wrong
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class DropPath(Transform):
    """Drop every residual branch at a rate that grows with depth."""

    name: ClassVar[str] = "drop_path"
    rate: float

    def _edit(self, draft: Draft) -> None:
        units = residual_units(draft)
        if not units:
            raise _no_branch(draft, self.rate)
        held: dict[int, tuple[nn.Module, float]] = {}
        bare: list[tuple[Branch, float]] = []
        for number, unit in enumerate(units):
            rate = self.rate * number / (len(units) - 1) if len(units) > 1 else self.rate
            for branch in unit:
                module = next((m for m in branch.ending if rate_name(m)), None)
                if module is None:
                    bare += [(branch, rate)] if rate else []
                elif held.setdefault(id(module), (module, rate))[1] != rate:
                    raise _shared(draft, module, branch)
        for module, rate in held.values():
            setattr(module, rate_name(module) or "p", rate)
        found = [(branch, branch_edges(draft, branch), rate) for branch, rate in bare]
        for branch, edges, rate in found:
            _place(draft, branch, edges, rate)


@spelled
def drop_path(rate: float) -> DropPath:
    """Drop residual branches at random in training, each sample on its own: stochastic depth.

    The branches are found in a run on meta tensors: what is added to a value, or to a projection
    of it, and made from that value alone by more layers. Unit ``i`` of ``n``, in execution order,
    gets the rate ``rate * i / (n - 1)``; a single one gets ``rate``. A unit is a level that
    repeats, as a transformer block with its two branches, and elsewhere one addition.

    A branch that ends in stochastic depth already gets its rate set there. The others get a
    module ``drop_path`` beside the branch, none where the rate is 0. So ``drop_path(0)``
    leaves a model without stochastic depth as it is, and turns one that has it off. What is
    left is scaled up, so the expected sum stays, and evaluation does not change.

    Args:
        rate: share of the samples that the last branch drops.

    Returns:
        The transform.

    Raises:
        OptionError: the rate is out of range.

    Example:
        >>> from torchvision.models import resnet18
        >>> drop_path(0.1)(resnet18()).layer4[1].drop_path
        StochasticDepth(p=0.1, mode=row)

    Source:
        Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise wrong("the rate is a probability below 1", rate, "0.1")
    return DropPath(float(rate))


def rate_name(module: nn.Module) -> str | None:
    """Return the attribute with the rate of a module that is stochastic depth by what it does.

    Args:
        module: any module.

    Returns:
        ``"p"``, ``"drop_prob"``, or ``None`` for a module that is something else.
    """
    if isinstance(module, StochasticDepth):
        return "p"
    if module._modules or module._parameters or module._buffers:
        return None
    for name in ("drop_prob", "p"):
        if isinstance(vars(module).get(name), (int, float)) and _drops_samples(module, name):
            return name
    return None


def _drops_samples(module: nn.Module, name: str) -> bool:
    """Try on a copy whether some samples vanish and no sample does so in part."""
    twin = copy.copy(module)
    vars(twin).update({name: 0.5, "training": True})
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            left = twin.forward(torch.ones(32, 2, 16, 16, device="cpu"))
        except Exception:  # noqa: BLE001 - whatever it raises, it is no stochastic depth
            return False
    if not isinstance(left, torch.Tensor) or left.shape != (32, 2, 16, 16):
        return False
    samples = left.flatten(1)
    gone = samples[:, 0] == 0
    return bool((samples == samples[:, :1]).all() and gone.any() and not gone.all())


def _place(draft: Draft, branch: Branch, edges: list[Edge], rate: float) -> None:
    level = draft.get(branch.owner)
    name = draft.fresh(branch.owner, "drop_path")
    written = [edge for edge in edges if branch.end == 0 and is_in_place(edge.users[0])]
    # What reads the end of the branch after it was added to has to read the sum.
    draft.rewrite(branch.owner, [(e.graph, Redirect(anchor_of(e.users[0]))) for e in written])
    end = edges[0].value
    while end.op not in ("call_module", "placeholder"):  # the last module of the branch
        end = end.prev
    beside = str(end.target).partition(".")[0]
    draft.place(branch.owner, name, StochasticDepth(rate, "row").train(level.training), beside=beside)
    insert_child(draft, edges, name)


def _no_branch(draft: Draft, rate: float) -> TargetError:
    closed = sorted({literal(type(m)) for _, m in draft.modules() if isinstance(m, _CLOSED)})
    return TargetError(
        "the model has no residual branch: nothing is added to a shortcut around it",
        found=f"{', '.join(closed)}, whose forward is torch's own and is not searched"
        if closed
        else plural(sum(1 for path, _ in draft.modules() if path), "module"),
        write=f"set_dropout({rate!r}), or swap_head(10, dropout={rate!r})",
    )


_CLOSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def _shared(draft: Draft, module: nn.Module, branch: Branch) -> TargetError:
    path = draft.names(module)[0]
    return TargetError(
        f"{path!r} drops the branches of several units, which have different rates",
        found=f"one of them is in {branch.owner or 'the root'}",
        write=f'replace("{path}", nn.Identity), then drop_path(...)',
    )

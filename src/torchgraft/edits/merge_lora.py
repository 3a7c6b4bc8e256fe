"""Merge LoRA: fold low-rank weights into the layers that they adapt."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar, cast

import attrs
import torch
from torch import nn

from torchgraft.blocks.lora import LoRA, WeightLoRA, geometry_of, weight_of
from torchgraft.blocks.on_weight import is_adapted, release
from torchgraft.edits.on_weight import reads
from torchgraft.errors import TargetError, TraceError
from torchgraft.graph.cow import storage_of
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.edges import called
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.names import Node
from torchgraft.graph.outline import named_tensors
from torchgraft.paths import join_path, parent_of
from torchgraft.text import kind, spelled
from torchgraft.transform import Transform

Held = dict[int, list[str]]
"""The tensors of a model by their storage."""


@attrs.frozen(repr=False)
class MergeLora(Transform):
    """Fold every LoRA into the layer in front of it."""

    name: ClassVar[str] = "merge_lora"

    def _edit(self, draft: Draft) -> None:
        modules = reversed(list(draft.modules()))
        found = {id(module): path for path, module in modules if isinstance(module, LoRA)}
        if not found:
            raise TargetError("this model has no LoRA", write="wrap(<target>, lora(8))")
        held: Held = {}
        for name, tensor in named_tensors(draft.root):
            held.setdefault(storage_of(tensor) or id(tensor), []).append(name)
        plan = [_plan(draft, path, held) for path in reversed(found.values())]
        for path, base, calls in plan:
            module = draft.get(path)
            if isinstance(module, LoRA) and module.enabled:
                _fold(module, base)
            for call in calls:
                draft.open(call.owner)
                call.node.replace_all_uses_with(cast("Node", call.node.args[-1]))
                call.graph.erase_node(call.node)
            draft.discard(path)
            release(base)
        draft.changed()


@spelled
def merge_lora() -> MergeLora:
    """Fold every LoRA into the weight of the layer that it adapts, and take it out.

    What is left computes the same up to rounding, at the cost of the original, and has the
    original's state-dict keys: a LoRA that is switched off is taken out alone. Weights that were
    frozen stay frozen.

    Returns:
        The transform.

    Example:
        >>> from torch import nn
        >>> from torchgraft import pipe, wrap
        >>> from torchgraft.blocks import lora
        >>> adapted = wrap("0", lora(2))(nn.Sequential(nn.Linear(4, 3)))
        >>> list(adapted.state_dict())
        ['0.weight', '0.bias', '0_lora.down', '0_lora.up']
        >>> list(merge_lora()(adapted).state_dict())
        ['0.weight', '0.bias']

    Source:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    return MergeLora()


def _plan(draft: Draft, path: str, held: Held) -> tuple[str, nn.Module, list[Call]]:
    """Find the layer that a LoRA adapts, and check that its weight can take the LoRA in.

    Raises:
        TargetError: it cannot.
    """
    module, above = draft.get(path), parent_of(path)
    if is_adapted(draft.get(above)):
        base, calls = draft.get(above), list[Call]()
        _check_fold(path, module, above, base)
        _check_weight(draft, path, above, base, held, [])
        return path, base, calls
    calls = draft.calls(path)
    adapted = [_adapted(draft, call, path) for call in calls]
    names = [_layer(call.owner, node) for call, node in zip(calls, adapted)]
    bases = {id(base): base for base in map(draft.get, names)}
    name = names[0]
    if len(bases) > 1:
        raise TargetError(
            f"{path!r} adapts {len(bases)} layers at once, and each would need a merge of its own",
            found=", ".join(sorted(set(names))),
            write="a LoRA for each of them",
        )
    (base,) = bases.values()
    _check_fold(path, module, name, base)
    if not isinstance(module, WeightLoRA) or called(draft, name):
        _check_calls(draft, path, name, adapted)
    _check_weight(draft, path, name, base, held, adapted)
    return path, base, calls


def _check_fold(path: str, module: nn.Module, name: str, base: nn.Module) -> None:
    """Check that a LoRA was made for a layer and that no hooks see what the two compute."""
    if not isinstance(module, LoRA) or geometry_of(base) != module.geometry:
        raise TargetError(
            f"{path!r} was made for another layer than {name!r}",
            found=f"{kind(base)}, exchanged or changed since",
            write=f"a LoRA put beside the {type(base).__name__} that is there now",
        )
    for part, where in ((base, name), (module, path)):
        if part._forward_hooks or part._forward_pre_hooks:
            raise TargetError(
                f"{where!r} has hooks, which would see other values after the merge",
                found=f"hooks of {kind(part)}",
                write="the hooks removed before",
            )


def _adapted(draft: Draft, call: Call, path: str) -> Node:
    """Follow a LoRA back to the call of the layer, or the read of its weight, through others on the way.

    Raises:
        TargetError: something else stands between them, or uses the value of the layer.
    """
    on_weight = isinstance(draft.get(path), WeightLoRA)
    if len(call.node.args) != 2 - on_weight:
        raise _between(path, call.node)
    node, taken = call.node, call.node.args[0]
    while True:
        before = node.args[-1]
        read = on_weight and isinstance(before, Node) and before.op == "get_attr"
        if not isinstance(before, Node) or not (read or before.op == "call_module"):
            raise _between(path, before)
        others = [user.name for user in before.users if user is not node]
        if others:
            raise TargetError(
                f"{before.name!r} goes to {path!r} and elsewhere, where it would change",
                found=", ".join(others),
                write="the LoRA where all that takes the value comes after it",
            )
        if read:
            return before
        module = draft.get(_path(call.owner, before))
        if not isinstance(module, LoRA):
            if on_weight or geometry_of(module) is None:
                raise _between(path, before)
            if next(iter(before.all_input_nodes), None) is not taken:
                raise TargetError(
                    f"{path!r} takes another value than the layer that it adapts, {str(before.target)!r}",
                    found=f"{taken} and {', '.join(map(str, before.all_input_nodes))}",
                    write="the step before the layer added first, the LoRA after it",
                )
            return before
        node = before


def _between(path: str, node: object) -> TargetError:
    said = str(node.target if isinstance(node, Node) and node.op == "call_module" else node)
    return TargetError(
        f"{path!r} does not stand right behind a layer whose weight could take it in",
        found=f"{said!r} is in front of it",
        write="merge_lora() before other steps are put between the two",
    )


def _check_calls(draft: Draft, path: str, name: str, adapted: list[Node]) -> None:
    """Check that every call of a layer is followed by the LoRA."""
    known = set(adapted)
    missed = [call for call in draft.calls(name) if call.node not in known]
    owners = {call.owner for call in draft.calls(name)}
    hidden = [other for other in draft.names(draft.get(name)) if not _followed(draft, other, owners)]
    if missed or hidden:
        raise TargetError(
            f"{name!r} is also called without {path!r}, so its weight cannot take it in",
            found=", ".join([*hidden, *(f"{c.node.name} in {c.owner or 'the root'}" for c in missed)]),
            write=f"the same LoRA at all calls, by one wrap of {name!r} in one level",
        )


def _followed(draft: Draft, name: str, owners: set[str]) -> bool:
    """Return True if the forward next above a name of a layer is known to call it or not to."""
    owner = parent_of(name)
    while owner and not has_forward(draft.get(owner)):
        owner = parent_of(owner)
    if owner in owners:
        return True
    try:
        draft.graphs(owner)
    except TraceError:
        return False
    return True


def _check_weight(
    draft: Draft, path: str, name: str, base: nn.Module, held: Held, adapted: list[Node]
) -> None:
    """Check that the weight of a layer is a parameter that nothing else uses."""
    weight = base._parameters.get(weight_of(base))
    if weight is None:
        raise TargetError(
            f"the weight of {name!r} is computed from other tensors, so {path!r} cannot be folded into it",
            found=f"{', '.join(key for key, _ in base.named_parameters())} of {kind(base)}",
            write="the parametrisation removed before",
        )
    own = {f"{other}.{weight_of(base)}" for other in draft.names(base)}
    uses = [where for where in held.get(storage_of(weight) or id(weight), []) if where not in own]
    if not is_adapted(base):  # there, whoever reads it gets what is merged
        known = set(adapted)
        others = [read for read in reads(draft, base) if read.node not in known]
        uses += [f"{read.node.name} in {read.owner or 'the root'}" for read in others]
    if uses:
        raise TargetError(
            f"the weight of {name!r} is used elsewhere too, where {path!r} has no part in it",
            found=", ".join(dict.fromkeys(uses)),
            write="a weight of its own for the layer, by replace(...), before the wrap",
        )


def _fold(module: LoRA, base: nn.Module) -> None:
    """Add a low-rank weight to the weight of a layer, in float32 at least."""
    weight = base._parameters[weight_of(base)]
    assert weight is not None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = weight.device.type
    exact = (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    )
    with torch.no_grad(), exact:
        added = module.weight(dtype).to(weight.device) * module.scale
        weight.copy_(weight.to(dtype) + added)


def _layer(owner: str, node: Node) -> str:
    path = _path(owner, node)
    return parent_of(path) if node.op == "get_attr" else path


def _path(owner: str, node: Node) -> str:
    return join_path(owner, str(node.target))

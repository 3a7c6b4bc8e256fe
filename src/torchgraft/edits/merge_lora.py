"""Merge LoRA: fold low-rank weights into the layers that they adapt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import ClassVar, cast

import attrs
import torch
from torch import nn

from torchgraft.blocks.lora import LoRA, geometry_of
from torchgraft.errors import TargetError, TraceError
from torchgraft.graph.draft import Call, Draft
from torchgraft.graph.kinds import has_forward
from torchgraft.graph.names import Node
from torchgraft.text import kind, spelled
from torchgraft.transform import Transform

Held = dict[int, list[str]]
"""The tensors of a model by their storage."""


@attrs.frozen(repr=False)
class MergeLora(Transform):
    """Fold every LoRA into the layer in front of it."""

    name: ClassVar[str] = "merge_lora"

    def _edit(self, draft: Draft) -> None:
        found = {id(module): path for path, module in reversed(list(draft.modules())) if _is_lora(module)}
        if not found:
            raise TargetError("this model has no LoRA", write='wrap("<a layer>", lora(8)) before')
        held = _held(draft)
        plan = [_plan(draft, path, held) for path in reversed(found.values())]
        for path, base, calls in plan:
            _fold(draft.get(path), base)
            for call in calls:
                draft.open(call.owner)
                call.node.replace_all_uses_with(cast("Node", call.node.args[1]))
                call.graph.erase_node(call.node)
            draft.discard(path)
        draft.changed()


@spelled
def merge_lora() -> MergeLora:
    """Fold every LoRA into the weight of the layer that it adapts, and take it out.

    What is left computes the same up to rounding, at the cost of the original, and has the
    original's state-dict keys. Weights that were frozen stay frozen.

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


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, LoRA)


def _plan(draft: Draft, path: str, held: Held) -> tuple[str, nn.Module, list[Call]]:
    """Find the layer that a LoRA adapts, and check that its weight can take the LoRA in.

    Raises:
        TargetError: it cannot.
    """
    module, calls = draft.get(path), draft.calls(path)
    adapted = [_adapted(draft, call, path) for call in calls]
    bases = {
        id(base): base for base in (draft.get(_path(call.owner, node)) for call, node in zip(calls, adapted))
    }
    name = _path(calls[0].owner, adapted[0])
    if len(bases) > 1:
        raise TargetError(
            f"{path!r} adapts {len(bases)} layers at once, and each would need a merge of its own",
            found=", ".join(sorted({_path(call.owner, node) for call, node in zip(calls, adapted)})),
            write="a LoRA for each of them",
        )
    (base,) = bases.values()
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
    _check_calls(draft, path, name, adapted)
    _check_weight(draft, path, name, base, held)
    return path, base, calls


def _adapted(draft: Draft, call: Call, path: str) -> Node:
    """Follow a LoRA back to the call of the layer, through others that adapt the same layer.

    Raises:
        TargetError: something else stands between them, or uses the value of the layer.
    """
    if len(call.node.args) != 2:
        raise _between(path, call.node)
    node, taken = call.node, call.node.args[0]
    while True:
        before = node.args[1]
        if not isinstance(before, Node) or before.op != "call_module":
            raise _between(path, before)
        others = [user.name for user in before.users if user is not node]
        if others:
            raise TargetError(
                f"{before.name!r} goes to {path!r} and elsewhere, where it would change",
                found=", ".join(others),
                write="the LoRA where all that takes the value comes after it",
            )
        module = draft.get(_path(call.owner, before))
        if not isinstance(module, LoRA):
            if geometry_of(module) is None:
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
    """Tell whether the forward next above a name of a layer is known to call it or not to."""
    owner = name.rpartition(".")[0]
    while owner and not has_forward(draft.get(owner)):
        owner = owner.rpartition(".")[0]
    if owner in owners:
        return True
    try:
        draft.graphs(owner)
    except TraceError:
        return False
    return True


def _check_weight(draft: Draft, path: str, name: str, base: nn.Module, held: Held) -> None:
    """Check that the weight of a layer is a parameter that nothing else uses."""
    weight = base._parameters.get("weight")
    if weight is None:
        raise TargetError(
            f"the weight of {name!r} is computed from other tensors, so {path!r} cannot be folded into it",
            found=f"{', '.join(key for key, _ in base.named_parameters())} of {kind(base)}",
            write="the parametrisation removed before",
        )
    own = {f"{other}.weight" for other in draft.names(base)}
    uses = [where for where in held.get(_storage(weight), []) if where not in own]
    uses += _reads(draft, base)
    if uses:
        raise TargetError(
            f"the weight of {name!r} is used elsewhere too, where {path!r} has no part in it",
            found=", ".join(dict.fromkeys(uses)),
            write="a weight of its own for the layer, by replace(...), before the wrap",
        )


def _held(draft: Draft) -> Held:
    found: Held = {}
    for where, module in draft.modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.setdefault(_storage(tensor), []).append(f"{where}.{key}".lstrip("."))
    return found


def _storage(tensor: torch.Tensor) -> int:
    """Name the storage of a tensor; a tensor that has none stands for itself."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _reads(draft: Draft, base: nn.Module) -> Iterator[str]:
    """Name what reads the weight in the forwards above a layer, without a call of it."""
    for other in draft.names(base):
        owner = other
        while owner:
            owner = owner.rpartition(".")[0]
            if not has_forward(draft.get(owner)):
                continue
            try:
                graphs = draft.graphs(owner)
            except TraceError:
                break
            wanted = f"{other}.weight"[len(owner) :].lstrip(".")
            for graph in graphs:
                yield from (
                    f"{n.name} in {owner or 'the root'}"
                    for n in graph.nodes
                    if n.op == "get_attr" and n.target == wanted
                )


def _fold(module: nn.Module, base: nn.Module) -> None:
    """Add a low-rank weight to the weight of a layer, in float32 at least."""
    assert isinstance(module, LoRA)
    weight = base._parameters["weight"]
    assert weight is not None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = weight.device.type
    exact = (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    )
    with torch.no_grad(), exact:
        added = module.weight(dtype).to(weight.device) * module.scale
        weight.copy_(weight.to(dtype) + added)


def _path(owner: str, node: Node) -> str:
    return f"{owner}.{node.target}".lstrip(".")

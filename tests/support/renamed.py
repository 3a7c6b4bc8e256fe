"""A model written anew: flat, with names that tell nothing, registered in another order."""

from __future__ import annotations

import copy
import random

from torch import fx, nn


def renamed(model: nn.Module, *, seed: int = 0) -> tuple[nn.Module, dict[str, str]]:
    """Rename every leaf of a model and shuffle the order in which they are registered.

    Args:
        model: a model that torch.fx follows; it is only read.
        seed: for the names and the order.

    Returns:
        The model under other names, and for each of its tensors the old name.
    """
    traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    whole = copy.deepcopy(model)
    draws = random.Random(seed)
    leaves = [path for path, module in whole.named_modules(remove_duplicate=False) if not module._modules]
    loose = [
        key
        for key, _ in (
            *whole.named_parameters(remove_duplicate=False),
            *whole.named_buffers(remove_duplicate=False),
        )
        if key.rpartition(".")[0] not in leaves
    ]
    draws.shuffle(leaves)
    draws.shuffle(loose)
    taken = draws.sample(range(10**6), len(leaves) + len(loose))
    names = {old: f"m{number}" for old, number in zip((*leaves, *loose), taken, strict=True)}
    root = nn.Module()
    for path in leaves:
        root.add_module(names[path], whole.get_submodule(path))
    for key in loose:
        _hold(root, names[key], whole, key)
    graph = copy.deepcopy(traced.graph)
    for node in graph.nodes:
        if node.op == "call_module":
            node.target = names[node.target]
        elif node.op == "get_attr":
            node.target = _renamed(node.target, names)
    made = fx.GraphModule(root, graph)
    for name, module in root._modules.items():  # also what the forward leaves out
        made.add_module(name, module)
    olds = {_renamed(key, names): key for key in model.state_dict()}
    made.train(model.training)
    return made, {key: olds[key] for key in made.state_dict()}


def _hold(root: nn.Module, name: str, model: nn.Module, key: str) -> None:
    path, _, last = key.rpartition(".")
    owner = model.get_submodule(path)
    if last in owner._parameters:
        root.register_parameter(name, owner._parameters[last])
    else:
        root.register_buffer(name, owner._buffers[last], last not in owner._non_persistent_buffers_set)


def _renamed(key: str, names: dict[str, str]) -> str:
    path, _, last = key.rpartition(".")
    return f"{names[path]}.{last}" if path in names else names[key]

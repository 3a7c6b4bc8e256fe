"""Turn strides beyond a limit into denser maps: attributes of layers, and steps around calls."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from torchgraft.errors import TargetError
from torchgraft.graph.binding import bind_nodes
from torchgraft.graph.density.dense import put_together, take_apart, take_original
from torchgraft.graph.density.spread import Change, Key, Spread
from torchgraft.graph.draft import Draft
from torchgraft.graph.kinds import is_container
from torchgraft.graph.level import edited_graphs
from torchgraft.paths import join_path


def densify(draft: Draft, limit: int) -> None:
    """Make the maps of a model dense enough for none to have a stride beyond a limit.

    Raises:
        TargetError: something on the way cannot be made denser.
        TraceError: a forward that has to be edited for it cannot be followed.
    """
    edited = [graph for _, module in draft.modules() for graph in edited_graphs(module)]
    if any(node.target is take_apart for graph in edited for node in graph.nodes):
        raise TargetError(
            "the model was dilated already, with steps that cannot be taken further",
            found="maps that are taken apart for what works on whole ones",
            write=f"dilate({limit}) in the place of the first one",
        )
    windows: dict[str, dict[str, object]] = {}
    calls: dict[tuple[fx.Node, Change], str] = {}
    modal = any(is_container(draft.get(path)) for path in draft.runs.deep().modal)
    for training in (False, True) if modal else (False,):
        record = draft.runs.deep(training=training)
        spread = Spread(draft, record, limit)
        changes = _agreed_changes(spread)
        for (path, number), needed in changes.items():
            window = _dense_window(draft.get(path), needed[0]) if number < 0 else {}
            if window:
                windows[path] = window
            elif window is None:
                calls.update(((call.node, c), call.owner) for call in draft.calls(path) for c in needed)
        for path in dict.fromkeys(path for path, number in changes if number >= 0):
            graph = draft.graphs(path)[-int(training)]  # one may be for both modes
            for node, ops, inputs in bind_nodes(draft, path, graph, record, training=training):
                if any((path, number) in changes for number in ops):
                    name, output = join_path(path, node.name), list(ops.values())[-1].outputs[0]
                    calls.update(((node, c), path) for c in spread.changes_between(name, inputs, output))
    for path, window in windows.items():
        vars(draft.get(path)).update(window)
    for (node, change), owner in calls.items():
        if change.place >= len(node.all_input_nodes):
            raise TargetError(
                f"{node.name!r} in {owner or 'the root'} takes maps inside a container",
                found=f"{change.place + 1} maps in {len(node.all_input_nodes)} arguments",
                write=f"a layer that takes them one by one: replace({node.name!r}, ...)",
            )
        draft.open(owner)
        _edit_call(node, change)
    draft.forget()


def _agreed_changes(spread: Spread) -> dict[Key, tuple[Change, ...]]:
    """Return what every layer and operation needs that needs something.

    Raises:
        TargetError: it is used several times, and would need different ones.
    """
    found = {step.key: change for step, change in spread.changes.items()}
    for step in spread.steps:
        if step.key in found and spread.changes.get(step) != found[step.key]:
            raise TargetError(
                f"{step.name!r} is used at several places, and would have to be dilated in different ways",
                found="maps of different strides that run through the same layer",
                write=f'replace("{step.key[0]}", ...) so that each place has a layer of its own',
            )
    return found


def _dense_window(module: nn.Module, change: Change) -> dict[str, object] | None:
    """Return the attributes with which a layer reads places that lie apart; ``None`` if there are none."""
    held: Any = module
    pool = type(module).forward is nn.MaxPool2d.forward
    if (
        not (pool or type(module).forward is nn.Conv2d.forward)
        or "forward" in vars(module)
        or not change.sides
    ):
        return None
    if held.return_indices if pool else held.padding_mode != "zeros" or isinstance(held.padding, str):
        return None
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (
        [value] * 2 if isinstance(value, int) else [*value] for value in (getattr(held, n) for n in names)
    )
    for i, (_, _, before, after, step) in enumerate(change.sides):
        strided = (before, 1) != (after, step)
        if strided and (2 * padding[i] != dilation[i] * (kernel[i] - 1) or (pool and held.ceil_mode)):
            return None  # the size of what it gives would not be that of other ways
        stride[i], padding[i] = step, padding[i] * before
        dilation[i] *= before if kernel[i] > 1 else 1
        if pool and 2 * padding[i] > kernel[i]:
            return None  # torch allows half a kernel at most
    return {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}


def _edit_call(node: fx.Node, change: Change) -> None:
    """Take a map apart around a call, or give the call the places of it that it had in the original."""
    graph, source = node.graph, node.all_input_nodes[change.place]
    with graph.inserting_before(node):
        function = take_apart if change.sides else take_original
        taken = graph.call_function(function, (source, *(change.sides or change.cuts)))
    node.replace_input_with(source, taken)
    if change.sides:
        with graph.inserting_after(node):
            whole = graph.call_function(put_together, (node, source, *change.sides))
        node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)

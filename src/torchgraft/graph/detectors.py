"""Find the heads of a detector, which decides on values and so does not run on meta tensors."""

from __future__ import annotations

from torch import nn

from torchgraft.errors import AnalysisError, HeadError
from torchgraft.graph.constant_values import reads_values
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import COUNTS, Head, is_projection


def heads_of_detector(draft: Draft, error: AnalysisError) -> list[Head]:
    """Return the heads of a detector, told by the four sides that every box has.

    A box predictor gives every class a score, four sides, and a mask; beside anchors, one
    module gives the scores of all classes for each anchor and its neighbour the four sides.

    Args:
        draft: the draft.
        error: why the model does not run on meta tensors.

    Raises:
        HeadError: there are none.
    """
    if not isinstance(error.__cause__, Exception) or not reads_values(error.__cause__):
        raise error
    for path, module in draft.root.named_modules():
        around = path.rpartition(".")[0]
        count = next((n for name in COUNTS if isinstance(n := vars(module).get(name), int) and n > 0), 0)
        beside = [part for part in draft.get(around).children() if part is not module] if count else []
        sides = {c.out_channels for part in beside for _, c in _convolutions(part)}
        lists = [item for item in module.named_children() if isinstance(item[1], nn.ModuleList)][:1]
        units = [(f"{path}.{name}.{i}", unit) for name, held in lists for i, unit in enumerate(held)]
        last = [_convolutions(unit, name)[-1:] for name, unit in units or [(path, module)]] if sides else []
        scores = [Head(name, c, each=c.out_channels // count) for found in last for name, c in found]
        if scores and all(s.each * count == s.module.out_channels and 4 * s.each in sides for s in scores):
            return scores
        parts = [child for child in module.children() if isinstance(child, nn.Linear)]
        if len(parts) != 2 or parts[1].out_features != 4 * parts[0].out_features:
            continue
        (score, one), (box, four) = ((f"{path}.{name}", part) for name, part in module.named_children())
        heads = [Head(score, one), Head(box, four, each=4)]
        masks = _convolutions(draft.get(around), around)
        return [
            *heads,
            *(Head(n, c) for n, c in masks if is_projection(c) and c.out_channels == one.out_features),
        ]
    layers = [path for path, part in draft.root.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    named = [path for path, _ in draft.root.named_modules() if "class" in path.rpartition(".")[2]]
    last = [*layers, *named][-1:] or ["<a path>"]
    raise HeadError(
        "the classifier cannot be told: the forward decides on values, so it does not run on meta tensors",
        found=error.found,
        write=f'replace("{last[0]}", lambda old: <the same for other classes>, keep_shape=False)',
    ) from error


def _convolutions(module: nn.Module, path: str = "") -> list[tuple[str, nn.Conv2d]]:
    return [(n, part) for n, part in module.named_modules(prefix=path) if isinstance(part, nn.Conv2d)]

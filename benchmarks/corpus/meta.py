"""What is asked of a model without values: structure, keys and shapes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from checks import flat, graft, run
from columns import Answers, Gain, answer, classes_kept, kept
from pyramids import on_meta
from subject import WrongError, middle
from torch import nn

from torchgraft import inject, shapes


def answers_on_meta(name: str) -> Answers:
    """Ask a model of timm without values for structure, keys and shapes."""
    import timm

    model = on_meta(functools.partial(timm.create_model, name, pretrained=False))
    size = (model.pretrained_cfg or {}).get("input_size", (3, 224, 224))
    x = torch.empty(2, *size, device="meta")
    path = middle(copy.deepcopy(model), x, mode=False)[0]
    seen: dict[str, list[object]] = {}
    twin = copy.deepcopy(model)
    for at, module in twin.named_modules():
        module.register_forward_hook(lambda m, a, out, at=at: seen.setdefault(at, []).append(_shape(out)))
    run(twin, x, mode=False)

    def made() -> Iterator[nn.Module]:
        yield graft(model)
        yield graft(model, inject(path, Gain().to("meta")))

    def same_structure() -> None:
        for result in made():
            classes_kept(model, result)

    def same_keys() -> None:
        for new, result in enumerate(made()):
            kept(model, result, new)

    def same_shapes() -> None:
        for result in made():
            if _shape(run(result, x, mode=False)) != seen[""][0]:
                raise WrongError("shape of the output")
        rows = shapes(model, tuple(x.shape))
        for at, found in seen.items():
            if len(found) == 1 and isinstance(found[0], tuple) and rows[at] != found[0]:
                raise WrongError(f"shapes says {rows[at]} of {at}, it gives {found[0]}")

    for column, check in {"structure": same_structure, "keys": same_keys, "shapes": same_shapes}.items():
        yield column, answer(check, x)


def _shape(output: object) -> object:
    if isinstance(output, torch.Tensor):
        return tuple(output.shape)
    return [tuple(t.shape) for t in flat(output)]

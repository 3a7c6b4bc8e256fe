"""Real models for tests: random weights, statistics that are not trivial, inputs they take."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from torchgraft import explain, pipe
from torchgraft.graph.draft import Draft
from torchgraft.graph.heads import find_heads
from torchgraft.graph.kinds import is_container
from torchgraft.graph.probe import probe


def classifiers() -> list[str]:
    """Name the classification models of torchvision."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith("quantized")]


def families() -> list[str]:
    """Name one timm model of every architecture file, the smallest of those without weights' tags."""
    import timm
    from timm.models import _registry

    chosen: dict[str, str] = {}
    for module in sorted(_registry._module_to_models):
        names = sorted(timm.list_models(module=module))
        chosen[module] = min(names, key=_size) if names else ""
    return [name for name in chosen.values() if name]


_SIZES = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxt",
    "xxs",
    "xs",
    "zero",
    "tiny",
    "mini",
    "t0",
    "b0",
    "s0",
    "small",
    "xsmall",
)


def _size(name: str) -> tuple[int, int, str]:
    marked = next((i for i, word in enumerate(_SIZES) if word in name), 50)
    digits = sum(int(part) for part in "".join(c if c.isdigit() else " " for c in name).split())
    return (marked, digits, name)


def build(name: str) -> nn.Module:
    """Make a model by its name (``timm/...`` for timm's) and give it lively statistics."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/"), pretrained=False)
        if getattr(model, "num_classes", None) == 0:  # made without a head
            torch.manual_seed(0)
            model = timm.create_model(name.removeprefix("timm/"), pretrained=False, num_classes=1000)
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    return enliven(model)


def enliven(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that are not zero and one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
        if mean is not None and var is not None and not mean.is_meta:
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
            var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
    return model


def example(model: nn.Module, *, batch: int = 2) -> torch.Tensor:
    """Make an image batch of the smallest usual size that the model takes in both modes."""
    channels, side = 3, 224
    guess = probe(model, None).calls[-1].args[0]
    if sum(p.numel() for p in model.parameters()) > 3e8 or guess.shape[-1] > 512:
        batch = 1  # memory
    made = pipe(model)
    made.recompile()  # from here on it runs its graph, as one that was edited
    if explain(made).guards:  # made for one size
        return torch.randn(batch, *guess.shape[1:], generator=torch.Generator().manual_seed(2))
    for candidate in (96, 128, 160, 192):
        try:
            given = torch.empty(batch, channels, candidate, candidate)
            reference = probe(model, None, training=True).calls[-1].args[0]
            if reference.ndim != 4:
                return torch.zeros(batch, *reference.shape[1:])
            channels, side = reference.shape[1], reference.shape[-1]
            given = torch.empty(batch, channels, candidate, candidate)
            probe(model, given, training=True)
            probe(model, given)
        except Exception:
            continue
        side = min(side, candidate)
        break
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, channels, side, side, generator=generator)


def late_stage(model: nn.Module) -> str:
    """Name the last large part of a model whose output is a map or a sequence."""
    root = probe(model, None)
    heads = [head.path for head in find_heads(Draft(model))]
    total = sum(p.numel() for p in model.parameters())
    best = ""
    for call in root.calls:
        output = call.output
        parts = sum(p.numel() for p in call.module.parameters())
        if (
            not call.path
            or any(head.startswith(call.path + ".") for head in heads)
            or not is_container(call.module)
            or not isinstance(output, torch.Tensor)
            or output.ndim < 3
        ):
            continue
        if parts * 30 >= total and (not best.startswith(call.path + ".") or parts < total * 0.7):
            best = call.path
    return best

"""Models whose every tensor is random and whose signals live, and what they compute."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


def images(shape: tuple[int, ...], *, seed: int = 7) -> Tensor:
    """Draw a batch of images that differ in the large as in the small; plain noise looks alike to a deep net."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(*shape[:2], side, side, generator=generator) for side in (1, 2, 4, 8, 16, 64)]
    return sum(F.interpolate(layer, size=shape[2:], mode="bilinear") for layer in layers) * 0.8


def randomise(model: nn.Module, seed: int, shape: tuple[int, ...]) -> nn.Module:
    """Draw every parameter and BatchNorm statistic anew, in place; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    model.requires_grad_(requires_grad=True).eval()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in drawn:
                    drawn.add(id(parameter))
                    draw(parameter, name, isinstance(module, DENSE), generator)
        _calibrate(model, generator, images((16, *shape[1:]), seed=11))
    return model


def draw(parameter: Tensor, name: str, dense: bool, generator: torch.Generator) -> None:
    """Draw a parameter by what its name and shape say that it is."""
    noise = torch.randn(parameter.shape, generator=generator)
    level = torch.rand(parameter.shape, generator=generator)
    if parameter.ndim > 1 and dense:
        parameter.copy_(noise * 1.2 / math.sqrt(parameter[0].numel()))
    elif name.endswith(("bias", "beta")) and parameter.ndim < 2:
        parameter.copy_(noise * 0.2)
    elif parameter.ndim < 2 or parameter.numel() == parameter.shape[0]:
        parameter.copy_(0.5 + level)  # norms, layer scales, temperatures
    else:
        parameter.copy_(noise * 0.5)  # tokens, positions, tables


def _calibrate(model: nn.Module, generator: torch.Generator, x: Tensor) -> None:
    """Let each BatchNorm take its statistics from what reaches it, or signals die within a few layers."""
    seen: set[int] = set()

    def measure(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        spread = given[0].var(axes, unbiased=False)
        spread = spread.clamp_min(0.1 * spread.mean().item() + 1e-6)
        noise = torch.randn(spread.shape, generator=generator)
        level = torch.rand(spread.shape, generator=generator)
        module.running_mean.copy_(given[0].mean(axes) + 0.2 * spread.sqrt() * noise)
        module.running_var.copy_(spread * (0.6 + 0.9 * level))

    norms = [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()


def output(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model in eval mode and take its main output, whatever it is wrapped in."""
    model.train()
    model.eval()  # what was cached of parameters for eval mode is dropped by the change of mode
    given = model(x)
    for key in ("logits", "pooler_output", "last_hidden_state", "feature_maps"):
        found = getattr(given, key, None)
        given = given if found is None else found
    return given[-1] if isinstance(given, tuple | list) else given


def difference(expected: Tensor, found: Tensor) -> float:
    """Tell the largest difference as a share of the largest expected value."""
    if expected.shape != found.shape:
        return math.inf
    worst = (expected - found).abs().max().item() / max(expected.abs().max().item(), 1e-12)
    return worst if math.isfinite(worst) else math.inf

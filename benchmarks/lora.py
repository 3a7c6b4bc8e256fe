"""Time to put LoRA beside the linear layers of a vision transformer, against PEFT doing the same, in one run.

Both get the same layers, those that are called; PEFT edits a model in place, so its copy is made outside of the clock.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torchvision.models import vit_b_16

from torchgraft import at, freeze, pipe, wrap
from torchgraft.blocks.lora import LoRA, lora

warnings.filterwarnings("ignore")
RANK, ROUNDS = 8, 15
TARGET = at(nn.Linear) - nn.MultiheadAttention


def clock(function: Callable[[], object]) -> float:
    """Time one call with the cyclic garbage collector off, as timeit does."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    function()
    taken = time.perf_counter() - started
    gc.enable()
    return taken


def called(model: nn.Module) -> list[str]:
    """Name the linear layers that a forward calls: not those whose weights attention reads."""
    seen: dict[str, None] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [m.register_forward_hook(lambda m, a, o: seen.setdefault(names[m])) for m in names]
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return list(seen)


def main() -> None:
    model = vit_b_16().eval()
    layers = called(model)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers)

    def ours() -> nn.Module:
        return pipe(model, wrap(TARGET, lora(RANK)))

    def frozen() -> nn.Module:
        return pipe(model, freeze("**"), wrap(TARGET, lora(RANK)))

    def theirs(fresh: nn.Module) -> nn.Module:
        return inject_adapter_in_model(config, fresh)

    adapted = {f"{n.rpartition('_lora')[0]}" for n, m in ours().named_modules() if isinstance(m, LoRA)}
    injected = {n for n, m in theirs(copy.deepcopy(model)).named_modules() if isinstance(m, LoraLayer)}
    assert adapted == injected == set(layers), (adapted, injected, layers)
    times: dict[str, list[float]] = {"ours": [], "frozen": [], "peft": []}
    for _ in range(ROUNDS):
        fresh = copy.deepcopy(model)
        times["ours"].append(clock(ours))
        times["frozen"].append(clock(frozen))
        times["peft"].append(clock(lambda f=fresh: theirs(f)))
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {len(layers)} layers, rank {RANK}"
    )
    for name, words in (("ours", "wrap alone"), ("frozen", "freeze and wrap")):
        print(
            f"| LoRA on `vit_b_16`, {words} | {middle[name] / middle['peft']:.2f} | at most 2 | "
            f"{middle[name] * 1e3:.1f} ms against {middle['peft'] * 1e3:.1f} ms |"
        )


if __name__ == "__main__":
    main()
